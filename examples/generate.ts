/** Continues a text; the words appear as they are made. */
import { Session } from 'graft';

const [model, prompt = 'Once upon a time', adapter] = process.argv.slice(2);
if (!model) {
  console.error('usage: node tools/run.cjs examples/generate.ts MODEL [PROMPT [ADAPTER_DIR]]');
  process.exit(2);
}

await using session = new Session();
const result = await session.run(
  'generate',
  { model, prompt, maxNewTokens: 64, temperature: 0.8, topP: 0.95, seed: 1, ...(adapter && { adapter }) },
  (event) => {
    if (event.type === 'text') process.stdout.write(event.text);
  },
);
console.log(
  `\n(${result.ids.length} tokens, ${result.decode_tokens_per_s.toFixed(0)} tokens/s, ended by ${result.reason})`,
);
