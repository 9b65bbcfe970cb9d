/**
 * Layers whose weight is rounded in training: the fused operators against an oracle in float64, which rounds the same sum; and
 * that this sum, and so the rounded weight, is what a merge writes and a file holds, bit for bit. The whole file runs twice: with the
 * instructions that this processor has, and in a child process with AVX2 only, which must round to the same bits.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import test, { before } from 'node:test';
import { relativeError } from '../../test/support.ts';
import { currentEngine, processor, startEngine } from '../engine/index.ts';
import { isIntegerFormat, pack, type Quantization, weightFormats } from '../quant/index.ts';
import { Generator, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
import { fakeQuantize } from './fake-quantize.ts';
import { fused } from './fused.ts';
import type { GateActivation, LowRankUpdate, Rounding } from './kernels.ts';
import { usePrecision } from './precision.ts';

before(() => startEngine());

const threads = (count: number) => currentEngine().native.threads(count);
const double = (t: Tensor) => ops.toCopy(t, { dtype: 'float64' });
const floats = (t: Tensor) => noGrad(() => ops.contiguous(t).data() as Float32Array | Float64Array);
const scaling = 0.37;

type Inputs = Readonly<Record<string, Tensor>>;
const updateOf = ({ a, b }: Inputs): LowRankUpdate | null => (a && b ? { a, b, scaling } : null);

function rounded(t: Inputs, act: GateActivation | undefined, quantization: Quantization): Tensor {
  const rounding: Rounding = { quantization, learned: t.scales };
  return act
    ? fused.roundedGatedLinear(t.gate!, t.up!, act, t.weight!, updateOf(t), t.bias ?? null, rounding)
    : fused.roundedLinear(t.x!, t.weight!, updateOf(t), t.bias ?? null, rounding);
}

/** The same in float64, but for the sum, whose last bits decide which codes are clipped: its values are the fused operator's. */
function oracle(t: Inputs, single: Inputs, act: GateActivation | undefined, quantization: Quantization): Tensor {
  const update = updateOf(t);
  let sum = t.weight!;
  if (update) {
    const merged = composite.loraWeight(sum, update.a, update.b, update.scaling);
    const values = noGrad(() => double(ops.loraWeight(single.weight!, single.a!, single.b!, scaling)));
    sum = ops.add(values, ops.sub(merged, ops.detach(merged)));
  }
  const weight = fakeQuantize(composite, sum, quantization, t.scales);
  return ops.linear(act ? composite.glu(t.gate!, t.up!, act) : t.x!, weight, t.bias ?? null);
}

/** Of the bits of all rounded weights. */
const digests: string[] = [];
const worst = { forward: 0, backward: 0 };
let done = 0;

/** Compares values and the gradients of `trained`; the loss weighs the outputs. */
function compare(
  what: string,
  inputs: Inputs,
  trained: readonly string[],
  act: GateActivation | undefined,
  q: Quantization,
) {
  const doubled = Object.fromEntries(Object.entries(inputs).map(([key, t]) => [key, double(ops.detach(t))]));
  const evaluate = (t: Inputs, of: () => Tensor) => {
    for (const [key, tensor] of Object.entries(t)) {
      tensor.grad = undefined;
      tensor.requiresGrad = trained.includes(key);
    }
    const out = of();
    const weights = noGrad(() => ops.toCopy(ops.cos(ops.arange(0, out.numel)), { dtype: out.dtype }));
    ops.sum(ops.mul(out, ops.reshape(weights, out.shape))).backward();
    for (const [key, tensor] of Object.entries(t)) {
      assert.equal(tensor.grad !== undefined, trained.includes(key), `${what}: a gradient of ${key}, or none`);
    }
    return { value: floats(out), gradients: trained.map((key) => floats(t[key]!.grad!)) };
  };
  const want = evaluate(doubled, () => oracle(doubled, inputs, act, q));
  const got = evaluate(inputs, () => rounded(inputs, act, q));
  const forward = relativeError(got.value, want.value);
  assert.ok(forward <= 2e-6, `${what}: values differ by ${forward}`);
  worst.forward = Math.max(worst.forward, forward);
  trained.forEach((key, i) => {
    const error = relativeError(got.gradients[i]!, want.gradients[i]!);
    assert.ok(error <= 1e-5, `${what}: the gradient of ${key} differs by ${error}`);
    worst.backward = Math.max(worst.backward, error);
  });
  done++;
}

