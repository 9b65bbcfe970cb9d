/**
 * Every fused kernel against its composite twin, which runs in float64 on the same float32 numbers; the composites
 * themselves against finite differences. Errors are relative to the largest number of the tensor. The whole file runs
 * twice: with the instructions that this processor has, and in a child process with AVX2 only.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test, { after, before } from 'node:test';
import { relativeError } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { Generator, mixSeed, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { composite, fused, type GateActivation, type Kernels } from './kernels.ts';

before(() => startEngine());

type Random = (...shape: number[]) => Tensor;
type Inputs = Readonly<Record<string, Tensor>>;

/** What one case computes: `inputs` are made float32, and `run` is called with them or with their float64 copies. */
type Build<T extends Inputs> = (random: Random) => {
  readonly inputs: T;
  readonly run: (kernels: Kernels, inputs: T) => readonly Tensor[];
};

interface Expectation<T> {
  /** Inputs whose gradients are compared; default: all. */
  readonly trained?: readonly (keyof T & string)[];
  /** Outputs that the loss depends on; default: all. */
  readonly used?: readonly number[];
}

const tolerance = { forward: 2e-6, backward: 1e-5, differences: 1e-7 };
const worst = { forward: 0, backward: 0, differences: 0 };
const done = { twins: 0, gradients: 0, differences: 0 };

const random =
  (generator: Generator): Random =>
  (...shape) =>
    ops.randn(shape, { generator });

/** Values of all outputs, and gradients of all trained inputs for a loss that weighs the used outputs with `weights`. */
function evaluate<T extends Inputs>(
  kernels: Kernels,
  run: (kernels: Kernels, inputs: T) => readonly Tensor[],
  inputs: T,
  weights: readonly Tensor[],
  { trained = Object.keys(inputs), used }: Expectation<T>,
) {
  for (const name of trained) inputs[name]!.requiresGrad = true;
  const outputs = run(kernels, inputs);
  const parts = (used ?? outputs.map((_, i) => i)).map((i) => ops.sum(ops.mul(outputs[i]!, weights[i]!)));
  const loss = parts.reduce((a, b) => ops.add(a, b));
  if (trained.length > 0) loss.backward();
  const values = noGrad(() => outputs.map((t) => Array.from(ops.contiguous(t).data() as Float64Array)));
  const gradients = trained.map((name) => {
    const { grad } = inputs[name]!;
    assert.ok(grad, `${name} has no gradient`);
    assert.deepEqual(grad.shape, inputs[name]!.shape);
    return Array.from(ops.contiguous(grad).data() as Float64Array);
  });
  for (const [name, input] of Object.entries(inputs)) {
    if (!(trained as readonly string[]).includes(name)) assert.equal(input.grad, undefined, `${name} has a gradient`);
  }
  return { loss: loss.item(), values, gradients };
}

const doubled = <T extends Inputs>(inputs: T): T =>
  Object.fromEntries(Object.entries(inputs).map(([k, t]) => [k, ops.toCopy(t, { dtype: 'float64' })])) as T;

const within = (kind: keyof typeof tolerance, what: string, got: ArrayLike<number>, want: ArrayLike<number>) => {
  const error = relativeError(got, want);
  worst[kind] = Math.max(worst[kind], error);
  assert.ok(error <= tolerance[kind], `${what} differs by ${error}, more than ${tolerance[kind]}`);
};

let seed = 0;

function twins<T extends Inputs>(name: string, build: Build<T>, expectation: Expectation<T> = {}): void {
  const own = mixSeed(20, seed++);
  test(`fused = composite: ${name}`, () => {
    using _ = scope();
    using generator = new Generator(own);
    const { inputs, run } = build(random(generator));
    const shapes = noGrad(() => run(fused, inputs).map((t) => t.shape));
    const weights = shapes.map((shape) => random(generator)(...shape));
    const exact = doubled({ ...inputs, ...Object.fromEntries(weights.map((t, i) => [`weight ${i}`, t])) });
    const want = evaluate(composite, run, doubled(inputs), weights.map((_, i) => exact[`weight ${i}`]!), expectation);
    const got = evaluate(fused, run, inputs, weights, expectation);
    want.values.forEach((value, i) => within('forward', `output ${i}`, got.values[i]!, value));
    const trained = expectation.trained ?? Object.keys(inputs);
    want.gradients.forEach((value, i) => within('backward', `gradient of ${trained[i]}`, got.gradients[i]!, value));
    done.twins++;
    done.gradients += trained.length;
  });
}

