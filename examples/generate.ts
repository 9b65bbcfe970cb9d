/** Continues a text; the words appear as they are generated. */
import { Session } from 'graft-llm';

const [id, prompt = 'Once upon a time', adapter] = process.argv.slice(2);
if (!id) {
  console.error('usage: node tools/run.cjs examples/generate.ts MODEL [PROMPT [ADAPTER_DIR]]');
  process.exit(2);
}

await using session = new Session();
await using model = await session.load(id);
const answer = model.generate(prompt, { adapter, maxNewTokens: 64, temperature: 0.8, topP: 0.95, seed: 1 });
for await (const piece of answer) process.stdout.write(piece);
const { ids, decodeTokensPerSecond, reason } = await answer;
console.log(`\n(${ids.length} tokens, ${decodeTokensPerSecond.toFixed(0)} tokens/s, ended by ${reason})`);
