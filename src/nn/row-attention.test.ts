import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { startEngine } from '../engine/index.ts';
import { Generator, ops, scope, type Tensor } from '../tensor/index.ts';
import { composite } from './composite.ts';
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