/** The composite's gradients against central differences in float64. */
function differences<T extends Inputs>(name: string, build: Build<T>, expectation: Expectation<T> = {}): void {
  const own = mixSeed(21, seed++);
  test(`composite = finite differences: ${name}`, () => {
    using _ = scope();
    using generator = new Generator(own);
    const { inputs: given, run } = build(random(generator));
    const inputs = doubled(given);
    const outputs = noGrad(() => run(composite, inputs));
    const weights = outputs.map((t) => ops.randn(t.shape, { generator, dtype: 'float64' }));
    const { gradients } = evaluate(composite, run, doubled(given), weights, expectation);
    const trained = expectation.trained ?? Object.keys(inputs);
    trained.forEach((key, i) => {
      const values = inputs[key]!.data() as Float64Array;
      const slopes = Array.from(values, (value, at) => {
        const [up, down] = [1e-5, -1e-5].map((h) => {
          using _ = scope();
          const moved = Float64Array.from(values);
          moved[at] = value + h;
          const changed = { ...inputs, [key]: Tensor.from(moved, inputs[key]!.shape) };
          return evaluate(composite, run, changed, weights, { ...expectation, trained: [] }).loss;
        });
        return (up! - down!) / 2e-5;
      });
      within('differences', `gradient of ${key}`, gradients[i]!, slopes);
    });
    done.differences++;
  });
}

// --- storage formats: ids of native/kernels/blocks.h; where the float16 scales of a block stand

const formats = {
  float16: { id: 1, elements: 1, bytes: 2, scales: [0] },
  q4_0: { id: 2, elements: 32, bytes: 18, scales: [0] },
  q4_1: { id: 3, elements: 32, bytes: 20, scales: [0, 2] },
  q5_0: { id: 6, elements: 32, bytes: 22, scales: [0] },
  q5_1: { id: 7, elements: 32, bytes: 24, scales: [0, 2] },
  q8_0: { id: 8, elements: 32, bytes: 34, scales: [0] },
  q4_k: { id: 12, elements: 256, bytes: 144, scales: [0, 2] },
  q5_k: { id: 13, elements: 256, bytes: 176, scales: [0, 2] },
  q6_k: { id: 14, elements: 256, bytes: 210, scales: [208] },
  bfloat16: { id: 30, elements: 1, bytes: 2, scales: [0] },
  nf4: { id: 100, elements: 64, bytes: 36, scales: [2] },
} as const;
type Format = keyof typeof formats;

/** A weight [out, inner] in blocks: any bits, but scales of about 0.01 (the top half of such a number in its format). */
function blocks(random: Random, format: Format, out: number, inner: number): Tensor {
  const { elements, bytes, scales } = formats[format];
  const raw = new Uint8Array((out * inner * bytes) / elements);
  const noise = random(raw.length).data() as Float32Array;
  for (let i = 0; i < raw.length; i++) raw[i] = Math.floor(Math.abs(noise[i]!) * 1e5);
  const wide = format === 'bfloat16' || format === 'nf4';
  for (let at = 0; at < raw.length; at += bytes) {
    // float32 and bfloat16 begin with 0x3c00 at 0.0078, float16 with 0x2000; the sign is left as it fell.
    for (const offset of scales) {
      const high = raw[at + offset + 1]!;
      raw[at + offset + 1] = (high & 0x80) | (wide ? 0x3c : 0x20) | (high & (wide ? 0 : 3));
    }
  }
  return Tensor.from(raw, [out, raw.length / out]);
}

// --- norms, rotation, gate

