/**
 * The fused quantisers of training against their twins of plain ATen operators: values and gradients, equal numbers; and
 * what they give against the blocks that layers hold: unpack(pack(w)) is fake(w). Parity with llama.cpp and torchao:
 * test/parity/quantisers.test.ts.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../engine/index.ts';
import { formats, integerFormats, isIntegerFormat, pack, requireWidths, weightFormats } from '../quant/index.ts';
import { type DType, Generator, noGrad, ops, scope, scoped, Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
import { fakeQuantize } from './fake-quantize.ts';
import { fused } from './fused.ts';
import type { Kernels } from './kernels.ts';
import { Linear } from './layers.ts';

before(() => startEngine());

const blockNames = weightFormats.filter((name) => !isIntegerFormat(name));
const floats = (t: Tensor) => noGrad(() => ops.toCopy(t, { dtype: 'float32' }).data() as Float32Array);

/** Numbers of which some blocks have an outlier, some are zero, and some lie on one side of zero. */
function weights(generator: Generator, rows: number, width: number): Tensor {
  const x = floats(ops.randn([rows, width], { generator }));
  for (let i = 0; i < x.length; i++) {
    const block = Math.floor(i / 32) % 7;
    x[i]! *= 0.05;
    if (block === 1 && i % 32 === 5) x[i]! *= 500;
    if (block === 2) x[i] = 0;
    if (block === 3) x[i] = Math.abs(x[i]!);
    if (block === 4) x[i] = -Math.abs(x[i]!) - 0.5;
    if (block === 5) x[i]! *= 1e-4;
  }
  return Tensor.from(x, [rows, width]);
}

interface Result {
  readonly values: Float32Array;
  readonly gradients: readonly Float32Array[];
}

function run(kernels: Kernels, of: (kernels: Kernels, ...x: Tensor[]) => Tensor, inputs: Tensor[], dy: Tensor): Result {
  const trained = inputs.map((t) => {
    const copy = ops.clone(t);
    copy.requiresGrad = true;
    return copy;
  });
  const out = of(kernels, ...trained);
  assert.equal(out.dtype, inputs[0]!.dtype);
  assert.deepEqual(out.shape, inputs[0]!.shape);
  ops.sum(ops.mul(out, dy)).backward();
  return { values: floats(out), gradients: trained.map((t) => floats(t.grad!)) };
}

/** Compares numbers, not signs of zero. */
function same(got: Float32Array, want: Float32Array, what: string): void {
  assert.equal(got.length, want.length);
  let different = 0;
  for (let i = 0; i < want.length; i++) if (got[i] !== want[i]) different++;
  assert.equal(different, 0, `${what}: ${different} of ${want.length} numbers differ`);
}

const dtypes: readonly DType[] = ['float32', 'bfloat16'];

test('blocks: fused = composite, values and gradients', (t) => {
  let [compared, stopped] = [0, 0];
  for (const name of blockNames) {
    const { nativeId, blockElements } = formats[name as 'q8_0'];
    for (const dtype of dtypes) {
      for (const blocks of [1, 3, 4]) {
        using _ = scope();
        using generator = new Generator(compared);
        const width = blocks * blockElements;
        const w = ops.toCopy(weights(generator, 5, width), { dtype });
        const dy = ops.toCopy(ops.randn([5, width], { generator }), { dtype });
        const of = (kernels: Kernels, x: Tensor) => kernels.fakeQuantizeBlocks(x, nativeId);
        const [got, want] = [run(fused, of, [w], dy), run(composite, of, [w], dy)];
        same(got.values, want.values, `${name} ${dtype} values`);
        same(got.gradients[0]!, want.gradients[0]!, `${name} ${dtype} gradients`);
        stopped += got.gradients[0]!.filter((g) => g === 0).length;
        compared++;
      }
    }
  }
  t.diagnostic(`${compared} matrices; ${stopped} gradients stopped`);
  assert.equal(compared, 9 * 2 * 3);
  assert.ok(stopped > 100);
});

