/** Merges an adapter into its base, rounds the sum to a format of GGUF, and generates with the file that llama.cpp runs. */
import { Session } from 'graft-llm';

const [id, adapter, out, prompt = 'Once upon a time'] = process.argv.slice(2);
if (!id || !adapter || !out) {
  console.error('usage: node tools/run.cjs examples/quantize.ts MODEL ADAPTER_DIR OUT.gguf [PROMPT]');
  process.exit(2);
}

await using session = new Session();
const merging = session.merge(id, { adapter, to: 'q4_0', out });
let tensors = 0;
for await (const { total } of merging) tensors = total;
const { bytes, maxDrift, notes } = await merging;
console.log(`${out}: ${tensors} tensors, ${bytes} bytes; logits differ by at most ${maxDrift.toExponential(1)}`);
for (const note of notes) console.log(note);

// Without an adapter: only the base, rounded. A directory with integers would be { to: 'int4', groupSize: 32, out: DIR }.
const plain = await session.quantize(id, { to: 'q8_0', out: out.replace(/\.gguf$/, '-base.gguf') });
console.log(`${plain.out}: ${plain.changed} of ${plain.predictions} predictions changed`);

await using merged = await session.load(out);
const { text } = await merged.generate(prompt, { maxNewTokens: 16 });
console.log(text);
