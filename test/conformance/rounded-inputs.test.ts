/** Models that take the inputs of layers in blocks as llama.cpp does (`activation: q8`), against a plain statement of what that is. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { pack } from '../../src/data/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { Linear, type Model, namedModules } from '../../src/nn/index.ts';
import { formats } from '../../src/quant/index.ts';
import { inType, noGrad, scope, Tensor } from '../../src/tensor/index.ts';
import { batchLoss } from '../../src/train/index.ts';
import { golden, logitsOf, numbers, relativeError } from '../support.ts';
import { perturb } from './cases.ts';

before(() => startEngine());

const file = golden('gguf', 'llama.gguf');
const ids = [3, 17, 40, 9, 62, 5, 11];
const blocksOf32 = ['q4_0', 'q4_1', 'q5_0', 'q5_1', 'q8_0'] as const;
const rounded = new Set<number>(blocksOf32.map((name) => formats[name].nativeId));

/** x [.., C] in blocks of 32: d = max|x| / 127, of which codes are whole multiples, halves away from zero; d is kept in half precision. */
function q8(x: Tensor): Tensor {
  const values = numbers(x).slice();
  for (let start = 0; start < values.length; start += 32) {
    const block = values.subarray(start, start + 32);
    const d = Math.fround(Math.max(...block.map(Math.abs)) / 127);
    const [kept] = numbers(inType(inType(Tensor.from(Float32Array.of(d)), 'float16'), 'float32'));
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    block.forEach((v, i) => {
      const scaled = Math.fround(v * inverse);
      block[i] = Math.fround(Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5) * kept!);
    });
  }
  return Tensor.from(values, x.shape);
}

/** Makes every layer in blocks of 32 round its inputs by `q8`; no kernel then takes several layers, or a layer and its adapter. */
function roundByHand(model: Model): number {
  let layers = 0;
  for (const [, layer] of namedModules(model.root)) {
    if (!(layer instanceof Linear) || !rounded.has(layer.format)) continue;
    const [forward, crossEntropy] = [layer.forward.bind(layer), layer.crossEntropy.bind(layer)];
    Object.assign(layer, {
      forward: (x: Tensor) => forward(q8(x)),
      crossEntropy: (h: Tensor, targets: Tensor) => crossEntropy(q8(h), targets),
      plain: () => undefined,
    });
    layers++;
  }
  return layers;
}

const lossOf = (model: Model) =>
  noGrad(() => {
    using _ = scope();
    const row = Int32Array.from(ids);
    return batchLoss(model, pack([{ ids: row, labels: row, place: 'test' }])).item();
  });

const cases: Readonly<Record<string, readonly MethodChoice[]>> = {
  'the base': [],
  LoRA: [{ type: 'lora', r: 4, target_modules: 'all-linear' }],
  '(IA)³': [{ type: 'ia3' }],
};
for (const [name, methods] of Object.entries(cases)) {
  test(`${name}: inputs of layers in blocks are rounded, an adapter sees them as they are`, (t) => {
    let layers = 0;
    const load = (activation: 'exact' | 'q8', byHand = false) => {
      const model = loadModel(file, { quantize: 'keep', activation });
      if (byHand) layers = roundByHand(model);
      if (methods.length > 0) perturb(attachMethods(model, methods, 1), 5);
      return model;
    };
    using exact = load('exact');
    using got = load('q8');
    using want = load('exact', true);
    const [plain, logits, byHand] = [exact, got, want].map((model) => logitsOf(model, ids));
    const error = relativeError(logits!, byHand!);
    const change = relativeError(plain!, byHand!);
    t.diagnostic(`${layers} layers; rounding changes logits by ${change}, and they differ by ${error}`);
    assert.ok(layers >= 8 && change > 1e-4 && error < change / 100);
    assert.ok(Math.abs(lossOf(got) / lossOf(want) - 1) < 1e-5);
  });
}

test('a model without weights in blocks has no inputs to round', () => {
  for (const [path, quantize] of [
    [golden('models', 'llama3'), 'keep'],
    [file, 'none'],
  ] as const) {
    assert.throws(
      () => loadModel(path, { quantize, activation: 'q8' }),
      /llama\.cpp rounds inputs only where weights are in blocks, and this model has none/,
    );
  }
});
