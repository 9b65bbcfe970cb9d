/**
 * llama.cpp through node-llama-cpp, for swarm.bench.ts: node llama-cpp-streams.mjs PACKAGE_FOLDER REQUEST.json
 * Answers several prompts at once, greedily. Rows that share a LoRA file (or have none) are sequences of one context, which it batches;
 * each other LoRA file needs a context of its own. The last line is one JSON document: tokens generated in a second, the prompts' time included, and
 * without it: those after the first of each row, since all rows have one.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(
  pathToFileURL(join(folder, 'node_modules', 'node-llama-cpp', 'dist', 'index.js')).href
);
const { model: modelPath, rows, loras, tokens, threads } = JSON.parse(readFileSync(file, 'utf8'));
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath });
const contextSize = Math.max(...rows.map((row) => row.length)) + tokens + 8;
const byLora = Map.groupBy(rows.keys(), (r) => loras[r] ?? '');
const sequences = [];
for (const [lora, own] of byLora) {
  const options = { contextSize, sequences: own.length, threads, ...(lora && { lora }) };
  const context = await model.createContext(options);
  for (const r of own) sequences[r] = context.getSequence();
}
let allBegan = 0;
const answer = async (r) => {
  const ids = [];
  for await (const token of sequences[r].evaluate(rows[r], { temperature: 0, yieldEogToken: true })) {
    ids.push(token);
    if (ids.length === 1) allBegan = performance.now();
    if (ids.length >= tokens) break;
  }
  return ids;
};
const start = performance.now();
const ids = await Promise.all(rows.map((_, r) => answer(r)));
const end = performance.now();
const generated = ids.reduce((sum, one) => sum + one.length, 0);
const rate = (tokens, since) => (1e3 * tokens) / (end - since);
console.log(
  JSON.stringify({
    ids,
    tokens_per_s: rate(generated, start),
    decode_tokens_per_s: rate(generated - rows.length, allBegan),
  }),
);
process.exit(0);