const blocks: readonly Quantization[] = weightFormats.flatMap((format) =>
  isIntegerFormat(format) ? [] : [{ format }],
);
const integers = (groupSize: number | undefined): readonly Quantization[] =>
  weightFormats
    .filter(isIntegerFormat)
    .flatMap((format) => [true, false].map((symmetric) => ({ format, groupSize, symmetric })));
const nameOf = ({ format, groupSize, symmetric = true }: Quantization) =>
  `${format}${groupSize ? ` g${groupSize}` : ''}${symmetric ? '' : ' asymmetric'}`;

interface Case {
  readonly n: number;
  readonly out: number;
  readonly width: number;
  readonly rank: number;
  readonly act?: GateActivation;
  readonly bias?: boolean;
  /** Scales are given, one for each of so many groups of a row. */
  readonly groups?: number;
}

function inputsOf({ n, out, width, rank, act, bias, groups }: Case, generator: Generator): Inputs {
  const random = (...shape: number[]) => ops.randn(shape, { generator });
  return {
    ...(act ? { gate: random(n, width), up: random(n, width) } : { x: random(n, width) }),
    weight: random(out, width),
    ...(rank > 0 && { a: random(rank, width), b: random(out, rank) }),
    ...(bias && { bias: random(out) }),
    ...(groups && { scales: ops.addScalar(ops.mulScalar(ops.abs(random(out, groups)), 0.1), 0.2) }),
  };
}

/** 256 columns suit every format in blocks; others are as odd as they may be. Few and many codes are clipped. */
const roundings: readonly [width: number, Quantization][] = [
  ...blocks.map((q) => [256, q] as [number, Quantization]),
  ...integers(32).map((q) => [96, q] as [number, Quantization]),
  ...integers(5).map((q) => [35, q] as [number, Quantization]),
  ...integers(undefined).map((q) => [33, q] as [number, Quantization]),
];

const kinds = {
  lora: { rank: 4, frozen: ['weight', 'bias'] },
  full: { rank: 0, frozen: [] },
  both: { rank: 11, frozen: [] },
  'a alone': { rank: 3, frozen: ['weight', 'bias', 'b', 'x', 'gate', 'up'] },
  'b alone': { rank: 72, frozen: ['weight', 'a'] },
  nothing: { rank: 8, frozen: ['weight', 'a', 'b'] },
} as const;

let seed = 0;

for (const [kind, { rank, frozen }] of Object.entries(kinds)) {
  test(`fused = oracle in every format: ${kind}`, (t) => {
    let compared = 0;
    for (const [width, q] of roundings) {
      for (const act of [undefined, 'silu', 'gelu_tanh'] as const) {
        using _ = scope();
        using generator = new Generator(seed++);
        threads((seed % 2) + 1);
        const shape = { n: [1, 7, 133, 300][seed % 4]!, out: [9, 37, 70][seed % 3]!, width, rank, bias: seed % 5 < 2 };
        const inputs = inputsOf({ ...shape, ...(act && { act }) }, generator);
        const trained = Object.keys(inputs).filter((key) => !(frozen as readonly string[]).includes(key));
        if (trained.length === 0) continue;
        compare(`${kind} ${nameOf(q)} ${act ?? ''} ${JSON.stringify(shape)}`, inputs, trained, act, q);
        compared++;
      }
    }
    t.diagnostic(`${compared} layers`);
    assert.equal(compared, roundings.length * 3);
  });
}

test('fused = oracle with scales that are given: learned, and frozen', () => {
  let compared = 0;
  for (const format of weightFormats.filter(isIntegerFormat)) {
    for (const groups of [1, 3, 11]) {
      for (const [rank, frozen] of [
        [0, []],
        [5, ['weight']],
        [5, ['weight', 'scales']],
        [0, ['scales']],
        [0, ['weight']],
      ] as const) {
        using _ = scope();
        using generator = new Generator(seed++);
        threads((seed % 2) + 1);
        const gated = seed % 3 === 0 && ({ act: 'silu' } as const);
        const shape = { n: 61, out: 19, width: 66, rank, groups, bias: true, ...gated };
        const inputs = inputsOf(shape, generator);
        const trained = Object.keys(inputs).filter((key) => !(frozen as readonly string[]).includes(key));
        compare(`${format} ${JSON.stringify(shape)}`, inputs, trained, shape.act, { format, groupSize: 66 / groups });
        compared++;
      }
    }
  }
  assert.equal(compared, 7 * 3 * 5);
});

