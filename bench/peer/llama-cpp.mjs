/**
 * llama.cpp through node-llama-cpp, for gguf.bench.ts: node llama-cpp.mjs PACKAGE_FOLDER REQUEST.json
 * The request names a model file and, where given, a LoRA file; rows of token ids to continue greedily, of which `forced` gives the
 * ids after the prompt to compare each next token with; texts to tokenize. The last line is one JSON document.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(
  pathToFileURL(join(folder, 'node_modules', 'node-llama-cpp', 'dist', 'index.js')).href
);
const request = JSON.parse(readFileSync(file, 'utf8'));
const { model: modelPath, lora, rows = [], tokens = 32, texts = [], contextSize = 512, threads = 1 } = request;
const warnings = [];
const llama = await getLlama({
  gpu: false,
  build: 'never',
  logLevel: LlamaLogLevel.warn,
  logger: (level, message) => warnings.push(`${level}: ${message.trimEnd()}`),
});
const model = await llama.loadModel({ modelPath });
const ids = texts.map((text) => model.tokenize(text, true));
const free = [];
const forced = [];
if (rows.length > 0) {
  const context = await model.createContext({ contextSize, sequences: 1, threads, ...(lora && { lora }) });
  const sequence = context.getSequence();
  for (const { prompt, answer } of rows) {
    await sequence.clearHistory();
    const out = [];
    for await (const token of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
      out.push(token);
      if (out.length >= tokens) break;
    }
    free.push(out);
    await sequence.clearHistory();
    const input = [...prompt, ...answer.slice(0, -1)].map((token, i) =>
      i < prompt.length - 1 ? token : [token, { generateNext: { token: true, options: { temperature: 0 } } }],
    );
    const next = await sequence.controlledEvaluate(input);
    forced.push(next.slice(prompt.length - 1).map((output) => output?.next?.token ?? -1));
  }
}
console.log(JSON.stringify({ warnings, ids, free, forced }));
process.exit(0);
