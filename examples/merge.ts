/** Folds an adapter into its base, writes the whole model, and asks the merged model something. */
import { Session } from 'graft';

const [model, adapter, out, prompt = 'Once upon a time'] = process.argv.slice(2);
if (!model || !adapter || !out) {
  console.error('usage: node tools/run.cjs examples/merge.ts MODEL ADAPTER_DIR OUT_DIR [PROMPT]');
  process.exit(2);
}

await using session = new Session();
const { maxDrift, tokens } = await session.run('merge', { model, adapter, out, dtype: 'float32' });
console.log(
  `${out}: logits differ from base and adapter by at most ${maxDrift.toExponential(1)} over ${tokens} tokens`,
);

// A Hugging Face directory: transformers loads it, and so does Graft, now without the adapter.
const { text } = await session.run('generate', { model: out, prompt, maxNewTokens: 16 });
console.log(text);