for (const shape of [[7, 5], [1, 576], [33, 61], [5, 3, 64]]) {
  twins(`rms_norm ${shape.join('×')}`, (random) => ({
    inputs: { x: random(...shape), weight: random(shape.at(-1)!) },
    run: (k, { x, weight }) => [k.rmsNorm(x, weight, 1e-5)],
  }));
  for (const used of [[0, 1], [0], [1]]) {
    twins(
      `add_rms_norm ${shape.join('×')}, gradient to ${used.join(' and ')}`,
      (random) => ({
        inputs: { x: random(...shape), delta: random(...shape), weight: random(shape.at(-1)!) },
        run: (k, { x, delta, weight }) => k.addRmsNorm(x, delta, weight, 1e-5),
      }),
      { used, trained: used.includes(1) ? ['x', 'delta', 'weight'] : ['x', 'delta'] },
    );
  }
}
twins(
  'rms_norm of a frozen weight',
  (random) => ({ inputs: { x: random(9, 40), weight: random(40) }, run: (k, t) => [k.rmsNorm(t.x, t.weight, 1e-6)] }),
  { trained: ['x'] },
);

const turn = (n: number, heads: number, dim: number, half: number) => (random: Random) => ({
  inputs: { x: random(n, heads, dim), cos: random(n, half), sin: random(n, half) },
  run: (k: Kernels, { x, cos, sin }: { x: Tensor; cos: Tensor; sin: Tensor }) => [k.rope(x, cos, sin)],
});
for (const [n, heads, dim, half] of [[1, 1, 2, 1], [13, 3, 8, 4], [37, 9, 64, 32], [11, 5, 80, 20], [5, 2, 70, 31], [6, 2, 128, 64]] as const) {
  twins(`rope ${n}×${heads}×${dim}, ${2 * half} turned`, turn(n, heads, dim, half), { trained: ['x'] });
}
twins(
  'rope of some heads of a wider tensor',
  (random) => ({
    inputs: { x: random(9, 7, 16), cos: random(9, 8), sin: random(9, 8) },
    run: (k, { x, cos, sin }) => [k.rope(ops.narrow(x, 1, 2, 3), cos, sin)],
  }),
  { trained: ['x'] },
);

const gate = (act: GateActivation, ...shape: number[]) => (random: Random) => ({
  inputs: { gate: ops.mulScalar(random(...shape), 3), up: random(...shape) },
  run: (k: Kernels, t: { gate: Tensor; up: Tensor }) => [k.glu(t.gate, t.up, act)],
});
for (const act of ['silu', 'gelu_tanh'] as const) {
  for (const shape of [[1, 1], [3, 37], [41, 1001]]) twins(`glu ${act} ${shape.join('×')}`, gate(act, ...shape));
}

// --- attention

interface Rows {
  readonly queries: readonly number[];
  /** Keys of each row; default: as many as queries. */
  readonly keys?: readonly number[];
  /** Slots between the rows' keys that belong to nobody, as in a cache. */
  readonly gap?: number;
}

function attend(rows: Rows, heads: number, kvHeads: number, dim: number, causal: boolean, window: number) {
  const keys = rows.keys ?? rows.queries;
  const gap = rows.gap ?? 0;
  const ends = (lengths: readonly number[]) => lengths.reduce((all, n) => [...all, all.at(-1)! + n], [0]);
  const qStarts = ends(rows.queries);
  const kStarts = ends(keys.map((n) => n + gap)).slice(0, -1);
  const kEnds = kStarts.map((start, r) => start + keys[r]!);
  const slots = keys.reduce((a, b) => a + b + gap, 0);
  return (random: Random) => ({
    inputs: { q: random(qStarts.at(-1)!, heads, dim), k: random(slots, kvHeads, dim), v: random(slots, kvHeads, dim) },
    run: (kernels: Kernels, { q, k, v }: { q: Tensor; k: Tensor; v: Tensor }) => [
      kernels.attention(q, k, v, { qStarts, kStarts, kEnds }, dim ** -0.5, causal, window),
    ],
  });
}