test('integers: fused = composite, values and gradients', (t) => {
  let compared = 0;
  for (const { bits } of Object.values(integerFormats)) {
    for (const dtype of dtypes) {
      for (const symmetric of [true, false]) {
        for (const [width, group] of [
          [96, 32],
          [192, 64],
          [384, 128],
          [90, 18],
          [33, 11],
          [7, 7],
          [70, 0],
        ] as const) {
          using _ = scope();
          using generator = new Generator(1000 + compared);
          const x = ops.toCopy(weights(generator, 6, width), { dtype });
          const dy = ops.toCopy(ops.randn([6, width], { generator }), { dtype });
          const of = (kernels: Kernels, t: Tensor) => kernels.fakeQuantizeIntegers(t, bits, group, symmetric);
          const [got, want] = [run(fused, of, [x], dy), run(composite, of, [x], dy)];
          const what = `int${bits} ${dtype}, group ${group}, symmetric ${symmetric}`;
          same(got.values, want.values, `${what}: values`);
          // The twin multiplies by the scale and its reciprocal.
          const closeness = (dtype === 'float32' ? 1e-6 : 1e-2) * Math.max(...floats(dy).map(Math.abs));
          want.gradients[0]!.forEach((g, i) => {
            const error = Math.abs(got.gradients[0]![i]! - g);
            assert.ok(error <= closeness, `${what}: gradient ${got.gradients[0]![i]}, not ${g}`);
          });
          compared++;
        }
      }
    }
  }
  t.diagnostic(`${compared} matrices`);
  assert.equal(compared, 7 * 2 * 2 * 7);
});

test('learned scales: fused = composite, values and gradients', () => {
  for (const [bits, groups] of [
    [2, 3],
    [4, 1],
    [8, 6],
  ] as const) {
    using _ = scope();
    using generator = new Generator(bits);
    const w = weights(generator, 7, 66);
    const scale = ops.addScalar(ops.abs(ops.randn([7, groups], { generator })), 0.01);
    const of = (kernels: Kernels, x: Tensor, s: Tensor) => kernels.fakeQuantizeLearned(x, s!, bits);
    const dy = ops.randn([7, 66], { generator });
    const inputs = [w, scale];
    const [got, want] = [fused, composite].map((kernels) =>
      run(kernels, (k, ...x) => of(k, x[0]!, x[1]!), inputs, dy),
    ) as [Result, Result];
    same(got.values, want.values, `int${bits} values`);
    got.gradients.forEach((gradient, which) => {
      const largest = Math.max(...want.gradients[which]!.map(Math.abs));
      gradient.forEach((g, i) => {
        assert.ok(Math.abs(g - want.gradients[which]![i]!) <= 2e-6 * largest, `int${bits}, gradient ${which}`);
      });
    });
  }
});

test('what is packed, unpacks to what training computed with, in every format', (t) => {
  let compared = 0;
  for (const format of weightFormats) {
    const schemes = isIntegerFormat(format)
      ? [32, 64, undefined].flatMap((groupSize) => [true, false].map((symmetric) => ({ groupSize, symmetric })))
      : [{}];
    for (const scheme of schemes) {
      using _ = scope();
      using generator = new Generator(compared);
      const w = weights(generator, 9, 768);
      const packed = pack(w, { format, ...scheme });
      const values = fakeQuantize(fused, w, { format, ...scheme });
      assert.deepEqual(ops.dequantize(packed.weight, packed.format).bytes(), values.bytes(), format);
      // A layer that holds the blocks computes with the same numbers.
      const x = ops.randn([20, 768], { generator });
      const layer = new Linear(fused, packed.weight, packed.format, 768);
      const dense = new Linear(fused, values, -1, 768);
      assert.deepEqual(layer.forward(x).bytes(), dense.forward(x).bytes(), `${format}: a layer`);
      compared++;
    }
  }
  t.diagnostic(`${compared} weights`);
  assert.equal(compared, 9 + 7 * 6);
  using _ = scope();
  const w = ops.ones([2, 64]);
  const scale = ops.mulScalar(ops.ones([2, 2]), 0.3);
  const learned = pack(w, { format: 'int4', groupSize: 32 }, scale);
  assert.deepEqual(
    ops.dequantize(learned.weight, learned.format).bytes(),
    fakeQuantize(fused, w, { format: 'int4', groupSize: 32 }, scale).bytes(),
  );
});

