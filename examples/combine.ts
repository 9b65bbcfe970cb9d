/** Combines two adapters of one base into a third by weights, and generates with it. */
import { Session } from 'graft-llm';

const [id, first, second, out, prompt = 'Once upon a time'] = process.argv.slice(2);
if (!id || !first || !second || !out) {
  console.error('usage: node tools/run.cjs examples/combine.ts MODEL ADAPTER_DIR ADAPTER_DIR OUT_DIR [PROMPT]');
  process.exit(2);
}

await using session = new Session();
const { rank, modules } = await session.combine([first, second], { weights: [0.7, 0.3], how: 'cat', out });
console.log(`${out}: rank ${rank}, ${modules} modules`);

await using model = await session.load(id, { adapters: { both: out } });
const { text } = await model.generate(prompt, { adapter: 'both', maxNewTokens: 16 });
console.log(text);
