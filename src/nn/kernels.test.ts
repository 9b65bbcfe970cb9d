/**
 * Every fused kernel against its composite twin, which runs in float64 on the same float32 numbers; the composites
 * themselves against finite differences. Errors are relative to the largest number of the tensor. The whole file runs
 * three times: with the instructions that this processor has, in a child process with AVX2 only, and in one whose operators run the CUDA
 * kernels, compiled for the processor, where there are such.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test, { before } from 'node:test';
import { hostKernels } from '../../test/samples/cuda-kernels.ts';
import { golden, readTensors, relativeError } from '../../test/support.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { type FormatName, formats as numberFormats } from '../quant/index.ts';
import { type DType, Generator, mixSeed, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
import { fused } from './fused.ts';
import type { GateActivation, Kernels } from './kernels.ts';
import { useRowWiseProducts } from './precision.ts';

/** A library of the CUDA kernels: this is the run with them. */
const library = process.env.GRAFT_HOST_KERNELS;
/** Operators without CUDA kernels. */
const onProcessor = /^(attention|pooled attention|add_bottleneck_runs|scale_runs)/;

before(async () => {
  await startEngine();
  currentEngine().native.useHostKernels(library);
});

type Random = (...shape: number[]) => Tensor;
type Named<K extends string> = Readonly<Record<K, Tensor>>;

/** What one case computes: `inputs` are made float32, and `run` is called with them or with their float64 copies. */
type Run<K extends string> = (kernels: Kernels, inputs: Named<K>) => readonly Tensor[];
type Case<K extends string> = { readonly inputs: Named<K>; readonly run: Run<K> };
type Build<K extends string> = (random: Random) => Case<K>;
const given = <K extends string>(inputs: Named<K>, run: Run<K>): Case<K> => ({ inputs, run });