test('numbers that a format cannot hold are errors, with the row', () => {
  using _ = scope();
  const at = (value: number) => {
    const x = new Float32Array(4 * 256).fill(0.5);
    x[2 * 256 + 77] = value;
    return Tensor.from(x, [4, 256]);
  };
  const message = /row 2 holds a number that is not finite, or too large for the scale of its block/;
  let refused = 0;
  for (const name of blockNames) {
    const { nativeId } = formats[name as 'q8_0'];
    for (const value of [NaN, Infinity, -Infinity, 3e38, -1e20]) {
      if (name === 'nf4' && Number.isFinite(value)) continue; // its scale is float32
      assert.throws(() => ops.fakeQuantizeBlocks(at(value), nativeId), message, `${name} of ${value}`);
      assert.throws(() => ops.quantize(at(value), nativeId), message, `${name} of ${value}`);
      refused++;
    }
    // The largest that half-precision scales of every format hold.
    assert.ok(floats(ops.fakeQuantizeBlocks(at(5e5), nativeId)).every(Number.isFinite), name);
  }
  assert.equal(refused, 8 * 5 + 3);
  for (const value of [NaN, Infinity, -Infinity]) {
    assert.throws(() => ops.fakeQuantizeIntegers(at(value), 4, 32, true), message);
    assert.throws(() => ops.quantizeIntegers(at(value), 4, 32, true), message);
  }
  const wide = Tensor.from(Float32Array.of(3e38, -3e38), [1, 2]);
  assert.throws(() => ops.fakeQuantizeIntegers(wide, 8, 0, false), /row 0 holds a number/);
  const bfloat = ops.toCopy(at(NaN), { dtype: 'bfloat16' });
  assert.throws(() => ops.fakeQuantizeBlocks(bfloat, formats.q8_0.nativeId), message);
});

test('groups and blocks that do not divide a width are errors', () => {
  using _ = scope();
  assert.throws(
    () => ops.fakeQuantizeIntegers(ops.ones([2, 96]), 4, 64, true),
    /a group of 64 does not divide a width of 96/,
  );
  assert.throws(
    () => ops.fakeQuantizeBlocks(ops.ones([2, 96]), formats.q6_k.nativeId),
    /96 is not a multiple of the block size 256/,
  );
  assert.throws(() => ops.fakeQuantizeIntegers(ops.ones([2, 96]), 9, 32, true), /2 to 8 bits/);
  assert.throws(() => ops.fakeQuantizeLearned(ops.ones([2, 96]), ops.ones([2, 5]), 4), /\[rows, groups\]/);
  assert.throws(
    () => pack(ops.ones([2, 96]), { format: 'int4', groupSize: 24 }),
    /groups of 24 .* not whole blocks of 32/,
  );
  const widths = new Map([
    ['q_proj', 192],
    ['up_proj', 576],
    ['head', 192],
  ]);
  requireWidths({ format: 'int4', groupSize: 64 }, widths);
  requireWidths({ format: 'int4' }, widths);
  requireWidths({ format: 'q4_0' }, widths);
  assert.throws(
    () => requireWidths({ format: 'int4', groupSize: 128 }, widths),
    /a group_size of 128 does not divide the width of q_proj \(192 wide\), up_proj \(576 wide\), head \(192 wide\)\. Choose group_size: 96/,
  );
  assert.throws(
    () => requireWidths({ format: 'q5_k' }, widths),
    /q5_k with its blocks of 256 does not divide .* Choose q5_0 or q5_1 or q8_0/,
  );
});

test('the graph keeps a bit for each element, not the weight nor its rounded copy', () => {
  using _ = scope();
  const w = ops.ones([1024, 16384]); // 64 MiB
  w.requiresGrad = true;
  const keptMiB = (of: (x: Tensor) => Tensor): number => {
    const rss = () => {
      currentEngine().native.trim();
      return process.memoryUsage.rss() / 2 ** 20;
    };
    const before = rss();
    scoped(() => ops.sum(of(ops.mulScalar(w, 2)))); // the sum stays, and with it the graph
    return rss() - before;
  };
  // The measure itself: a product keeps its factors.
  assert.ok(keptMiB((x) => ops.mul(x, x)) > 56);
  for (const format of ['q4_0', 'q8_0', 'int4'] as const) {
    const groupSize = format === 'int4' ? 32 : undefined;
    const kept = keptMiB((x) => fakeQuantize(fused, x, { format, groupSize }));
    assert.ok(kept < 8, `${format} keeps ${kept} MiB`); // one bit in 32: 2 MiB
  }
});

const narrow = process.env.GRAFT_AVX2 === '1';
test('the same with AVX2 only', { skip: narrow && 'this is that run' }, () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], {
    env: { ...env, GRAFT_AVX2: '1' },
    encoding: 'utf8',
  });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
});
