/**
 * Blocks that llama.cpp's quantiser makes (tools/golden/make_quant_gguf.py), and values, scales, zero points and gradients
 * of torchao's fake quantisers (make_quant_torchao.py): bit for bit, of numbers as weights have them, and of zeros, ties,
 * outliers, subnormal numbers. The file runs twice: with the instructions of this processor, and with AVX2 only.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { composite, fakeQuantize, fakeQuantizeInputs, fakeQuantizeTokens, fused } from '../../src/nn/index.ts';
import { formats, ggmlBlockNames } from '../../src/quant/index.ts';
import { ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden, relativeError } from '../support.ts';
import { type Kind, matrix } from './quant-numbers.ts';

before(() => startEngine());

interface BlockCase {
  readonly kind: Kind;
  readonly seed: number;
  readonly rows: number;
  readonly width: number;
  readonly input: string;
  readonly [blocks: `blocks.${string}`]: string;
  readonly [first: `first.${string}`]: string | undefined;
  readonly 'inputs.Q8_K'?: string;
}

const read = (file: string) => JSON.parse(readFileSync(golden('quant', file), 'utf8'));
const { cases } = read('gguf.json') as {
  cases: BlockCase[];
};

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

test('blocks are those of llama.cpp, bit for bit', (t) => {
  let [compared, elements] = [0, 0];
  for (const block of cases) {
    using _ = scope();
    const { kind, seed, rows, width } = block;
    const numbers = matrix(kind, seed, rows, width);
    assert.ok(sha256(new Uint8Array(numbers.buffer)).startsWith(block.input), `numbers of ${kind}`);
    const weight = Tensor.from(numbers, [rows, width]);
    for (const name of ggmlBlockNames) {
      const { nativeId, blockBytes } = formats[name.toLowerCase() as 'q8_0'];
      const blocks = ops.quantize(weight, nativeId).data() as Uint8Array;
      const first = block[`first.${name}`];
      if (first) assert.equal(hex(blocks.subarray(0, blockBytes)), first, `${name}, ${kind}, first block`);
      assert.ok(sha256(blocks).startsWith(block[`blocks.${name}`]!), `${name}, ${kind} ${seed}`);
      compared++;
      elements += numbers.length;
    }
  }
  t.diagnostic(`${compared} matrices, ${elements} numbers`);
  assert.equal(compared, 8 * cases.length);
  assert.ok(cases.length >= 47);
});

test('inputs are rounded to 8 bits as llama.cpp rounds them: the values of its blocks, bit for bit', (t) => {
  const counts = { q8_0: 0, q8_k: 0, numbers: 0 };
  for (const { kind, seed, rows, width, 'inputs.Q8_K': q8k } of cases) {
    using _ = scope();
    const x = Tensor.from(matrix(kind, seed, rows, width), [rows, width]);
    for (const { nativeId, inputs } of Object.values(formats)) {
      if (inputs === undefined || nativeId === undefined || (inputs === 'q8_k' && q8k === undefined)) continue;
      const got = fakeQuantizeInputs(fused, x, nativeId);
      // Of Q8_0, blocks are compared above.
      if (inputs === 'q8_k') isHash(got, q8k!, `q8_k, ${kind} ${seed}`);
      else {
        const blocks = ops.quantize(x, formats.q8_0.nativeId);
        assert.deepEqual(got.data(), ops.dequantize(blocks, formats.q8_0.nativeId).data(), `q8_0, ${kind} ${seed}`);
      }
      counts[inputs]++;
      counts.numbers += got.numel;
    }
    const other = [-1, formats.float16.nativeId!, formats.nf4.nativeId, formats.int4x32.nativeId];
    for (const format of other) assert.equal(fakeQuantizeInputs(fused, x, format), x, `${format}`);
  }
  t.diagnostic(JSON.stringify(counts));
  assert.equal(counts.q8_0, 5 * cases.length);
  assert.ok(counts.q8_k >= 3 * 41);
});

interface Integers {
  readonly bits: number;
  readonly group: number;
  readonly seed: number;
  readonly rows: number;
  readonly width: number;
  readonly values: string;
  readonly scales: string;
  readonly passed: string;
}
interface Constant extends Integers {
  readonly what: 'constant';
  readonly kind: Kind;
  readonly symmetric: boolean;
  readonly dtype: 'float32' | 'bfloat16';
  readonly zero_points: string;
  readonly gradient_error: number;
}
interface Learned extends Integers {
  readonly what: 'learned';
  readonly dscale: readonly number[];
}
interface Linear {
  readonly what: 'linear';
  readonly out: readonly number[];
  readonly dx: readonly number[];
  readonly dweight: readonly number[];
}
interface Embedding {
  readonly what: 'embedding';
  readonly ids: readonly number[];
  readonly rows: string;
}
type TorchaoCase = Constant | Learned | Linear | Embedding;
const torchao = (read('torchao.json') as { cases: TorchaoCase[] }).cases;
const torchaoCases = <W extends TorchaoCase['what']>(what: W) =>
  torchao.filter((c): c is Extract<TorchaoCase, { what: W }> => c.what === what);

const tensor = (kind: Kind, seed: number, rows: number, width: number) =>
  Tensor.from(matrix(kind, seed, rows, width), [rows, width]);
/** A gradient without zeros. */
const givenGradient = (rows: number, width: number) =>
  Tensor.from(
    matrix('normal', 99, rows, width).map((x) => Math.fround(abs(x) + Math.fround(0.001))),
    [rows, width],
  );
