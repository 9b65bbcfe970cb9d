/**
 * Every fused operator with each of its inputs trained alone, with all of them trained, and with all but one: it gives the gradients
 * that its composite twin gives (in float64), or refuses. None leaves a trained input frozen without a word.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { relativeError } from '../../test/support.ts';
import { packageRoot } from '../base/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { formats } from '../quant/index.ts';
import { Generator, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
import { fused } from './fused.ts';
import type { Kernels, Rounding } from './kernels.ts';

before(() => startEngine());

type Inputs = Readonly<Record<string, Tensor>>;

interface Operator {
  /** The shape of each floating-point input. */
  readonly inputs: Readonly<Record<string, readonly number[]>>;
  /** Inputs that it refuses to train. */
  readonly refused?: readonly string[];
  run(kernels: Kernels, inputs: Inputs): readonly Tensor[];
}

const rows = { qStarts: [0, 3, 7], kStarts: [0, 3], kEnds: [3, 7] };
const targets = () => Tensor.from(BigInt64Array.of(3n, -100n, 0n, 10n, 5n, -100n, 2n));
const ids = () => Tensor.from(BigInt64Array.of(3n, 10n, 3n, 0n, 3n));
const lora = { x: [7, 13], weight: [11, 13], a: [3, 13], b: [11, 3] } as const;
const gated = { gate: [7, 13], up: [7, 13], weight: [11, 13], a: [3, 13], b: [11, 3] } as const;

const q4: Rounding = { quantization: { format: 'q4_0' } };
const int4 = (learned: Tensor): Rounding => ({ quantization: { format: 'int4', groupSize: 16 }, learned });
/** Ranges near those of random numbers, some narrower, so that codes are clipped. */
const scales = (t: Tensor) => ops.addScalar(ops.mulScalar(ops.abs(t), 0.1), 0.2);
const updateOf = (t: Inputs) => ({ a: t.a!, b: t.b!, scaling: 0.37 });
const quantized = { x: [7, 32], weight: [11, 32], a: [3, 32], b: [11, 3], bias: [11] } as const;
const quantizedGated = { gate: [7, 32], up: [7, 32], weight: [11, 32], a: [3, 32], b: [11, 3], bias: [11] } as const;

