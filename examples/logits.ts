/** What a model expects next: the likeliest tokens behind a text, from its logits. The engine runs in this thread. */
import { loadModel, noGrad, ops, packTokens, resolveModel, scope, startEngine, tokenizerOf } from 'graft-llm/engine';

const [spec, text = 'The capital of France is'] = process.argv.slice(2);
if (!spec) {
  console.error('usage: node tools/run.cjs examples/logits.ts MODEL [TEXT]');
  process.exit(2);
}

await startEngine();
const path = await resolveModel(spec);
const tokenizer = tokenizerOf(path);
using model = loadModel(path);
const ids = tokenizer.encode(text);

noGrad(() => {
  using _ = scope(); // frees every tensor that is made in here
  const hidden = model.hidden(packTokens([ids])); // [T, C]
  const last = model.logits(ops.narrow(hidden, 0, ids.length - 1, 1), [0, 1]); // [1, V]
  const probabilities = ops.softmax(last, -1).data() as Float32Array;
  const order = Array.from(probabilities.keys()).sort((a, b) => probabilities[b]! - probabilities[a]!);
  for (const id of order.slice(0, 5)) {
    console.log(`${(100 * probabilities[id]!).toFixed(2)} %  ${JSON.stringify(tokenizer.decode([id]))}`);
  }
});
