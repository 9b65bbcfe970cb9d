/** A training loop of one's own, from the parts: model, method, optimizer, tensors. Learns one sentence by heart. */
import * as graft from 'graft-llm/engine';

const [spec, out, sentence = 'The quick brown fox jumps over the lazy dog.'] = process.argv.slice(2);
if (!spec || !out) {
  console.error('usage: node tools/run.cjs examples/loop.ts MODEL ADAPTER_OUT [SENTENCE]');
  process.exit(2);
}

await graft.startEngine();
const path = await graft.resolveModel(spec);
const ids = Array.from(graft.tokenizerOf(path).encode(sentence));
const targets = BigInt64Array.from([...ids.slice(1), -100], BigInt); // what follows each token; −100: not learned

using model = graft.loadModel(path);
using adapter = graft.attach(model, { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' });
using optimizer = graft.createOptimizer({ type: 'adamw' }, adapter.parameters);

for (let step = 1; step <= 20; step++) {
  using _ = graft.scope(); // the step's activations go with it
  const hidden = model.hidden(graft.packTokens([ids])); // [N, C]
  const sum = model.lossSum(hidden, graft.Tensor.from(targets)); // nats, over all predicted tokens
  const loss = graft.ops.divScalar(sum, ids.length - 1);
  loss.backward();
  optimizer.step(1e-2);
  for (const parameter of adapter.parameters.values()) parameter.grad = undefined;
  if (step % 5 === 0 || step === 1) console.log(`step ${step}: loss ${loss.item().toFixed(4)}`);
}
graft.saveAdapter(model, adapter, out, { base: spec }); // PEFT loads it too
console.log(`Saved ${out}`);