const operators: Readonly<Record<string, Operator>> = {
  rms_norm: { inputs: { x: [7, 13], weight: [13] }, run: (k, t) => [k.rmsNorm(t.x!, t.weight!, 1e-5)] },
  add_rms_norm: {
    inputs: { x: [7, 13], delta: [7, 13], weight: [13] },
    run: (k, t) => k.addRmsNorm(t.x!, t.delta!, t.weight!, 1e-5),
  },
  rope: {
    inputs: { x: [7, 2, 8], cos: [7, 4], sin: [7, 4] },
    refused: ['cos', 'sin'],
    run: (k, t) => [k.rope(t.x!, t.cos!, t.sin!)],
  },
  glu: { inputs: { gate: [7, 13], up: [7, 13] }, run: (k, t) => [k.glu(t.gate!, t.up!, 'silu')] },
  attention: {
    inputs: { q: [7, 4, 8], k: [7, 2, 8], v: [7, 2, 8] },
    run: (k, t) => [k.attention(t.q!, t.k!, t.v!, rows, 0.3, true, 0)],
  },
  block_linear: {
    inputs: { x: [7, 13], weight: [11, 13], bias: [11] },
    run: (k, t) => [k.linear(t.x!, t.weight!, -1, t.bias!)],
  },
  'block_linear of one row': {
    inputs: { x: [1, 13], weight: [11, 13], bias: [11] },
    run: (k, t) => [k.linear(t.x!, t.weight!, -1, t.bias!)],
  },
  block_embedding: {
    inputs: { table: [11, 13] },
    run: (k, t) => [k === fused ? ops.blockEmbedding(t.table!, -1, ids()) : ops.embedding(t.table!, ids())],
  },
  lora_linear: {
    inputs: { ...lora, bias: [11] },
    run: (k, t) => [k.loraLinear(t.x!, null, t.weight!, -1, t.bias!, t.a!, t.b!, 0.37)],
  },
  'lora_linear of a dropped input': {
    inputs: { ...lora, bias: [11], dropped: [7, 13] },
    run: (k, t) => [k.loraLinear(t.x!, t.dropped!, t.weight!, -1, t.bias!, t.a!, t.b!, 0.37)],
  },
  lora_gated_linear: {
    inputs: { ...gated, bias: [11] },
    run: (k, t) => [k.loraGatedLinear(t.gate!, t.up!, 'gelu_tanh', t.weight!, -1, t.bias!, t.a!, t.b!, 0.37)],
  },
  lora_weight: {
    inputs: { weight: [11, 13], a: [3, 13], b: [11, 3] },
    run: (k, t) => [k.loraWeight(t.weight!, t.a!, t.b!, 0.37)],
  },
  rounded_linear: {
    inputs: quantized,
    run: (k, t) => [k.roundedLinear(t.x!, t.weight!, updateOf(t), t.bias!, q4)],
  },
  'rounded_linear without an update': {
    inputs: { x: [7, 32], weight: [11, 32], bias: [11] },
    run: (k, t) => [k.roundedLinear(t.x!, t.weight!, null, t.bias!, q4)],
  },
  'rounded_linear with learned scales': {
    inputs: { ...quantized, scale: [11, 2] },
    run: (k, t) => [k.roundedLinear(t.x!, t.weight!, updateOf(t), t.bias!, int4(scales(t.scale!)))],
  },
  rounded_gated_linear: {
    inputs: quantizedGated,
    run: (k, t) => [k.roundedGatedLinear(t.gate!, t.up!, 'silu', t.weight!, updateOf(t), t.bias!, q4)],
  },
  'rounded_gated_linear with learned scales': {
    inputs: { ...quantizedGated, scale: [11, 2] },
    run: (k, t) => [
      k.roundedGatedLinear(t.gate!, t.up!, 'silu', t.weight!, updateOf(t), t.bias!, int4(scales(t.scale!))),
    ],
  },
  fake_quantize_blocks: {
    inputs: { weight: [11, 32] },
    run: (k, t) => [k.fakeQuantizeBlocks(t.weight!, formats.q4_0.nativeId)],
  },
  fake_quantize_integers: { inputs: { x: [11, 32] }, run: (k, t) => [k.fakeQuantizeIntegers(t.x!, 4, 16, false)] },
  fake_quantize_learned: {
    inputs: { weight: [11, 32], scale: [11, 2] },
    run: (k, t) => [k.fakeQuantizeLearned(t.weight!, scales(t.scale!), 4)],
  },
  linear_cross_entropy: {
    inputs: { h: [7, 13], weight: [11, 13] },
    run: (k, t) => [k.linearCrossEntropy(t.h!, t.weight!, -1, targets())],
  },
};

/**
 * Operators without a floating-point input that could be trained: blocks are bytes, what quantisers return are codes, and an
 * optimizer's step and the operators of serving refuse to be recorded (optim/optimizers.test.ts, kernels.test.ts).
 */
const withoutGradient = [
  ...['dequantize', 'quantize', 'quantize_integers', 'pack_integers'],
  ...['set_reduced_products', 'set_row_wise_products'],
  'adamw_8bit_',
  ...['add_low_rank_runs_', 'add_bottleneck_runs_', 'scale_runs_', 'block_linears', 'pooled_attention'],
];

test('every fused operator is here', () => {
  const listed = readFileSync(join(packageRoot, 'src/tensor/ops.list'), 'utf8').matchAll(/^graft::(\w+)/gm);
  const tested = new Set(Object.keys(operators).map((name) => name.split(' ')[0]!));
  assert.deepEqual([...tested, ...withoutGradient].sort(), [...listed].map(([, name]) => name!).sort());
});

const floats = (t: Tensor) => Array.from(noGrad(() => ops.contiguous(t).data()) as Float64Array);

/** Returns the gradients of the trained inputs for a loss that weighs the outputs. */
function gradients(kernels: Kernels, { run }: Operator, inputs: Inputs, trained: readonly string[]) {
  for (const [name, tensor] of Object.entries(inputs)) {
    tensor.grad = undefined;
    tensor.requiresGrad = trained.includes(name);
  }
  const terms = run(kernels, inputs).map((out, i) => {
    const weights = Array.from({ length: out.numel }, (_, at) => Math.cos(at * 1.7 + i));
    return ops.sum(ops.mul(out, ops.toCopy(Tensor.from(Float64Array.from(weights), out.shape), { dtype: out.dtype })));
  });
  terms.reduce((a, b) => ops.add(a, b)).backward();
  return new Map(Object.entries(inputs).map(([name, tensor]) => [name, tensor.grad && floats(tensor.grad)]));
}