test('few clipped elements and many give what the dense gradient gives', () => {
  using _ = scope();
  using generator = new Generator(77);
  const q: Quantization = { format: 'int4', groupSize: 32 };
  for (const [n, share] of [
    [700, 0.01],
    [700, 0.2],
  ] as const) {
    threads(2);
    const inputs = inputsOf({ n, out: 96, width: 320, rank: 8, groups: 10 }, generator);
    // A standard normal number is beyond 7.5 scales with about this probability.
    noGrad(() => ops.fill_(inputs.scales!, (share < 0.1 ? 2.58 : 1.28) / 7.5));
    inputs.weight!.requiresGrad = true;
    ops.sum(fakeQuantize(fused, inputs.weight!, q, inputs.scales)).backward();
    const stopped = floats(inputs.weight!.grad!).filter((g) => g === 0).length / inputs.weight!.numel;
    assert.ok(stopped > share / 2 && stopped < share * 2, `${stopped} are clipped`);
    compare(`${share} clipped`, inputs, ['a', 'b', 'x'], undefined, q);
  }
});

test('a dense gradient that is made some rows at a time', () => {
  const q: Quantization = { format: 'int4', groupSize: 32 };
  for (const [rank, groups, frozen] of [
    [0, 0, []],
    [5, 0, []],
    [5, 8, ['weight']],
  ] as const) {
    using _ = scope();
    using generator = new Generator(seed++);
    const inputs = inputsOf({ n: 21, out: 2300, width: 256, rank, ...(groups && { groups }) }, generator);
    const trained = Object.keys(inputs).filter((key) => !(frozen as readonly string[]).includes(key));
    compare(`${rank} ${groups}`, inputs, trained, undefined, q);
  }
});

test('W + s BA is summed by FMA in the order of the ranks, and no tile, row or thread changes a bit', () => {
  let compared = 0;
  for (const [out, width, rank] of [
    [1, 1, 1],
    [9, 77, 8],
    [6, 48, 20],
    [131, 161, 3],
    [4, 33, 0],
  ] as const) {
    using _ = scope();
    using generator = new Generator(seed++);
    const weight = ops.randn([out, width], { generator });
    const [a, b] = [ops.randn([rank, width], { generator }), ops.randn([out, rank], { generator })];
    threads(1);
    const merged = ops.loraWeight(weight, a, b, scaling);
    threads(2);
    assert.deepEqual(ops.loraWeight(weight, a, b, scaling).bytes(), merged.bytes(), 'with two threads');
    const [w, from, to, got] = [weight, a, b, merged].map(floats);
    for (let i = 0; i < out; i++) {
      const row = ops.narrow(merged, 0, i, 1);
      const alone = ops.loraWeight(ops.narrow(weight, 0, i, 1), a, ops.narrow(b, 0, i, 1), scaling);
      assert.deepEqual(alone.bytes(), ops.contiguous(row).bytes(), `row ${i} alone`);
      for (let j = 0; j < width; j++) {
        // A product of two floats is exact in float64, so that one rounding remains, as in an FMA.
        let sum = 0;
        for (let k = 0; k < rank; k++) sum = Math.fround(sum + to![i * rank + k]! * from![k * width + j]!);
        assert.equal(got![i * width + j], Math.fround(w![i * width + j]! + Math.fround(scaling) * sum));
        compared++;
      }
    }
    const columns = Math.ceil(width / 3);
    const part = (t: Tensor) => ops.contiguous(ops.narrow(t, 1, width - columns, columns));
    assert.deepEqual(ops.loraWeight(part(weight), part(a), b, scaling).bytes(), part(merged).bytes(), 'other columns');
  }
  assert.equal(compared, 1 + 9 * 77 + 6 * 48 + 131 * 161 + 4 * 33);
});

function identity(rows: number, columns: number): Tensor {
  const numbers = new Float32Array(rows * columns);
  for (let i = 0; i < Math.min(rows, columns); i++) numbers[i * columns + i] = 1;
  return Tensor.from(numbers, [rows, columns]);
}
/** A sum of products is never a negative zero. */
const summed = (t: Tensor) => ops.addScalar(t, 0);