const rowSets: Record<string, Rows> = {
  'one token': { queries: [1] },
  'ragged rows, one of them empty': { queries: [3, 1, 0, 70, 17, 129] },
  'a token after a cache': { queries: [1], keys: [301], gap: 11 },
  'some tokens after caches': { queries: [5, 1, 37], keys: [133, 65, 37], gap: 3 },
};
for (const dim of [8, 64, 80, 128]) {
  for (const [heads, kvHeads] of [[3, 3], [6, 2]] as const) {
    for (const [name, rows] of Object.entries(rowSets)) {
      for (const [causal, window] of [[true, 0], [true, 19], [false, 0], [false, 19]] as const) {
        twins(
          `attention D=${dim} H=${heads} K=${kvHeads}, ${name}, ${causal ? 'causal' : 'all'}, window ${window}`,
          attend(rows, heads, kvHeads, dim, causal, window),
        );
      }
    }
  }
}
twins('attention D=64, a long row', attend({ queries: [700] }, 3, 1, 64, true, 0));
twins('attention D=256', attend({ queries: [33, 4] }, 2, 1, 256, true, 0));
twins('attention of q, k and v cut from one product', (random) => ({
  inputs: { qkv: random(29, 7, 24) },
  run: (kernels, { qkv }) => {
    const rows = { qStarts: [0, 11, 29], kStarts: [0, 11], kEnds: [11, 29] };
    const part = (from: number, n: number) => ops.narrow(qkv, 1, from, n);
    return [kernels.attention(part(0, 3), part(3, 1), part(4, 1), rows, 0.2, true, 0)];
  },
}));

// --- products with frozen weights

const names = Object.keys(formats) as Format[];
const widthOf = (format: Format) => Math.max(2 * formats[format].elements, 96) + (formats[format].elements === 1 ? 5 : 0);

for (const n of [1, 2, 7, 9, 45]) {
  for (const bias of [false, true]) {
    twins(
      `linear ${n}×103→37 dense${bias ? ' with bias' : ''}`,
      (random) => {
        const weight = random(37, 103);
        const exact = ops.toCopy(weight, { dtype: 'float64' });
        return {
          inputs: { x: random(n, 103), ...(bias && { bias: random(37) }) } as { x: Tensor; bias?: Tensor } & Inputs,
          run: (k, t) => [k.linear(t.x, k === fused ? weight : exact, -1, t.bias ?? null)],
        };
      },
    );
    for (const format of names) {
      twins(`linear ${n}×${widthOf(format)}→37 ${format}${bias ? ' with bias' : ''}`, (random) => {
        const weight = blocks(random, format, 37, widthOf(format));
        return {
          inputs: { x: random(n, widthOf(format)), ...(bias && { bias: random(37) }) } as { x: Tensor; bias?: Tensor } & Inputs,
          run: (k, t) => [k.linear(t.x, weight, formats[format].id, t.bias ?? null)],
        };
      });
    }
  }
}
twins('linear with a trained dense weight', (random) => ({
  inputs: { x: random(19, 23), weight: random(11, 23), bias: random(11) },
  run: (k, t) => [k.linear(t.x, t.weight, -1, t.bias)],
}));

interface LoraCase {
  readonly n: number;
  readonly rank: number;
  readonly format: Format | 'dense';
  readonly bias: boolean;
  readonly dropped: boolean;
}

function lora({ n, rank, format, bias, dropped }: LoraCase, inner = 0, out = 53) {
  const width = inner || (format === 'dense' ? 103 : widthOf(format));
  type T = { x: Tensor; a: Tensor; b: Tensor; bias?: Tensor; dropped?: Tensor } & Inputs;
  return (random: Random) => {
    const weight = format === 'dense' ? random(out, width) : blocks(random, format, out, width);
    const exact = format === 'dense' ? ops.toCopy(weight, { dtype: 'float64' }) : weight;
    const id = format === 'dense' ? -1 : formats[format].id;
    const inputs = { x: random(n, width), a: random(rank, width), b: random(out, rank) };
    return {
      inputs: { ...inputs, ...(bias && { bias: random(out) }), ...(dropped && { dropped: random(n, width) }) } as T,
      run: (k: Kernels, t: T) => [
        k.loraLinear(t.x, t.dropped ?? null, k === fused ? weight : exact, id, t.bias ?? null, t.a, t.b, 0.37),
      ],
    };
  };
}
for (const rank of [1, 4, 8, 16, 20, 72]) {
  for (const format of ['dense', 'q4_1', 'nf4'] as const) {
    for (const [bias, dropped] of [[false, false], [true, false], [false, true], [true, true]] as const) {
      const kind = `r=${rank} ${format}${bias ? ', bias' : ''}${dropped ? ', dropped input' : ''}`;
      twins(`lora_linear ${kind}`, lora({ n: 77, rank, format, bias, dropped }));
      if (!dropped) twins(`lora_linear ${kind}, x frozen`, lora({ n: 5, rank, format, bias, dropped }), { trained: ['a', 'b'] });
    }
  }
}
for (const format of names) twins(`lora_linear r=8 ${format}`, lora({ n: 33, rank: 8, format, bias: true, dropped: false }));
twins('lora_linear of one token', lora({ n: 1, rank: 8, format: 'q8_0', bias: false, dropped: false }));

