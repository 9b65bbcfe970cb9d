import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../engine/index.ts';
import { checkpoint, noGrad, ops, scope, Tensor } from './index.ts';

before(async () => {
  await startEngine();
});

const handles = () => currentEngine().native.memory().handles;
const leaf = (data: readonly number[]): Tensor => {
  const tensor = Tensor.from(data);
  tensor.requiresGrad = true;
  return tensor;
};
const values = (tensor: Tensor) => [...(tensor.data() as Float32Array)];

test('the hook of a leaf runs once in each backward pass, when all uses have given their term', () => {
  const live = handles();
  {
    using _ = scope();
    const [w, x] = [leaf([2, 3]), leaf([5, 7])];
    const seen: number[][] = [];
    w.onGradient(() => {
      using _ = scope();
      seen.push(values(w.grad!));
      w.grad = undefined;
    });
    const loss = () => ops.sum(ops.mul(w, ops.tanh(ops.mul(ops.mul(x, w), w))));
    const plain = () => {
      w.grad = undefined;
      loss().backward();
    };
    plain();
    plain();
    assert.equal(seen.length, 2);
    assert.deepEqual(seen[0], seen[1]);
    assert.equal(w.grad, undefined, 'the hook freed it');
    assert.ok(x.grad, 'a leaf without a hook keeps its gradient');
    w.onGradient(undefined);
    loss().backward();
    assert.equal(seen.length, 2, 'a hook that was removed does not run');
    assert.deepEqual(values(w.grad!), seen[0], 'the gradient is what the hook was shown');
  }
  assert.equal(handles(), live);
});

test('a hook may write to its leaf: nodes that still need the old values have run; under checkpointing too', () => {
  using _ = scope();
  const outcome = (through: typeof checkpoint, fused: boolean) => {
    const weights = [leaf([0.5, -1]), leaf([2, 0.25]), leaf([-0.75, 1.5])];
    const order: number[] = [];
    const update = (w: Tensor) => noGrad(() => ops.add_(w, w.grad!, { alpha: -0.1 }));
    if (fused)
      weights.forEach((w, i) => {
        w.onGradient(() => {
          using _ = scope();
          order.push(i);
          update(w);
          w.grad = undefined;
        });
      });
    const blocks = weights.map((w) => (x: Tensor) => [ops.tanh(ops.mul(ops.mul(x, w), w))] as const);
    const x = Tensor.from([0.3, 0.9]);
    const y = blocks.reduce((stream, block) => through(block as never, [stream])[0]!, ops.mul(x, weights[0]!));
    ops.sum(y).backward();
    if (!fused) for (const w of weights) update(w);
    return { order, weights: weights.map(values) };
  };
  const plain: typeof checkpoint = (forward, inputs) => forward(...inputs);
  const after = outcome(plain, false);
  const during = outcome(plain, true);
  assert.deepEqual(during.order, [2, 1, 0], 'from the last to the first');
  assert.deepEqual(during.weights, after.weights);
  // The first weight is used in a block and outside of it: the two backward passes each complete a gradient of it.
  assert.deepEqual(outcome(checkpoint, true).order, [2, 1, 0, 0]);
});

test('what a hook throws comes out of backward unchanged, and the next pass is correct', () => {
  const live = handles();
  {
    using _ = scope();
    const [a, b] = [leaf([1, 2]), leaf([3, 4])];
    b.onGradient(() => {
      throw new RangeError('not this one');
    });
    const loss = () => ops.sum(ops.mul(a, ops.mul(b, b)));
    assert.throws(() => loss().backward(), { name: 'RangeError', message: 'not this one' });
    const nested = checkpoint((x) => [ops.mul(x!, b)], [a])[0]!;
    assert.throws(() => ops.sum(nested).backward(), { name: 'RangeError', message: 'not this one' });
    b.onGradient(() => ops.mm(a, a));
    assert.throws(() => loss().backward(), /aten::mm/);
    b.onGradient(undefined);
    for (const tensor of [a, b]) tensor.grad = undefined;
    loss().backward();
    assert.deepEqual(
      [values(a.grad!), values(b.grad!)],
      [
        [9, 16],
        [6, 16],
      ],
    );
    assert.throws(() => ops.mul(a, b).onGradient(() => {}), /only the gradient of a leaf/);
  }
  assert.equal(handles(), live);
});