const counts = { inputs: 0, cases: 0, gradients: 0, refused: 0 };

for (const [name, operator] of Object.entries(operators)) {
  test(`${name}: each input that is trained gets its gradient, or is refused`, () => {
    using _ = scope();
    using generator = new Generator(31);
    const entries = Object.entries(operator.inputs).map(
      ([key, shape]) => [key, ops.randn(shape, { generator })] as const,
    );
    const inputs: Inputs = Object.fromEntries(entries);
    const doubled = Object.fromEntries(entries.map(([key, t]) => [key, ops.toCopy(t, { dtype: 'float64' })]));
    const refused = operator.refused ?? [];
    const trainable = Object.keys(inputs).filter((key) => !refused.includes(key));
    for (const key of refused) {
      assert.throws(() => gradients(fused, operator, inputs, [key]), new RegExp(`${key} gets no gradient`));
      assert.throws(
        () => gradients(fused, operator, inputs, [...trainable, key]),
        new RegExp(`${key} gets no gradient`),
      );
      noGrad(() => operator.run(fused, inputs)); // without recording it computes as ever
      counts.refused++;
    }
    const alone = trainable.map((key) => [key]);
    const allButOne = trainable.length > 2 ? trainable.map((key) => trainable.filter((other) => other !== key)) : [];
    for (const trained of [...alone, ...allButOne, trainable]) {
      const got = gradients(fused, operator, inputs, trained);
      const wanted = gradients(composite, operator, doubled, trained);
      for (const key of Object.keys(inputs)) {
        const what = `${key}, trained: ${trained.join(', ')}`;
        assert.equal(got.get(key) !== undefined, trained.includes(key), `a gradient of ${what}, or none`);
        if (!trained.includes(key)) continue;
        const error = relativeError(got.get(key)!, wanted.get(key)!);
        assert.ok(error <= 1e-5, `the gradient of ${what} differs by ${error}`);
        counts.gradients++;
      }
      counts.cases++;
    }
    counts.inputs += Object.keys(inputs).length;
  });
}

test('a dense table whose rows are read out again gets one dense gradient, and no second one of its size exists on the way', () => {
  using _ = scope();
  using generator = new Generator(5);
  const [rows, width, count] = [4096, 32, 300];
  const table = ops.randn([rows, width], { generator });
  table.requiresGrad = true;
  const looked = Tensor.from(BigInt64Array.from({ length: count }, (_, i) => BigInt((i * i) % 97)));
  const next = Tensor.from(BigInt64Array.from({ length: count }, (_, i) => BigInt((i * 31) % rows)));
  const { native } = currentEngine();
  /** The gradient, and the largest amount of memory beside what the forward pass left. */
  const pass = (lookup: (ids: Tensor) => Tensor, head: boolean) => {
    using _ = scope();
    table.grad = undefined;
    const h = ops.tanh(lookup(looked));
    const loss = head ? ops.linearCrossEntropy(h, table, -1, next) : ops.sum(ops.mul(h, h));
    const { now } = native.allocated();
    loss.backward();
    const peak = native.allocated().peak - now;
    return { gradient: floats(table.grad!), peak };
  };
  for (const threads of [1, 2]) {
    const before = native.threads();
    native.threads(threads);
    for (const head of [true, false]) {
      const ours = pass((ids) => ops.blockEmbedding(table, -1, ids), head);
      const wanted = pass((ids) => ops.embedding(table, ids), head);
      assert.ok(relativeError(ours.gradient, wanted.gradient) <= 1e-6);
      assert.equal(wanted.peak >= 4 * rows * width, true);
      assert.equal(ours.peak < 4 * rows * width, head, `${ours.peak} bytes`);
    }
    native.threads(before);
  }
  ops.sum(ops.dequantize(table, -1)).backward();
});

test('so much was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { inputs: 73, cases: 151, gradients: 380, refused: 2 });
});