test('the forward and the backward pass compute with the numbers that a merged and packed weight holds', (t) => {
  const digest = createHash('sha256');
  let compared = 0;
  for (const q of [...blocks, ...integers(32), ...integers(64), ...integers(undefined)]) {
    using _ = scope();
    using generator = new Generator(compared);
    const [out, width, rank] = [67, 768, [1, 8, 17][compared % 3]!];
    const inputs = inputsOf({ n: 1, out, width, rank }, generator);
    const { weight, a, b } = inputs as Record<'weight' | 'a' | 'b', Tensor>;
    const packed = pack(ops.loraWeight(weight, a, b, scaling), q);
    const held = ops.dequantize(packed.weight, packed.format);
    digest.update(held.bytes());
    for (const count of [1, 2]) {
      threads(count);
      const x = identity(width, width);
      x.requiresGrad = true;
      const y = fused.roundedLinear(x, weight, { a, b, scaling }, null, { quantization: q });
      // Products with the identity are exact: y = ŵᵀ.
      assert.deepEqual(ops.contiguous(ops.t(ops.detach(y))).bytes(), summed(held).bytes(), `${nameOf(q)}, forward`);
      y.backward(identity(width, out));
      const rows = ops.contiguous(ops.narrow(x.grad!, 0, 0, out));
      assert.deepEqual(rows.bytes(), summed(held).bytes(), `${nameOf(q)}, backward`);
      compared++;
    }
  }
  digests.push(digest.digest('hex'));
  t.diagnostic(`${compared} weights; digest: ${digests[0]}`);
  assert.equal(compared, 2 * (9 + 14 * 3));
});

const { avx512f, avx512_bf16 } = processor().features;
const skip = avx512f && avx512_bf16 ? false : 'this processor has no bfloat16 products';

test('precision: products with a frozen weight are reduced as those of LoRA, with a trained one never', {
  skip,
}, () => {
  using _ = scope();
  using generator = new Generator(4);
  const q: Quantization = { format: 'q4_0' };
  const inputs = inputsOf({ n: 70, out: 160, width: 192, rank: 8 }, generator);
  const { x, weight, a, b } = inputs as Record<'x' | 'weight' | 'a' | 'b', Tensor>;
  const g = ops.randn([70, 160], { generator });
  const values = fakeQuantize(fused, ops.loraWeight(weight, a, b, scaling), q);
  const narrow = (t: Tensor) => ops.toCopy(ops.toCopy(t, { dtype: 'bfloat16' }), { dtype: 'float32' });
  const close = (what: string, got: Tensor, want: Tensor, limit: number) => {
    const error = relativeError(floats(got), floats(want));
    assert.ok(error < limit, `${what}: ${error}`);
  };
  const run = (trained: readonly Tensor[]) => {
    for (const t of Object.values(inputs)) [t.grad, t.requiresGrad] = [undefined, trained.includes(t)];
    const y = rounded(inputs, undefined, q);
    y.backward(g);
    return { y: ops.detach(y), dx: ops.clone(x.grad!), da: a.grad && ops.clone(a.grad) };
  };
  const lora = [x, a, b];
  const full = [x, weight];
  const [exact, exactFull] = [run(lora), run(full)];
  for (const precision of ['mixed', 'bfloat16'] as const) {
    using _on = usePrecision(precision);
    const got = run(lora);
    const [left, right] = precision === 'mixed' ? [x, values] : [narrow(x), narrow(values)];
    noGrad(() => {
      close(`${precision} forward`, got.y, ops.mm(left, ops.t(right)), 3e-6);
      close(`${precision} backward`, got.dx, ops.mm(narrow(g), narrow(values)), 3e-6);
    });
    assert.notDeepEqual(got.dx.bytes(), exact.dx.bytes());
    assert.deepEqual(got.da!.bytes(), exact.da!.bytes(), 'gradients of A and B are float32');
    if (precision === 'mixed') assert.deepEqual(got.y.bytes(), exact.y.bytes());
    const gotFull = run(full);
    assert.deepEqual(
      [gotFull.y, gotFull.dx].map((t) => t.bytes()),
      [exactFull.y, exactFull.dx].map((t) => t.bytes()),
    );
  }
});