// --- the head's loss

function headLoss(n: number, predicted: number, format: Format | 'dense', vocab: number) {
  const width = format === 'dense' ? 31 : widthOf(format);
  return (random: Random) => {
    const order = Array.from(random(n).data() as Float32Array, (x, i) => [x, i] as const).sort(([a], [b]) => a - b);
    const labels = new BigInt64Array(n).fill(-100n);
    for (const [, i] of order.slice(0, predicted)) labels[i] = BigInt((i * 7919) % vocab);
    if (predicted > 1) labels[order[0]![1]] = BigInt(vocab - 1);
    const targets = Tensor.from(labels);
    const raw = format === 'dense' ? undefined : blocks(random, format, vocab, width);
    return {
      inputs: { h: random(n, width), ...(!raw && { weight: random(vocab, width) }) } as { h: Tensor; weight?: Tensor } & Inputs,
      run: (k: Kernels, t: { h: Tensor; weight?: Tensor }) => [
        k.linearCrossEntropy(t.h, raw ?? t.weight!, format === 'dense' ? -1 : formats[format].id, targets),
      ],
    };
  };
}
for (const [n, predicted, vocab] of [[1, 1, 3], [40, 0, 50], [45, 45, 97], [61, 23, 301], [700, 531, 83]] as const) {
  const shape = `${predicted} of ${n} rows, V=${vocab}`;
  twins(`linear_cross_entropy ${shape}, trained head`, headLoss(n, predicted, 'dense', vocab));
  twins(`linear_cross_entropy ${shape}, frozen head`, headLoss(n, predicted, 'dense', vocab), { trained: ['h'] });
  for (const format of ['q8_0', 'q6_k', 'nf4'] as const) {
    twins(`linear_cross_entropy ${shape}, ${format}`, headLoss(n, predicted, format, vocab));
  }
}
twins('linear_cross_entropy over more than one tile of a vocabulary in blocks', headLoss(300, 277, 'q4_1', 9001));

// --- the composites themselves

differences('rms_norm', (random) => ({
  inputs: { x: random(2, 5), weight: random(5) },
  run: (k, t) => [k.rmsNorm(t.x, t.weight, 1e-5)],
}));
differences('add_rms_norm', (random) => ({
  inputs: { x: random(2, 5), delta: random(2, 5), weight: random(5) },
  run: (k, t) => k.addRmsNorm(t.x, t.delta, t.weight, 1e-5),
}));
differences('rope', turn(2, 2, 7, 2));
for (const act of ['silu', 'gelu_tanh'] as const) differences(`glu ${act}`, gate(act, 2, 3));
differences('attention', attend({ queries: [3, 1], keys: [4, 1], gap: 1 }, 4, 2, 3, true, 0));
differences('attention with a window', attend({ queries: [4] }, 2, 1, 3, true, 2));
differences('attention to all', attend({ queries: [2, 2] }, 2, 2, 3, false, 0));
differences('linear', (random) => ({
  inputs: { x: random(2, 5), weight: random(3, 5), bias: random(3) },
  run: (k, t) => [k.linear(t.x, t.weight, -1, t.bias)],
}));
differences('lora_linear', lora({ n: 2, rank: 2, format: 'dense', bias: true, dropped: true }, 5, 3));
differences('lora_linear on blocks', lora({ n: 2, rank: 2, format: 'q4_0', bias: false, dropped: false }, 32, 3));
differences('linear_cross_entropy', headLoss(4, 3, 'dense', 5));

// --- both instruction sets, and the count

const narrow = process.env.GRAFT_AVX2 === '1';
test('the same with AVX2 only', { skip: narrow && 'this is that run' }, () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], { env: { ...env, GRAFT_AVX2: '1' }, encoding: 'utf8' });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
});

after(() => {
  console.log(`${narrow ? 'AVX2' : 'native'}: ${JSON.stringify({ ...done, worst })}`);
  assert.deepEqual(done, { twins: 0, gradients: 0, differences: 0 });
});
