/** Weighs two adapters of one base together into a third, and asks the base with it something. */
import { Session } from 'graft';

const [model, first, second, out, prompt = 'Once upon a time'] = process.argv.slice(2);
if (!model || !first || !second || !out) {
  console.error('usage: node tools/run.cjs examples/combine.ts MODEL ADAPTER_DIR ADAPTER_DIR OUT_DIR [PROMPT]');
  process.exit(2);
}

await using session = new Session();
const args = { adapters: [first, second], weights: [0.7, 0.3], how: 'cat', out } as const;
const { rank, modules } = await session.run('combine', args);
console.log(`${out}: rank ${rank}, ${modules} modules`);

const { text } = await session.run('generate', { model, adapter: out, prompt, maxNewTokens: 16 });
console.log(text);
