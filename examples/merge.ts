/** Merges an adapter into its base, writes the whole model, and generates with the merged model. */
import { Session } from 'graft-llm';

const [id, adapter, out, prompt = 'Once upon a time'] = process.argv.slice(2);
if (!id || !adapter || !out) {
  console.error('usage: node tools/run.cjs examples/merge.ts MODEL ADAPTER_DIR OUT_DIR [PROMPT]');
  process.exit(2);
}

await using session = new Session();
const { maxDrift, tokens } = await session.merge(id, { adapter, out });
console.log(
  `${out}: logits differ from base and adapter by at most ${maxDrift.toExponential(1)} over ${tokens} tokens`,
);

// A Hugging Face directory: transformers loads it, and so does Graft, now without the adapter.
await using merged = await session.load(out);
const { text } = await merged.generate(prompt, { maxNewTokens: 16 });
console.log(text);