test('the graph keeps the inputs, and no dense weight outlives a product', () => {
  using _ = scope();
  const { native } = currentEngine();
  const [n, out, width] = [64, 1024, 2048];
  const weightBytes = 4 * out * width;
  for (const format of ['q4_0', 'int4', 'q8_0'] as const) {
    const quantization = { format, groupSize: format === 'int4' ? 32 : undefined };
    for (const act of [undefined, 'silu'] as const) {
      using _inner = scope();
      using generator = new Generator(1);
      const inputs = inputsOf({ n, out, width, rank: 8, ...(act && { act }) }, generator);
      for (const [key, t] of Object.entries(inputs)) t.requiresGrad = key !== 'weight';
      const before = native.allocated().now;
      const y = rounded(inputs, act, quantization);
      const { now, peak } = native.allocated();
      const outputBytes = 4 * n * out;
      assert.ok(
        now - before < 1.1 * outputBytes,
        `${format} keeps ${now - before} bytes besides an output of ${outputBytes}`,
      );
      assert.ok(peak - before < weightBytes + 4 * outputBytes, `${format}: at most ${peak - before} bytes`);
      ops.sum(y).backward();
      const backward = native.allocated();
      const small = 4 * (5 * n * (width + out) + (width + out) * 400);
      assert.ok(
        backward.peak - before < 1.05 * weightBytes + small,
        `${format}: at most ${backward.peak - before} bytes`,
      );
    }
  }
});

test('what does not fit is refused', () => {
  using _ = scope();
  const [x, w] = [ops.ones([3, 64]), ops.ones([5, 64])];
  const run = (weight: Tensor, update: LowRankUpdate | null, rounding: Rounding) => () =>
    fused.roundedLinear(x, weight, update, null, rounding);
  const q4: Rounding = { quantization: { format: 'q4_0' } };
  const update = { a: ops.ones([2, 64]), b: ops.ones([5, 2]), scaling: 1 };
  const bad = ops.narrow(w, 0, 3, 1);
  ops.fill_(ops.narrow(bad, 1, 9, 1), Number.NaN);
  for (const each of [null, update]) assert.throws(run(w, each, q4), /row 3 holds a number that is not finite/);
  ops.fill_(w, 1);
  assert.throws(run(w, { ...update, b: ops.ones([4, 2]) }, q4), /A must have the shape \[r, 64\] and B \[5, r\]/);
  assert.throws(run(ops.ones([5, 33]), null, q4), /33 is not a multiple of the block size 32/);
  assert.throws(run(ops.ones([5, 32]), null, q4), /x must have the shape \[n, 32\]/);
  assert.throws(run(ops.toCopy(w, { dtype: 'float64' }), null, q4), /weight must be float32/);
  assert.throws(run(w, null, { quantization: { format: 'int4', groupSize: 48 } }), /a group of 48 does not divide/);
  const learned = ops.ones([5, 2]);
  assert.throws(run(w, null, { ...q4, learned }), /only integers have scales/);
  assert.throws(
    () => fakeQuantize(fused, w, { format: 'q4_0' }, learned),
    /only symmetric integers have learned scales/,
  );
  const int4 = { format: 'int4', groupSize: 32 } as const;
  assert.throws(run(w, null, { quantization: { ...int4, groupSize: 64 }, learned }), /in groups of 64, got \[5, 2\]/);
  assert.throws(run(w, null, { quantization: { ...int4, symmetric: false }, learned }), /those of symmetric integers/);
  assert.throws(
    () => ops.roundedLinear(x, w, update.a, null, 1, null, 2, 0, true, null),
    /A and B must be given together/,
  );
});

const narrow = process.env.GRAFT_AVX2 === '1';
test('the same with AVX2 only, and the same rounded weights to the bit', {
  skip: narrow && 'this is that run',
}, (t) => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], {
    env: { ...env, GRAFT_AVX2: '1' },
    encoding: 'utf8',
  });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
  assert.equal(/digest: (\w+)/.exec(child.stdout)![1], digests[0]);
  t.diagnostic(/AVX2: .*/.exec(child.stdout)![0]);
});

test('every layer was compared', (t) => {
  t.diagnostic(`${narrow ? 'AVX2' : 'native'}: ${JSON.stringify({ done, worst })}`);
  assert.equal(done, 6 * 51 * 3 + 7 * 3 * 5 + 2 + 3);
});
