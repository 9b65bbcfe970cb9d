import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { startEngine } from '../engine/index.ts';
import { Generator, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
import { kernelsOn } from './device-kernels.ts';
import { fused } from './fused.ts';
import type { Kernels } from './kernels.ts';
import { rowAttention } from './row-attention.ts';

before(() => startEngine());

/** Rows of queries and keys: as many of both, one query, some queries behind cached keys, and a row without a cache among slots. */
const layouts = {
  'packed rows': { qStarts: [0, 5, 6, 13], kStarts: [0, 5, 6], kEnds: [5, 6, 13] },
  'one query behind a cache': { qStarts: [0, 1], kStarts: [2], kEnds: [11] },
  'queries behind a cache': { qStarts: [0, 4, 7], kStarts: [0, 9], kEnds: [9, 13] },
};

test('attention by rows is that of the composite kernel, and so are its gradients', () => {
  let compared = 0;
  for (const [name, rows] of Object.entries(layouts)) {
    for (const kvHeads of [1, 2, 4]) {
      for (const [causal, window] of [
        [true, 0],
        [true, 3],
        [true, 100],
        [false, 0],
      ] as const) {
        const run = (attention: typeof rowAttention) => {
          using _ = scope();
          using generator = new Generator(5);
          const random = (shape: number[]) => {
            const tensor = ops.randn(shape, { generator });
            tensor.requiresGrad = true;
            return tensor;
          };
          const q = random([rows.qStarts.at(-1)!, 4, 8]);
          const [k, v] = [random([13, kvHeads, 8]), random([13, kvHeads, 8])];
          const out = attention(q, k, v, rows, 0.3, causal, window);
          const seed = ops.randn(out.shape, { generator });
          ops.sum(ops.mul(out, seed)).backward();
          const numbers = (tensor: Tensor) => [...(ops.contiguous(tensor).data() as Float32Array)];
          return [out, q.grad!, k.grad!, v.grad!].flatMap(numbers);
        };
        const [expected, found] = [run(composite.attention), run(rowAttention)];
        assert.equal(found.length, expected.length);
        const difference = Math.max(...expected.map((x, i) => Math.abs(x - found[i]!)));
        assert.ok(difference < 1e-5, `${name}, ${kvHeads} kv heads, causal ${causal}, window ${window}: ${difference}`);
        compared++;
      }
    }
  }
  assert.equal(compared, 36);
});

const indices = (numbers: readonly number[]) => Tensor.from(BigInt64Array.from(numbers, BigInt));
const numbersOf = (tensor: Tensor) => [...(ops.toCopy(tensor, { dtype: 'float32' }).data() as Float32Array)];

/** A row that begins, in pages 3 and 1, and one of 4 slots that goes on by two tokens, in page 2: 32 slots of a pool of float32. */
function pooled({ pooledAttention }: Kernels, dtype: 'float32' | 'bfloat16', rotates: boolean, window: number) {
  using _ = scope();
  using generator = new Generator(7);
  const random = (...shape: number[]) => ops.randn(shape, { generator });
  const pool = { k: random(32, 2, 8), v: random(32, 2, 8) };
  const [q, k, v] = [random(11, 32), random(11, 16), random(11, 16)].map((t) => ops.toCopy(t, { dtype })) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const pages = { table: indices([3, 1, 2]), size: 8 };
  const rows = { qStarts: [0, 9, 11], kStarts: [0, 16], kEnds: [9, 22], pages };
  const slots = indices([24, 25, 26, 27, 28, 29, 30, 31, 8, 20, 21]);
  const rotation = rotates ? ([random(11, 4), random(11, 4)] as const) : undefined;
  const out = noGrad(() => pooledAttention(q, k, v, rotation, { ...pool, slots, rows }, 0.3, true, window));
  assert.deepEqual([out.dtype, out.shape], [dtype, q.shape]);
  return [out, pool.k, pool.v].flatMap(numbersOf);
}

test('over a pool, attention of a GPU writes and returns what the fused operator does, in bfloat16 too', () => {
  const ofGpu = kernelsOn('cuda:0', 'float32', false);
  let compared = 0;
  for (const rotates of [false, true]) {
    for (const window of [0, 3]) {
      const expected = pooled(fused, 'float32', rotates, window);
      for (const [dtype, kernels, most] of [
        ['float32', ofGpu, 1e-5],
        ['float32', composite, 1e-5],
        ['bfloat16', ofGpu, 0.1],
        ['bfloat16', composite, 0.1],
      ] as const) {
        const found = pooled(kernels, dtype, rotates, window);
        assert.equal(found.length, expected.length);
        const difference = Math.max(...expected.map((x, i) => Math.abs(x - found[i]!)));
        assert.ok(difference < most, `${dtype}, rotates ${rotates}, window ${window}: ${difference}`);
        compared++;
      }
    }
  }
  assert.equal(compared, 16);
});
