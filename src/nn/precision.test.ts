import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { processor, startEngine } from '../engine/index.ts';
import { formats } from '../quant/index.ts';
import { Generator, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { precisionOfProcessor, usePrecision } from './precision.ts';

before(() => startEngine());

const fast = processor().features.avx512f && processor().features.avx512_bf16;
const skip = fast ? false : 'this processor has no bfloat16 products';

const rounded = (x: Tensor) => ops.toCopy(ops.toCopy(x, { dtype: 'bfloat16' }), { dtype: 'float32' });

/** Largest difference as a share of the largest value. */
function apart(a: Tensor, b: Tensor): number {
  const [x, y] = [a.data() as Float32Array, b.data() as Float32Array];
  let [difference, largest] = [0, 0];
  for (let i = 0; i < y.length; i++) {
    difference = Math.max(difference, Math.abs(x[i]! - y[i]!));
    largest = Math.max(largest, Math.abs(y[i]!));
  }
  return difference / largest;
}

const close = (what: string, a: Tensor, b: Tensor) => {
  const d = apart(a, b);
  assert.ok(d < 3e-6, `${what}: ${d}`);
};

test('the default precision follows what multiplies faster', () => {
  const none = { avx2: true, fma: true, avx512f: false, avx512_bf16: false, avx512_vnni: false, amx_bf16: false };
  const best = (vendor: string, some: Partial<typeof none>) =>
    precisionOfProcessor({ vendor, features: { ...none, ...some } });
  assert.equal(best('AuthenticAMD', {}), 'float32');
  assert.equal(best('AuthenticAMD', { avx512_bf16: true }), 'mixed');
  assert.equal(best('GenuineIntel', { avx512_bf16: true }), 'float32');
  assert.equal(best('GenuineIntel', { avx512_bf16: true, amx_bf16: true }), 'mixed');
});

test('reduced products are exact products of rounded factors, for all sizes and formats', { skip }, (t) => {
  let cases = 0;
  using generator = new Generator(3);
  for (const [n, k, m] of [
    [16, 128, 128],
    [70, 130, 194],
    [64, 576, 192],
    [129, 192, 576],
    [17, 1536, 320],
  ] as const) {
    for (const format of ['dense', 'q8_0', 'bfloat16'] as const) {
      if (format === 'q8_0' && k % 32 !== 0) continue;
      using _ = scope();
      const dense = ops.randn([m, k], { generator });
      const id = format === 'dense' ? -1 : formats[format].nativeId!;
      const weight = format === 'dense' ? dense : ops.quantize(dense, id);
      const wide = format === 'dense' ? dense : ops.dequantize(weight, id);
      const x = ops.randn([n, k], { generator });
      const g = ops.randn([n, m], { generator });
      x.requiresGrad = true;
      for (const precision of ['mixed', 'bfloat16'] as const) {
        using _on = usePrecision(precision);
        const y = ops.blockLinear(x, weight, id, null);
        const factors = precision === 'mixed' ? [x, wide] : [rounded(x), rounded(wide)];
        close(
          `${format} [${n}, ${k}] to ${m}, forward`,
          noGrad(() => ops.clone(y)),
          noGrad(() => ops.mm(factors[0]!, ops.t(factors[1]!))),
        );
        x.grad = undefined;
        y.backward(g);
        close(
          `${format} [${n}, ${m}] to ${k}, backward`,
          x.grad!,
          noGrad(() => ops.mm(rounded(g), rounded(wide))),
        );
        cases += 2;
      }
    }
  }
  t.diagnostic(`${cases} products`);
});

test('small products and few rows stay exact, bit for bit', { skip }, () => {
  for (const [n, k, m] of [
    [64, 64, 200],
    [64, 200, 64],
    [15, 256, 256],
    [40, 129, 256],
  ] as const) {
    using _ = scope();
    const [x, w] = [ops.randn([n, k], { generator: null }), ops.randn([m, k], { generator: null })];
    const exact = ops.blockLinear(x, w, -1, null).data();
    using _on = usePrecision('bfloat16');
    assert.deepEqual(ops.blockLinear(x, w, -1, null).data(), exact);
  }
});

test('cross-entropy: mixed keeps the loss bit for bit and rounds its gradient; bfloat16 is near', { skip }, () => {
  using _ = scope();
  using generator = new Generator(5);
  const [n, c, v] = [300, 192, 9000];
  const h = ops.randn([n, c], { generator });
  const w = ops.mulScalar(ops.randn([v, c], { generator }), 0.1);
  h.requiresGrad = true;
  const targets = Tensor.from(
    BigInt64Array.from({ length: n }, (_, i) => (i % 3 === 0 ? -100n : BigInt((i * 31) % v))),
  );
  const run = () => {
    h.grad = undefined;
    const loss = ops.linearCrossEntropy(h, w, -1, targets);
    loss.backward();
    return { loss: loss.item(), grad: noGrad(() => ops.clone(h.grad!)) };
  };
  const exact = run();
  for (const precision of ['mixed', 'bfloat16'] as const) {
    using _on = usePrecision(precision);
    const got = run();
    if (precision === 'mixed') assert.equal(got.loss, exact.loss);
    else assert.ok(Math.abs(got.loss / exact.loss - 1) < 1e-3, `${got.loss} ${exact.loss}`);
    const d = apart(got.grad, exact.grad);
    assert.ok(d > 0 && d < 1e-2, String(d));
  }
});

test('the same product twice is the same, bit for bit, and precision ends with its scope', { skip }, () => {
  using _ = scope();
  const [x, w] = [ops.randn([200, 512], { generator: null }), ops.randn([640, 512], { generator: null })];
  const exact = ops.blockLinear(x, w, -1, null).data();
  {
    using _on = usePrecision('bfloat16');
    const first = ops.blockLinear(x, w, -1, null).data();
    assert.deepEqual(ops.blockLinear(x, w, -1, null).data(), first);
    assert.notDeepEqual(first, exact);
  }
  assert.deepEqual(ops.blockLinear(x, w, -1, null).data(), exact);
});
