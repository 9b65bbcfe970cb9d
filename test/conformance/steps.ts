/** Steps of methods on models with kernels of choice, and how far they differ. */
import assert from 'node:assert/strict';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import type { LoadOptions } from '../../src/models/index.ts';
import type { Kernels } from '../../src/nn/index.ts';
import { manualSeed, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { batchLoss } from '../../src/train/index.ts';
import type { Base } from './bases.ts';
import type { FamilyCase } from './family-cases.ts';

/** The loss of a batch and the gradients of all parameters, of a step with these options of loading. Undefined where the method refuses. */
export function stepOf(base: Base, { choices, refuses }: FamilyCase, options: LoadOptions) {
  using _ = scope();
  using model = base.load(options);
  if (refuses?.(model)) return undefined;
  using adapter = attachMethods(model, choices(base), 0, savedAdapters(model));
  manualSeed(1);
  const loss = batchLoss(model, base.batch(model));
  loss.backward();
  const numbers = (tensor: Tensor) => ops.toCopy(tensor, { dtype: 'float32' }).data() as Float32Array;
  const gradients = [...adapter.parameters].map(([key, { grad }]) => [key, grad && numbers(grad)] as const);
  return { loss: numbers(loss)[0]!, gradients: new Map(gradients) };
}

export type Step = NonNullable<ReturnType<typeof stepOf>>;

/** The largest difference of two gradients, relative to the norm of one: of the loss, and of all parameters together. */
export function differences(a: Step, b: Step) {
  const norm = (numbers: Iterable<number>) => Math.sqrt([...numbers].reduce((sum, x) => sum + x * x, 0));
  assert.deepEqual([...b.gradients.keys()], [...a.gradients.keys()]);
  let [difference, size] = [0, 0];
  for (const [key, expected] of a.gradients) {
    const found = b.gradients.get(key);
    assert.equal(found === undefined, expected === undefined, key);
    if (!expected) continue;
    difference = Math.hypot(difference, norm(expected.map((x, i) => x - found![i]!)));
    size = Math.hypot(size, norm(expected));
  }
  return { loss: Math.abs(a.loss - b.loss) / Math.abs(a.loss), gradient: difference / size };
}

/** As on a GPU: dense weights in bfloat16, products of factors that are rounded to it. */
export function inBfloat16<T>(kernels: Kernels, act: (options: LoadOptions) => T): T {
  const { native } = currentEngine();
  native.roundProducts(true);
  try {
    return act({ kernels, dtype: 'bfloat16' });
  } finally {
    native.roundProducts(false);
  }
}