interface Expectation<K extends string> {
  /** Inputs whose gradients are compared; default: all. */
  readonly trained?: readonly NoInfer<K>[];
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

const floats = (t: Tensor) => Array.from(noGrad(() => ops.contiguous(t).data()) as Float64Array);
const keys = <K extends string>(inputs: Named<K>) => Object.keys(inputs) as K[];

/** Values of all outputs, and gradients of all trained inputs for a loss that weighs the used outputs with `weights`. */
function evaluate<K extends string>(
  kernels: Kernels,
  run: Run<K>,
  inputs: Named<K>,
  weights: readonly Tensor[],
  { trained = keys(inputs), used }: Expectation<K>,
) {
  // The oracle is many tiny operators, which a second thread only slows down.
  currentEngine().native.threads(kernels === fused ? 2 : 1);
  for (const name of trained) inputs[name].requiresGrad = true;
  const outputs = run(kernels, inputs);
  const parts = (used ?? outputs.map((_, i) => i)).map((i) => ops.sum(ops.mul(outputs[i]!, weights[i]!)));
  const loss = parts.reduce((a, b) => ops.add(a, b));
  if (trained.length > 0) loss.backward();
  for (const name of keys(inputs)) {
    assert.equal(inputs[name].grad !== undefined, trained.includes(name), `a gradient of ${name}, or none`);
  }
  return {
    loss: loss.item(),
    values: outputs.map(floats),
    gradients: trained.map((name) => floats(inputs[name].grad!)),
  };
}

const double = (t: Tensor) => ops.toCopy(t, { dtype: 'float64' });
const doubled = <K extends string>(inputs: Named<K>) =>
  Object.fromEntries(keys(inputs).map((k) => [k, double(inputs[k])])) as Named<K>;

const within = (kind: keyof typeof tolerance, what: string, got: ArrayLike<number>, want: ArrayLike<number>) => {
  const error = relativeError(got, want);
  worst[kind] = Math.max(worst[kind], error);
  assert.ok(error <= tolerance[kind], `${what} differs by ${error}, more than ${tolerance[kind]}`);
};

let seed = 0;

function twins<K extends string>(name: string, build: Build<K>, expectation: Expectation<K> = {}): void {
  const own = mixSeed(20, seed++);
  if (library && onProcessor.test(name)) return;
  test(`fused = composite: ${name}`, () => {
    using _ = scope();
    using generator = new Generator(own);
    const { inputs, run } = build(random(generator));
    const weights = noGrad(() => run(fused, inputs)).map((t) => random(generator)(...t.shape));
    const want = evaluate(composite, run, doubled(inputs), weights.map(double), expectation);
    const got = evaluate(fused, run, inputs, weights, expectation);
    want.values.forEach((value, i) => {
      within('forward', `output ${i}`, got.values[i]!, value);
    });
    const trained = expectation.trained ?? keys(inputs);
    want.gradients.forEach((value, i) => {
      within('backward', `gradient of ${trained[i]}`, got.gradients[i]!, value);
    });
    done.twins++;
    done.gradients += trained.length;
  });
}

/** The composite's gradients against central differences in float64. */
function differences<K extends string>(name: string, build: Build<K>): void {
  const own = mixSeed(21, seed++);
  test(`composite = finite differences: ${name}`, () => {
    using _ = scope();
    using generator = new Generator(own);
    const { inputs: given, run } = build(random(generator));
    const inputs = doubled(given);
    const shapes = noGrad(() => run(composite, inputs)).map((t) => t.shape);
    const weights = shapes.map((shape) => ops.randn(shape, { generator, dtype: 'float64' }));
    const { gradients } = evaluate(composite, run, doubled(given), weights, {});
    keys(inputs).forEach((key, i) => {
      const values = floats(inputs[key]);
      const slopes = values.map((value, at) => {
        const loss = (h: number) => {
          using _inner = scope();
          const moved = Tensor.from(Float64Array.from(values).with(at, value + h), inputs[key].shape);
          return evaluate(composite, run, { ...inputs, [key]: moved }, weights, { trained: [] }).loss;
        };
        return (loss(1e-5) - loss(-1e-5)) / 2e-5;
      });
      within('differences', `gradient of ${key}`, gradients[i]!, slopes);
    });
    done.differences++;
  });
}

// --- number formats; where the float16 scales of a block stand

const format = (name: FormatName, ...scales: number[]) => {
  const { nativeId, blockElements, blockBytes } = numberFormats[name];
  return { id: nativeId!, elements: blockElements, bytes: blockBytes, scales };
};
const formats = {
  float16: format('float16', 0),
  q4_0: format('q4_0', 0),
  q4_1: format('q4_1', 0, 2),
  q5_0: format('q5_0', 0),
  q5_1: format('q5_1', 0, 2),
  q8_0: format('q8_0', 0),
  q4_k: format('q4_k', 0, 2),
  q5_k: format('q5_k', 0, 2),
  q6_k: format('q6_k', 208),
  bfloat16: format('bfloat16', 0),
  nf4: format('nf4', 2),
  int2x32: format('int2x32', 2),
  int3x32: format('int3x32', 2),
  int4x32: format('int4x32', 2),
  int5x32: format('int5x32', 2),
  int6x32: format('int6x32', 2),
  int7x32: format('int7x32', 2),
  int8x32: format('int8x32', 2),
} as const;
type Format = keyof typeof formats;

/** A weight [out, inner] in blocks: any bits, but scales of about 0.01 (the top half of such a number in its format). */
function blocks(random: Random, format: Format, out: number, inner: number): Tensor {
  const { elements, bytes, scales } = formats[format];
  const raw = new Uint8Array((out * inner * bytes) / elements);
  const noise = random(raw.length).data() as Float32Array;
  for (let i = 0; i < raw.length; i++) raw[i] = Math.floor(Math.abs(noise[i]!) * 1e5);
  const wide = format === 'bfloat16' || format === 'nf4' || format.startsWith('int');
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

for (const shape of [
  [7, 5],
  [1, 576],
  [33, 61],
  [5, 3, 64],
]) {
  const size = shape.at(-1)!;
  twins(`rms_norm ${shape.join('×')}`, (random) =>
    given({ x: random(...shape), weight: random(size) }, (k, t) => [k.rmsNorm(t.x, t.weight, 1e-5)]),
  );
  for (const used of [[0, 1], [0], [1]]) {
    twins(
      `add_rms_norm ${shape.join('×')}, gradient to ${used.join(' and ')}`,
      (random) =>
        given({ x: random(...shape), delta: random(...shape), weight: random(size) }, (k, t) =>
          k.addRmsNorm(t.x, t.delta, t.weight, 1e-5),
        ),
      { used, trained: used.includes(1) ? ['x', 'delta', 'weight'] : ['x', 'delta'] },
    );
  }
}
twins(
  'rms_norm of a frozen weight',
  (random) => given({ x: random(9, 40), weight: random(40) }, (k, t) => [k.rmsNorm(t.x, t.weight, 1e-6)]),
  { trained: ['x'] },
);

const turn = (n: number, heads: number, dim: number, half: number) => (random: Random) =>
  given({ x: random(n, heads, dim), cos: random(n, half), sin: random(n, half) }, (k, t) => [
    k.rope(t.x, t.cos, t.sin),
  ]);
const turns = '1 1 2 1, 13 3 8 4, 37 9 64 32, 11 5 80 20, 5 2 70 31, 6 2 128 64'.split(', ');
for (const [n, heads, dim, half] of turns.map((size) => size.split(' ').map(Number))) {
  const name = `rope ${n}×${heads}×${dim}, ${2 * half!} turned`;
  twins(name, turn(n!, heads!, dim!, half!), { trained: ['x'] });
}
twins(
  'rope of some heads of a wider tensor',
  (random) =>
    given({ x: random(9, 7, 16), cos: random(9, 8), sin: random(9, 8) }, (k, t) => [
      k.rope(ops.narrow(t.x, 1, 2, 3), t.cos, t.sin),
    ]),
  { trained: ['x'] },
);

const gate =
  (act: GateActivation, ...shape: number[]) =>
  (random: Random) =>
    given({ gate: ops.mulScalar(random(...shape), 3), up: random(...shape) }, (k, t) => [k.glu(t.gate, t.up, act)]);
const activations = ['silu', 'gelu_tanh'] as const;
for (const act of activations) {
  for (const shape of [
    [1, 1],
    [3, 37],
    [41, 1001],
  ])
    twins(`glu ${act} ${shape.join('×')}`, gate(act, ...shape));
}

// --- attention

interface Rows {
  readonly queries: readonly number[];
  /** Keys of each row; default: as many as queries. */
  readonly keys?: readonly number[];
  /** Slots between the rows' keys that belong to nobody, as in a cache. */
  readonly gap?: number;
}

function attend(
  { queries, keys = queries, gap = 0 }: Rows,
  heads: number,
  kvHeads: number,
  dim: number,
  causal: boolean,
  window: number,
) {
  const sum = (lengths: readonly number[]) => lengths.reduce((a, b) => a + b, 0);
  const qStarts = [...queries, 0].map((_, r) => sum(queries.slice(0, r)));
  const kStarts = keys.map((_, r) => sum(keys.slice(0, r)) + r * gap);
  const kEnds = kStarts.map((start, r) => start + keys[r]!);
  const slots = sum(keys) + keys.length * gap;
  return (random: Random) =>
    given(
      { q: random(sum(queries), heads, dim), k: random(slots, kvHeads, dim), v: random(slots, kvHeads, dim) },
      (kernels, t) => [kernels.attention(t.q, t.k, t.v, { qStarts, kStarts, kEnds }, dim ** -0.5, causal, window)],
    );
}

const rowSets: Record<string, Rows> = {
  'one token': { queries: [1] },
  'ragged rows, one of them empty': { queries: [3, 1, 0, 70, 17, 129] },
  'a token after a cache': { queries: [1], keys: [301], gap: 11 },
  'some tokens after caches': { queries: [5, 1, 37], keys: [133, 65, 37], gap: 3 },
};
for (const dim of [8, 64, 80, 128]) {
  for (const [heads, kvHeads] of [
    [3, 3],
    [6, 2],
  ] as const) {
    for (const [name, rows] of Object.entries(rowSets)) {
      for (const [causal, window] of [
        [true, 0],
        [true, 19],
        [false, 0],
        [false, 19],
      ] as const) {
        const seen = `${causal ? 'causal' : 'all'}, window ${window}`;
        twins(
          `attention D=${dim} H=${heads} K=${kvHeads}, ${name}, ${seen}`,
          attend(rows, heads, kvHeads, dim, causal, window),
        );
      }
    }
  }
}
twins('attention D=64, a long row', attend({ queries: [700] }, 3, 1, 64, true, 0));
twins('attention D=256', attend({ queries: [33, 4] }, 2, 1, 256, true, 0));
twins('attention of q, k and v cut from one product', (random) =>
  given({ qkv: random(29, 7, 24) }, (k, { qkv }) => {
    const rows = { qStarts: [0, 11, 29], kStarts: [0, 11], kEnds: [11, 29] };
    const part = (from: number, n: number) => ops.narrow(qkv, 1, from, n);
    return [k.attention(part(0, 3), part(3, 1), part(4, 1), rows, 0.2, true, 0)];
  }),
);

test('attention reads nothing outside the rows: slots that were never written may hold anything', () => {
  for (const [queries, keys] of [
    [[1], [301]],
    [
      [5, 1, 37],
      [133, 65, 37],
    ],
    [
      [70, 129],
      [70, 129],
    ],
  ] as const) {
    for (const window of [0, 19]) {
      using _ = scope();
      using generator = new Generator(5);
      const { inputs, run } = attend({ queries, keys, gap: 9 }, 3, 1, 64, true, window)(random(generator));
      const clean = noGrad(() => floats(run(fused, inputs)[0]!));
      for (const t of [inputs.k, inputs.v]) {
        let at = 0;
        for (const n of keys) {
          at += n;
          ops.fill_(ops.narrow(t, 0, at, 9), Number.NaN);
          at += 9;
        }
      }
      for (const t of Object.values(inputs)) t.requiresGrad = true;
      const out = run(fused, inputs)[0]!;
      assert.deepEqual(floats(out), clean);
      ops.sum(out).backward();
      for (const t of Object.values(inputs)) assert.ok(floats(t.grad!).every(Number.isFinite));
    }
  }
});

/** Keys or values of rows in pages of `size` slots, in no order; slots of no key are NaN. */
function paged(t: Tensor, { kStarts, kEnds }: { kStarts: number[]; kEnds: number[] }, size: number) {
  const counts = kStarts.map((start, r) => Math.ceil((kEnds[r]! - start) / size));
  const pages = counts.reduce((a, b) => a + b, 0);
  const all = ops.full([(pages + 3) * size, t.size(1), t.size(2)], Number.NaN);
  const order = (page: number) => (7919 * page + 11) % 997;
  const table = Array.from({ length: pages }, (_, page) => page).sort((x, y) => order(x) - order(y));
  const starts = counts.map((_, r) => counts.slice(0, r).reduce((a, b) => a + b, 0));
  kStarts.forEach((start, r) => {
    for (let key = 0; key < kEnds[r]! - start; key++) {
      const slot = table[starts[r]! + Math.floor(key / size)]! * size + (key % size);
      ops.copy_(ops.narrow(all, 0, slot, 1), ops.narrow(t, 0, start + key, 1));
    }
  });
  const rows = {
    kStarts: starts.map((start) => start * size),
    kEnds: starts.map((start, r) => start * size + kEnds[r]! - kStarts[r]!),
    pages: { table: Tensor.from(BigInt64Array.from(table, BigInt)), size },
  };
  return { all, rows };
}

test('attention over pages = over keys in one piece, in both kernels; each row as if alone', (t) => {
  let cases = 0;
  const sets = { ...rowSets, 'long caches': { queries: [1, 2, 200], keys: [1500, 700, 900] } };
  for (const [dim, heads, kvHeads] of [
    [8, 3, 3],
    [64, 6, 2],
    [80, 6, 2],
  ] as const) {
    for (const { queries, keys = queries } of Object.values(sets) as Rows[]) {
      for (const window of [0, 19]) {
        using _ = scope();
        using generator = new Generator(mixSeed(9, cases));
        const sum = (n: readonly number[]) => n.reduce((a, b) => a + b, 0);
        const qStarts = [...queries, 0].map((_, r) => sum(queries.slice(0, r)));
        const kStarts = keys.map((_, r) => sum(keys.slice(0, r)));
        const whole = { kStarts, kEnds: kStarts.map((start, r) => start + keys[r]!) };
        const make = random(generator);
        const [q, k, v] = [
          make(sum(queries), heads, dim),
          make(sum(keys), kvHeads, dim),
          make(sum(keys), kvHeads, dim),
        ];
        const run = (kernels: Kernels, keysOf: Tensor, values: Tensor, rows: object) =>
          noGrad(() => kernels.attention(q, keysOf, values, { qStarts, ...whole, ...rows }, dim ** -0.5, true, window));
        const want = floats(run(fused, k, v, {}));
        for (const size of [16, 32]) {
          const [inK, inV] = [paged(k, whole, size), paged(v, whole, size)];
          for (const kernels of [fused, composite]) {
            const got = floats(run(kernels, inK.all, inV.all, inK.rows));
            // With a window the first block of keys ends at another place.
            if (kernels === fused && window === 0 && size === 32) assert.deepEqual(got, want);
            else assert.ok(relativeError(got, want) < 5e-6, `D=${dim} ${queries}: ${relativeError(got, want)}`);
            cases++;
          }
          queries.forEach((count, r) => {
            const own = {
              qStarts: [0, count],
              kStarts: inK.rows.kStarts.slice(r, r + 1),
              kEnds: inK.rows.kEnds.slice(r, r + 1),
              pages: inK.rows.pages,
            };
            const part = ops.narrow(q, 0, qStarts[r]!, count);
            const alone = noGrad(() => fused.attention(part, inK.all, inV.all, own, dim ** -0.5, true, window));
            const among = ops.narrow(run(fused, inK.all, inV.all, inK.rows), 0, qStarts[r]!, count);
            assert.deepEqual(floats(alone), floats(among));
          });
        }
      }
    }
  }
  t.diagnostic(`${cases} cases`);
  assert.ok(cases > 100);
});

test('attention over pages refuses a page outside of the keys, and gradients', () => {
  using _ = scope();
  const [q, k] = [ops.zeros([1, 2, 8]), ops.zeros([64, 2, 8])];
  const attention = (table: number[], query = q) =>
    fused.attention(
      query,
      k,
      k,
      {
        qStarts: [0, 1],
        kStarts: [0],
        kEnds: [33],
        pages: { table: Tensor.from(BigInt64Array.from(table, BigInt)), size: 32 },
      },
      1,
      true,
      0,
    );
  assert.equal(attention([1, 0]).size(0), 1);
  assert.throws(() => attention([0, 2]), /outside of k/);
  assert.throws(() => attention([0, -1]), /outside of k/);
  assert.throws(() => attention([0]), /outside of q or k/);
  const trained = ops.zeros([1, 2, 8]);
  trained.requiresGrad = true;
  assert.throws(() => attention([1, 0], trained), /no gradient/);
});

// --- products with frozen weights

const names = Object.keys(formats) as Format[];

/** A frozen weight of `out` rows, for the fused and for the exact kernels; its width is odd where the format lets it be. */
function frozen(random: Random, format: Format | 'dense', out: number, width = 0) {
  if (format === 'dense') {
    const weight = random(out, width || 103);
    const exact = double(weight);
    return { id: -1, width: width || 103, of: (k: Kernels) => (k === fused ? weight : exact) };
  }
  const { id, elements } = formats[format];
  const inner = width || (elements === 1 ? 101 : Math.max(96, 2 * elements));
  const weight = blocks(random, format, out, inner);
  return { id, width: inner, of: () => weight };
}

for (const n of [1, 2, 7, 9, 45]) {
  for (const format of ['dense', ...names] as const) {
    for (const bias of [false, true]) {
      twins(`linear of ${n} rows, ${format}${bias ? ' with bias' : ''}`, (random) => {
        const w = frozen(random, format, 37);
        const inputs = { x: random(n, w.width), ...(bias && { bias: random(37) }) } as Named<'x' | 'bias'>;
        return given(inputs, (k, t) => [k.linear(t.x, w.of(k), w.id, t.bias ?? null)]);
      });
    }
  }
}
const trainedLinear = (n: number, inner: number, out: number) => (random: Random) =>
  given({ x: random(n, inner), weight: random(out, inner), bias: random(out) }, (k, t) => [
    k.linear(t.x, t.weight, -1, t.bias),
  ]);
twins('linear with a trained dense weight', trainedLinear(19, 23, 11));

interface Lora {
  readonly n: number;
  readonly rank: number;
  readonly format: Format | 'dense';
  readonly bias?: boolean;
  readonly dropped?: boolean;
  readonly width?: number;
  readonly out?: number;
}

const lora =
  ({ n, rank, format, bias, dropped, width, out = 53 }: Lora) =>
  (random: Random) => {
    const w = frozen(random, format, out, width);
    const inputs = {
      ...{ x: random(n, w.width), a: random(rank, w.width), b: random(out, rank) },
      ...(bias && { bias: random(out) }),
      ...(dropped && { dropped: random(n, w.width) }),
    } as Named<'x' | 'a' | 'b' | 'bias' | 'dropped'>;
    return given(inputs, (k, t) => [
      k.loraLinear(t.x, t.dropped ?? null, w.of(k), w.id, t.bias ?? null, t.a, t.b, 0.37),
    ]);
  };
const gatedLora =
  ({ n, rank, format, bias, width, out = 53 }: Lora, act: GateActivation) =>
  (random: Random) => {
    const w = frozen(random, format, out, width);
    const inputs = {
      ...{ gate: random(n, w.width), up: random(n, w.width), a: random(rank, w.width), b: random(out, rank) },
      ...(bias && { bias: random(out) }),
    } as Named<'gate' | 'up' | 'a' | 'b' | 'bias'>;
    return given(inputs, (k, t) => [
      k.loraGatedLinear(t.gate, t.up, act, w.of(k), w.id, t.bias ?? null, t.a, t.b, 0.37),
    ]);
  };
for (const rank of [1, 4, 8, 16, 20, 72]) {
  for (const format of ['dense', 'q4_1', 'nf4'] as const) {
    for (const bias of [false, true]) {
      const name = `r=${rank} ${format}${bias ? ', bias' : ''}`;
      twins(`lora_linear ${name}`, lora({ n: 77, rank, format, bias }));
      twins(`lora_linear ${name}, dropped input`, lora({ n: 77, rank, format, bias, dropped: true }));
      twins(`lora_linear ${name}, x frozen`, lora({ n: 5, rank, format, bias }), { trained: ['a', 'b'] });
      for (const act of activations)
        twins(`lora_gated_linear ${act} ${name}`, gatedLora({ n: 35, rank, format, bias }, act));
    }
  }
}
for (const format of names) twins(`lora_linear r=8 ${format}`, lora({ n: 33, rank: 8, format, bias: true }));
twins('lora_linear of one token', lora({ n: 1, rank: 8, format: 'q8_0' }));
twins('lora_gated_linear, gate and up frozen', gatedLora({ n: 7, rank: 8, format: 'q8_0' }, 'silu'), {
  trained: ['a', 'b'],
});

// --- the head's loss

const headLoss = (n: number, predicted: number, format: Format | 'dense', vocab: number) => (random: Random) => {
  // Logits stay near 1: float32 cannot hold a large one to 1e-5 of a probability.
  const w = frozen(random, format, vocab, format === 'dense' ? 31 : 0);
  const inputs = { h: ops.mulScalar(random(n, w.width), 0.03), ...(format === 'dense' && { weight: w.of(fused) }) };
  const places = Array.from(random(n).data() as Float32Array, (x, i) => [x, i] as const).sort(([a], [b]) => a - b);
  const labels = new BigInt64Array(n).fill(-100n);
  for (const [, i] of places.slice(0, predicted)) labels[i] = BigInt((i * 7919) % vocab);
  if (predicted > 1) labels[places[0]![1]] = BigInt(vocab - 1);
  const targets = Tensor.from(labels);
  return given(inputs as Named<'h' | 'weight'>, (k, t) => [
    k.linearCrossEntropy(t.h, t.weight ?? w.of(k), w.id, targets),
  ]);
};
for (const [n, predicted, vocab] of [
  [1, 1, 3],
  [40, 0, 50],
  [45, 45, 97],
  [61, 23, 301],
  [700, 531, 83],
] as const) {
  const shape = `${predicted} of ${n} rows, V=${vocab}`;
  twins(`linear_cross_entropy ${shape}, trained head`, headLoss(n, predicted, 'dense', vocab));
  twins(`linear_cross_entropy ${shape}, frozen head`, headLoss(n, predicted, 'dense', vocab), { trained: ['h'] });
  for (const format of ['q8_0', 'q6_k', 'nf4'] as const) {
    twins(`linear_cross_entropy ${shape}, ${format}`, headLoss(n, predicted, format, vocab));
  }
}
twins('linear_cross_entropy over more than one tile of a vocabulary in blocks', headLoss(300, 277, 'q4_1', 9001));

// --- blocks themselves: bit for bit what gguf-py makes of them (tools/golden/make_gguf.py)

test('blocks are read, looked up and written as the reference does, bit for bit', () => {
  using _ = scope();
  const { tensors } = readTensors(golden('gguf', 'blocks.safetensors'));
  const stored = names.filter((name) => numberFormats[name].ggmlType !== undefined);
  let [read, written] = [0, 0];
  for (const name of stored) {
    const { id, elements, bytes, scales } = formats[name];
    const type = { float16: 'F16', bfloat16: 'BF16' }[name as string] ?? name.toUpperCase();
    const [raw, values] = [tensors.get(`raw.${type}`)!, tensors.get(`values.${type}`)!];
    assert.deepEqual(ops.dequantize(raw, id).bytes(), values.bytes(), `${name} read`);
    const ids = Tensor.from(BigInt64Array.of(5n, 0n, 5n, 3n));
    assert.deepEqual(
      ops.blockEmbedding(raw, id, ids).bytes(),
      ops.indexSelect(values, 0, ids).bytes(),
      `${name} looked up`,
    );
    read++;
    const input = tensors.get(`input.${type}`);
    if (!input) continue;
    // Blocks of zeros of both signs: which sign the scale gets is chance in numpy's reductions.
    const signless = (t: Tensor) => {
      const raw = t.data() as Uint8Array;
      for (let at = 0; elements > 1 && at < raw.length; at += bytes) {
        for (const o of scales) if (raw[at + o] === 0 && raw[at + o + 1] === 0x80) raw[at + o + 1] = 0;
      }
      return raw;
    };
    const want = signless(tensors.get(`quantised.${type}`)!);
    assert.deepEqual(signless(ops.quantize(input, id)), want, `${name} written`);
    written++;
  }
  assert.deepEqual([read, written], [10, 7]);
  const raw = tensors.get('raw.Q8_0')!;
  const outside = (id: bigint) => () => ops.blockEmbedding(raw, formats.q8_0.id, Tensor.from(BigInt64Array.of(id)));
  for (const id of [6n, -1n]) assert.throws(outside(id), /is outside the table of 6 rows/);
  assert.throws(() => ops.quantize(ops.zeros([1, 32]), formats.int4x32.id), /packed by pack_integers/);
  assert.throws(
    () => ops.quantize(Tensor.empty([1, 40]), formats.q8_0.id),
    /a width of 40 is not a multiple of the block size 32/,
  );
  assert.throws(() => ops.dequantize(ops.narrow(raw, 1, 0, 33), formats.q8_0.id), /contiguous/);
  assert.throws(
    () => ops.dequantize(Tensor.empty([2, 35], 'uint8'), formats.q8_0.id),
    /not a whole number of blocks of 34/,
  );
  assert.throws(() => ops.dequantize(raw, 99), /no block format has the number 99/);
});

test('nf4 keeps its own grid, and every number within half a gap of it', () => {
  using _ = scope();
  using generator = new Generator(9);
  const { id } = formats.nf4;
  const x = random(generator)(7, 192);
  const once = ops.dequantize(ops.quantize(x, id), id);
  assert.deepEqual(ops.dequantize(ops.quantize(once, id), id).bytes(), once.bytes());
  const [given, got] = [floats(x), floats(once)];
  for (let at = 0; at < given.length; at += 64) {
    const largest = Math.max(...given.slice(at, at + 64).map(Math.abs));
    // The widest gap of the grid lies between −1 and −0.696 of a block's largest number (arXiv 2305.14314, appendix E).
    for (let i = at; i < at + 64; i++) assert.ok(Math.abs(given[i]! - got[i]!) <= 0.1521 * largest);
  }
});

// --- runs of rows, each with the update of its own adapter

interface Ranges {
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  /** One for each run. */
  readonly ranks: readonly number[];
}

/** Rounds each factor to its element type first, so that both twins see the same numbers. */
function lowRankRuns(random: Random, { starts, ends, ranks }: Ranges, types: readonly DType[], width = 101, out = 67) {
  const rows = Math.max(...ends) + 2;
  const inputs: Record<string, Tensor> = { y: random(rows, out), x: random(rows, width) };
  ranks.forEach((rank, i) => {
    const rounded = (t: Tensor) => ops.toCopy(ops.toCopy(t, { dtype: types[i % types.length]! }), { dtype: 'float32' });
    inputs[`a${i}`] = rounded(random(rank, width));
    inputs[`b${i}`] = rounded(random(rank, out));
  });
  return given(inputs, (k, t) => {
    const y = ops.clone(t.y!);
    const stored = (name: string, i: number) =>
      k === fused ? ops.toCopy(t[name]!, { dtype: types[i % types.length]! }) : t[name]!;
    const run = (start: number, i: number) => ({
      ...{ start, end: ends[i]!, a: stored(`a${i}`, i), b: stored(`b${i}`, i), scaling: 0.4 + i / 8 },
    });
    k.addLowRankRuns(y, t.x!, starts.map(run));
    return [y];
  });
}

const ranges: Readonly<Record<string, Ranges>> = {
  'one token': { starts: [0], ends: [1], ranks: [8] },
  'one token each': { starts: [0, 1, 2, 3, 4], ends: [1, 2, 3, 4, 5], ranks: [8, 1, 16, 3, 72] },
  'gaps, few tokens, many, none': { starts: [1, 5, 9, 40, 40], ends: [5, 8, 40, 40, 43], ranks: [4, 16, 8, 5, 9] },
  'several updates of the same rows': {
    starts: [0, 0, 0, 2, 30, 30],
    ends: [2, 2, 2, 3, 60, 60],
    ranks: [4, 9, 1, 8, 4, 6],
  },
};
const factorTypes = [['float32'], ['float16'], ['bfloat16'], ['float32', 'bfloat16', 'float16']] as const;
for (const [name, range] of Object.entries(ranges)) {
  for (const types of factorTypes) {
    for (const [width, out] of [
      [101, 67],
      [64, 640],
    ])
      twins(
        `add_low_rank_runs ${name}, ${types.join(' and ')}, [${out}, ${width}]`,
        (random) => lowRankRuns(random, range, types, width, out),
        { trained: [] },
      );
  }
}

for (const [name, { starts, ends, ranks }] of Object.entries(ranges)) {
  for (const f of ['relu', 'silu', 'gelu', 'gelu_tanh', 'tanh', 'sigmoid'] as const) {
    twins(
      `add_bottleneck_runs ${name}, ${f}`,
      (random) => {
        const inputs: Record<string, Tensor> = {
          y: random(Math.max(...ends) + 1, 67),
          x: random(Math.max(...ends) + 1, 33),
        };
        ranks.forEach((rank, i) => {
          Object.assign(inputs, { [`a${i}`]: random(rank, 33), [`aBias${i}`]: random(rank) });
          Object.assign(inputs, { [`b${i}`]: random(rank, 67), [`bBias${i}`]: random(67) });
        });
        return given(inputs, (k, t) => {
          const y = ops.clone(t.y!);
          const run = (start: number, i: number) => ({
            ...{ start, end: ends[i]!, scaling: 1.5 - i / 8 },
            ...{ a: t[`a${i}`]!, aBias: t[`aBias${i}`]!, b: t[`b${i}`]!, bBias: t[`bBias${i}`]! },
          });
          k.addBottleneckRuns(y, t.x!, f, starts.map(run));
          return [y];
        });
      },
      { trained: [] },
    );
  }
}

twins(
  'scale_runs',
  (random) => {
    const inputs = { y: random(40, 67), g: random(67), h: random(67) };
    return given(inputs, (k, t) => {
      const y = ops.clone(t.y);
      k.scaleRuns(y, [
        { start: 1, end: 2, gain: t.g },
        { start: 2, end: 7, gain: t.h },
        { start: 9, end: 39, gain: t.g },
      ]);
      return [y];
    });
  },
  { trained: [] },
);

test('runs are refused where an input requires a gradient, or where they do not fit', () => {
  using _ = scope();
  const make = () => ({
    y: ops.ones([4, 6]),
    x: ops.ones([4, 5]),
    a: ops.ones([2, 5]),
    b: ops.ones([2, 6]),
    gain: ops.ones([6]),
  });
  const add = ({ y, x, a, b }: ReturnType<typeof make>, ...bounds: readonly (readonly [number, number])[]) =>
    fused.addLowRankRuns(
      y,
      x,
      (bounds.length ? bounds : [[1, 3] as const]).map(([start, end]) => ({ start, end, a, b, scaling: 1 })),
    );
  const scale = ({ y, gain }: ReturnType<typeof make>) => fused.scaleRuns(y, [{ start: 0, end: 2, gain }]);
  for (const name of ['y', 'x', 'a', 'b', 'gain'] as const) {
    const inputs = make();
    inputs[name].requiresGrad = true;
    const call = name === 'gain' ? scale : add;
    assert.throws(() => call(inputs), new RegExp(`${name} gets no gradient from this operator`));
    noGrad(() => call(inputs));
  }
  assert.throws(() => add(make(), [1, 5]), /a run must lie within the 4 rows of y, got 1 to 5/);
  assert.throws(() => add(make(), [2, 4], [0, 1]), /runs must follow one another/);
  assert.throws(() => add(make(), [0, 3], [1, 3]), /runs must follow one another/);
  assert.throws(() => add({ ...make(), b: ops.ones([6, 2]) }), /b \[r, 6\], got \[2, 5\] and \[6, 2\]/);
  assert.throws(
    () => add({ ...make(), a: ops.toCopy(ops.ones([2, 5]), { dtype: 'float64' }) }),
    /a( and b)? must be float32, float16 or bfloat16/,
  );
  assert.throws(() => scale({ ...make(), gain: ops.ones([5]) }), /a gain must have 6 numbers/);
  const bottleneck = (f: string, aBias = ops.ones([2]), bBias = ops.ones([6])) => {
    const { y, x, a, b } = make();
    fused.addBottleneckRuns(y, x, f as 'relu', [{ start: 0, end: 3, a, aBias, b, bBias, scaling: 1 }]);
  };
  bottleneck('relu');
  const trained = ops.ones([6]);
  trained.requiresGrad = true;
  assert.throws(() => bottleneck('relu', undefined, trained), /bias gets no gradient from this operator/);
  assert.throws(() => bottleneck('relu', ops.ones([3])), /a bias must have 2 numbers/);
  assert.throws(
    () => bottleneck('swish'),
    /activation must be relu, silu, gelu, gelu_tanh, tanh or sigmoid, got swish/,
  );
});

// --- what decoding computes in one call

for (const format of ['dense', 'q4_1', 'q8_0', 'bfloat16'] as const) {
  for (const n of [1, 5, 8, 9, 30, 70]) {
    for (const biased of [false, true]) {
      twins(
        `linears of ${n} rows, ${format}${biased ? ' with biases' : ''}`,
        (random) => {
          const weights = [61, 24, 130].map((out) => frozen(random, format as Format, out, 96));
          const biases = weights.map((_, i) => random([61, 24, 130][i]!));
          return given({ x: random(n, 96) }, (k, { x }) =>
            k.linears(
              x,
              weights.map(({ id, of }, i) => ({
                ...{ weight: of(k), format: id },
                ...(biased && { bias: k === fused ? biases[i]! : double(biases[i]!) }),
              })),
            ),
          );
        },
        { trained: [] },
      );
    }
  }
}

for (const [heads, kvHeads, dim, half] of [
  [6, 2, 64, 32],
  [3, 3, 8, 2],
  [2, 1, 80, 0],
] as const) {
  for (const [queries, filled] of [
    [[1], [300]],
    [
      [1, 1, 1],
      [0, 31, 32],
    ],
    [
      [40, 1, 7],
      [0, 64, 3],
    ],
  ] as const) {
    for (const window of [0, 19]) {
      twins(
        `pooled attention, H=${heads} K=${kvHeads} D=${dim}, ${queries} queries after ${filled}, window ${window}`,
        (random) => {
          const ends = queries.map((count, r) => count + filled[r]!);
          const pages = ends.map((end) => Math.ceil(end / 32));
          const sum = (list: readonly number[]) => list.reduce((a, b) => a + b, 0);
          const total = sum(pages);
          const table = Array.from({ length: total }, (_, i) => total - 1 - i);
          const firsts = pages.map((_, r) => sum(pages.slice(0, r)));
          const slots = queries.flatMap((count, r) =>
            Array.from({ length: count }, (_, i) => {
              const at = filled[r]! + i;
              return table[firsts[r]! + (at >> 5)]! * 32 + (at & 31);
            }),
          );
          const rows = {
            qStarts: [...queries, 0].map((_, r) => sum(queries.slice(0, r))),
            kStarts: firsts.map((first) => 32 * first),
            kEnds: firsts.map((first, r) => 32 * first + ends[r]!),
            pages: { table: Tensor.from(BigInt64Array.from(table, BigInt)), size: 32 },
          };
          const n = sum(queries);
          const angles = half > 0 ? { cos: random(n, half), sin: random(n, half) } : {};
          const inputs = {
            // As parts of one product are: rows with gaps.
            qkv: random(n, (heads + 2 * kvHeads) * dim),
            poolK: random(total * 32, kvHeads, dim),
            poolV: random(total * 32, kvHeads, dim),
            ...angles,
          };
          return given(inputs as Named<string>, (k, t) => {
            const [poolK, poolV] = [ops.clone(t.poolK!), ops.clone(t.poolV!)];
            const part = (from: number, count: number) => ops.narrow(t.qkv!, 1, from * dim, count * dim);
            const flat = (x: Tensor) => (k === fused ? x : ops.contiguous(x));
            const pool = { k: poolK, v: poolV, slots: Tensor.from(BigInt64Array.from(slots, BigInt)), rows };
            const out = k.pooledAttention(
              flat(part(0, heads)),
              flat(part(heads, kvHeads)),
              flat(part(heads + kvHeads, kvHeads)),
              t.cos && t.sin ? [t.cos, t.sin] : undefined,
              ...([pool, dim ** -0.5, true, window] as const),
            );
            return [out, poolK, poolV];
          });
        },
        { trained: [] },
      );
    }
  }
}

test('of few rows, the product with a frozen weight has the same bits whichever rows are beside it, and with any number of threads', (t) => {
  if (library) return t.skip('a GPU multiplies by a library');
  const { native } = currentEngine();
  const before = native.threads();
  t.after(() => native.threads(before));
  using _rowWise = useRowWiseProducts();
  let compared = 0;
  for (const format of ['dense', 'q4_0', 'q4_1', 'q5_1', 'q8_0', 'q4_k', 'q6_k', 'nf4', 'bfloat16'] as const) {
    for (const [out, width] of [
      [67, 512],
      [600, 1536],
      [20, 107], // whose last numbers do not fill a block
    ] as const) {
      if (width % 2 === 1 && format !== 'dense' && formats[format].elements > 1) continue;
      using _ = scope();
      using generator = new Generator(3);
      const { id, of } = frozen(random(generator), format, out, width);
      const other = frozen(random(generator), width % 2 === 1 ? 'dense' : 'q5_0', 9, width);
      const x = random(generator)(32, width);
      native.threads(1);
      const alone = Array.from({ length: 32 }, (_, r) =>
        floats(fused.linear(ops.narrow(x, 0, r, 1), of(fused), id, null)),
      );
      for (const [first, n] of [
        [0, 2],
        [3, 7],
        [1, 8],
        [5, 9],
        [10, 16],
        [0, 31],
        [0, 32],
      ] as const) {
        native.threads(1 + (n % 4));
        const got = floats(fused.linear(ops.narrow(x, 0, first, n), of(fused), id, null));
        const weights = [other, { id, of }, other].map((w) => ({ weight: w.of(fused), format: w.id }));
        const [, among] = fused.linears(ops.narrow(x, 0, first, n), weights);
        assert.deepEqual(got, alone.slice(first, first + n).flat(), `${format}: ${n} rows from ${first}`);
        assert.deepEqual(floats(among!), got);
        compared += n;
      }
    }
  }
  t.diagnostic(`${compared} rows`);
  assert.ok(compared > 1000);
});

test('what decoding computes in one call refuses inputs that require a gradient, and slots outside of the pool', () => {
  using _ = scope();
  const make = () => ({ q: ops.ones([1, 8]), k: ops.ones([1, 8]), v: ops.ones([1, 8]), pool: ops.ones([32, 1, 8]) });
  const attention = ({ q, k, v, pool }: ReturnType<typeof make>, slot = 0n) => {
    const slots = Tensor.from(BigInt64Array.of(slot));
    const pages = { table: Tensor.from(BigInt64Array.of(0n)), size: 32 };
    const rows = { qStarts: [0, 1], kStarts: [0], kEnds: [1], pages };
    return fused.pooledAttention(q, k, v, undefined, { k: pool, v: ops.ones([32, 1, 8]), slots, rows }, 1, true, 0);
  };
  for (const name of ['q', 'k', 'v', 'pool'] as const) {
    const inputs = make();
    inputs[name].requiresGrad = true;
    assert.throws(() => attention(inputs), /gets no gradient from this operator/);
  }
  assert.throws(() => attention(make(), 32n), /slot 32 is outside of the pool/);
  const weights = { x: ops.ones([1, 4]), weight: ops.ones([3, 4]), bias: ops.ones([3]) };
  for (const name of ['x', 'weight', 'bias'] as const) {
    const { x, ...rest } = { ...weights, [name]: ops.ones(weights[name].shape) };
    ({ x, ...rest })[name].requiresGrad = true;
    assert.throws(() => fused.linears(x, [{ ...rest, format: -1 }]), /gets no gradient from this operator/);
  }
});

// --- the composites themselves

differences('rms_norm', (random) =>
  given({ x: random(2, 5), weight: random(5) }, (k, t) => [k.rmsNorm(t.x, t.weight, 1e-5)]),
);
differences('add_rms_norm', (random) =>
  given({ x: random(2, 5), delta: random(2, 5), weight: random(5) }, (k, t) =>
    k.addRmsNorm(t.x, t.delta, t.weight, 1e-5),
  ),
);
differences('rope', turn(2, 2, 7, 2));
for (const act of activations) differences(`glu ${act}`, gate(act, 2, 3));
differences('attention', attend({ queries: [3, 1], keys: [4, 1], gap: 1 }, 4, 2, 3, true, 0));
differences('attention with a window', attend({ queries: [4] }, 2, 1, 3, true, 2));
differences('attention to all', attend({ queries: [2, 2] }, 2, 2, 3, false, 0));
differences('linear', trainedLinear(2, 5, 3));
differences('lora_linear', lora({ n: 2, rank: 2, format: 'dense', bias: true, dropped: true, width: 5, out: 3 }));
differences('lora_linear on blocks', lora({ n: 2, rank: 1, format: 'q4_0', width: 32, out: 3 }));
differences('lora_gated_linear', gatedLora({ n: 2, rank: 2, format: 'dense', bias: true, width: 5, out: 3 }, 'silu'));
differences('linear_cross_entropy', headLoss(4, 3, 'dense', 5));

// --- both instruction sets, and the count

const narrow = process.env.GRAFT_AVX2 === '1';
const run = narrow ? 'AVX2' : library ? 'CUDA' : 'native';
/** Runs this file again. Returns what its last test tells. */
function again(variables: Record<string, string>): string {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], {
    env: { ...env, ...variables },
    encoding: 'utf8',
  });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
  return /(AVX2|CUDA): .*/.exec(child.stdout)![0];
}
const skip = run !== 'native' && 'this is a run again';
test('the same with AVX2 only', { skip }, (t) => t.diagnostic(again({ GRAFT_AVX2: '1' })));
test('the same with the CUDA kernels', { skip }, (t) => t.diagnostic(again({ GRAFT_HOST_KERNELS: hostKernels() })));

test('every case was compared', (t) => {
  t.diagnostic(`${run}: ${JSON.stringify({ ...done, worst })}`);
  const all = library ? { twins: 527, gradients: 1140 } : { twins: 701, gradients: 1531 };
  assert.deepEqual(done, { ...all, differences: 13 });
});