const { abs } = Math;
const isHash = (t: Tensor, want: string, what: string) =>
  assert.ok(sha256(ops.contiguous(t).bytes()).startsWith(want), what);

/** Checks that the gradient of x is `dy` where torchao's is not zero, and zero elsewhere. */
function checkPassed(x: Tensor, dy: Tensor, want: string, what: string): void {
  const [got, given] = [x.grad!, dy].map((t) => ops.toCopy(t, { dtype: 'float32' }).data() as Float32Array);
  const passed = Uint8Array.from(got!, (g) => (g === 0 ? 0 : 1));
  assert.ok(sha256(passed).startsWith(want), `${what}: which gradients pass`);
  passed.forEach((pass, i) => {
    if (pass) assert.equal(got![i], given![i], what);
  });
}

for (const [name, kernels] of Object.entries({ fused, composite })) {
  test(`${name}: integers are those of torchao, bit for bit`, (t) => {
    const constants = torchaoCases('constant');
    for (const { kind, seed, rows, width, bits, group, symmetric, dtype, ...want } of constants) {
      using _ = scope();
      const what = `int${bits}, group ${group}, ${symmetric ? 'symmetric' : 'asymmetric'}, ${kind} ${dtype}`;
      const x = ops.toCopy(tensor(kind, seed, rows, width), { dtype });
      x.requiresGrad = true;
      const values = kernels.fakeQuantizeIntegers(x, bits, group, symmetric);
      isHash(values, want.values, `${what}: values`);
      const dy = ops.toCopy(givenGradient(rows, width), { dtype });
      if (dtype === 'float32') assert.ok(want.gradient_error <= 1e-6);
      ops.sum(ops.mul(values, dy)).backward();
      if (kernels === fused) {
        checkPassed(x, dy, want.passed, what);
        const [codes, scales, zeroPoints] = ops.quantizeIntegers(ops.detach(x), bits, group, symmetric);
        isHash(scales, want.scales, `${what}: scales`);
        isHash(zeroPoints, want.zero_points, `${what}: zero points`);
        assert.deepEqual(codes.shape, [rows, width]);
      }
    }
    t.diagnostic(`${constants.length} matrices`);
    assert.ok(constants.length >= 236);
  });

  test(`${name}: learned scales are torchao's, with their gradients`, (t) => {
    const cases = torchaoCases('learned');
    let worst = 0;
    for (const { bits, group, seed, rows, width, values, scales, passed, dscale } of cases) {
      using _ = scope();
      const what = `int${bits}, group ${group}`;
      const w = tensor('normal', seed, rows, width);
      const [, start] = ops.quantizeIntegers(w, bits, group, true);
      const factor = ops.divScalar(tensor('positive', seed + 1, rows, start.size(1)), 2);
      const scale = ops.mul(start, factor);
      isHash(scale, scales, `${what}: scales`);
      w.requiresGrad = true;
      scale.requiresGrad = true;
      const got = kernels.fakeQuantizeLearned(w, scale, bits);
      isHash(got, values, `${what}: values`);
      const dy = givenGradient(rows, width);
      ops.sum(ops.mul(got, dy)).backward();
      if (kernels === fused) checkPassed(w, dy, passed, what);
      const error = relativeError(scale.grad!.data() as Float32Array, dscale);
      worst = Math.max(worst, error);
      assert.ok(error <= 1e-6, `${what}: gradient of the scales differs by ${error}`);
    }
    t.diagnostic(`${cases.length} matrices, gradients of scales within ${worst}`);
    assert.equal(cases.length, 8);
  });

  test(`${name}: int8 activations with an int4 weight, and an int4 embedding, are torchao's`, () => {
    using _ = scope();
    const [linear] = torchaoCases('linear');
    const [x, weight] = [tensor('spread', 42, 5, 128), tensor('normal', 41, 16, 128)];
    x.requiresGrad = true;
    weight.requiresGrad = true;
    const rounded = [
      fakeQuantizeTokens(kernels, x),
      fakeQuantize(kernels, weight, { format: 'int4', groupSize: 32 }),
    ] as const;
    const out = ops.linear(...rounded, null);
    ops.sum(ops.mul(out, givenGradient(5, 16))).backward();
    const pairs = { out, dx: x.grad!, dweight: weight.grad! };
    for (const [key, got] of Object.entries(pairs)) {
      const error = relativeError(got.data() as Float32Array, linear![key as 'out']);
      assert.ok(error <= 1e-6, `${key} differs by ${error}`);
    }
    const [embedding] = torchaoCases('embedding');
    const ids = Tensor.from(BigInt64Array.from(embedding!.ids, BigInt));
    const table = tensor('normal', 43, 20, 96);
    // Rows looked up and then rounded, or the other way round: groups lie within rows.
    isHash(kernels.fakeQuantizeIntegers(ops.embedding(table, ids), 4, 32, true), embedding!.rows, 'rows, then rounded');
    isHash(ops.embedding(kernels.fakeQuantizeIntegers(table, 4, 32, true), ids), embedding!.rows, 'rounded, then rows');
  });
}

const narrow = process.env.GRAFT_AVX2 === '1';
test('the same with AVX2 only', { skip: narrow && 'this is that run' }, () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], {
    env: { ...env, GRAFT_AVX2: '1' },
    encoding: 'utf8',
  });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
});
