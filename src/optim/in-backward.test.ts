/** Optimizers that update in the backward pass: what is in memory, what they keep, and what they leave alone. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../engine/index.ts';
import { ops, scope, Tensor } from '../tensor/index.ts';
import { createOptimizer, isInBackward, type OptimizerChoice, optimizers } from './index.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

const inBackward = Object.keys(optimizers).filter((type) => isInBackward({ type }));
const bytes = (t: Tensor) => t.bytes();

/** A chain of matrices, each used once, and the last one's loss. */
function chain(count: number, width: number) {
  const parameters = new Map(
    Array.from({ length: count }, (_, i) => {
      const weight = Tensor.from(
        Float32Array.from({ length: width * width }, (_, at) => (1.5 * Math.sin(at * at + i)) / Math.sqrt(width)),
      );
      const parameter = ops.reshape(weight, [width, width]);
      parameter.requiresGrad = true;
      return [`layers.${i}.weight`, parameter] as const;
    }),
  );
  const x = Tensor.from(
    Float32Array.from({ length: width }, (_, i) => Math.cos(i)),
    [1, width],
  );
  const loss = () => ops.sum([...parameters.values()].reduce((stream, w) => ops.mm(stream, w), x));
  return { parameters, loss };
}

function step(choice: OptimizerChoice, parameters: ReadonlyMap<string, Tensor>, loss: () => Tensor, lr: number) {
  using _ = scope();
  using optimizer = createOptimizer(choice, parameters);
  using updates = optimizer.inBackward?.(lr);
  loss().backward();
  if (!updates) optimizer.step(lr);
  return { norm: updates?.gradNorm(), state: [...optimizer.state.keys()] };
}

test('two optimizers update in the backward pass', () => assert.deepEqual(inBackward, ['lomo', 'adalomo']));

for (const type of inBackward) {
  test(`${type}: gradients of one layer exist at a time, every parameter is updated, and no handle or gradient is left`, () => {
    using _ = scope();
    const [count, width] = [12, 256];
    const { native } = currentEngine();
    const { parameters, loss } = chain(count, width);
    const before = [...parameters.values()].map(bytes);
    step({ type }, parameters, loss, 0.1);
    const live = native.memory().handles;
    const { now } = native.allocated();
    const { norm, state } = step({ type }, parameters, loss, 0.1);
    const matrix = 4 * width * width;
    const peak = native.allocated().peak - now;
    assert.ok(peak >= matrix && peak < 3 * matrix, `${peak / matrix} matrices beside the weights`);
    assert.equal(native.memory().handles, live);
    assert.ok(norm! > 0);
    assert.equal(state.length, type === 'lomo' ? 0 : 3 * count);
    [...parameters.values()].forEach((parameter, i) => {
      assert.equal(parameter.grad, undefined);
      assert.notDeepEqual(bytes(parameter), before[i]);
    });
    // Without the hooks a pass leaves gradients, as before.
    loss().backward();
    assert.ok([...parameters.values()].every(({ grad }) => grad));
  });

  test(`${type}: from a gradient that is not finite on, parameters stay as they are`, () => {
    using _ = scope();
    const { parameters } = chain(4, 8);
    const entries = [...parameters.values()];
    const before = entries.map(bytes);
    // The gradient of the second matrix overflows, and so that of the first; a backward pass comes to the third and fourth before.
    const loss = () => {
      const [a, b, c, d] = entries as [Tensor, Tensor, Tensor, Tensor];
      const overflowing = ops.mulScalar(ops.mulScalar(ops.add(b, ops.mulScalar(a, 0)), 1e30), 1e30);
      return ops.sum(ops.add(overflowing, ops.add(c, d)));
    };
    const { norm } = step({ type }, parameters, loss, 0.1);
    assert.ok(!Number.isFinite(norm));
    const changed = entries.map((parameter, i) => bytes(parameter).some((byte, at) => byte !== before[i]![at]));
    assert.deepEqual(changed, [false, false, true, true]);
    assert.ok(entries.every(({ grad }) => grad === undefined));
  });

  test(`${type}: a second gradient in one step is refused before it is used`, () => {
    using _ = scope();
    const { parameters, loss } = chain(2, 4);
    using optimizer = createOptimizer({ type }, parameters);
    using updates = optimizer.inBackward!(0.1);
    loss().backward();
    const [norm, before] = [updates.gradNorm(), [...parameters.values()].map(bytes)];
    assert.throws(() => loss().backward(), /layers\.1\.weight gets a second gradient in the step.*or use adamw/);
    assert.deepEqual([...parameters.values()].map(bytes), before);
    assert.equal(updates.gradNorm(), norm);
  });
}

test('adalomo keeps a row and a column of a matrix, all of a vector, and each parameter has its own step count', () => {
  using _ = scope();
  const shapes: Readonly<Record<string, readonly number[]>> = {
    matrix: [3, 5],
    vector: [7],
    kernel: [2, 3, 4],
    one: [],
  };
  const parameters = new Map(
    Object.entries(shapes).map(([name, shape]) => {
      const tensor = ops.ones(shape);
      tensor.requiresGrad = true;
      return [name, tensor] as const;
    }),
  );
  using optimizer = createOptimizer({ type: 'adalomo' }, parameters);
  const pass = (...names: string[]) => {
    using _ = scope();
    using _updates = optimizer.inBackward!(0.1);
    names
      .map((name) => ops.sum(parameters.get(name)!))
      .reduce((a, b) => ops.add(a, b))
      .backward();
  };
  pass('matrix', 'vector', 'kernel', 'one');
  pass('matrix');
  const kept = [...optimizer.state].map(([name, { shape }]) => `${name} [${shape.join()}]`);
  assert.deepEqual(kept.sort(), [
    'kernel.exp_avg_sq_col [2,4]',
    'kernel.exp_avg_sq_row [2,3]',
    'kernel.step []',
    'matrix.exp_avg_sq_col [5]',
    'matrix.exp_avg_sq_row [3]',
    'matrix.step []',
    'one.exp_avg_sq []',
    'one.step []',
    'vector.exp_avg_sq [7]',
    'vector.step []',
  ]);
  const steps = Object.keys(shapes).map((name) => optimizer.state.get(`${name}.step`)!.item());
  assert.deepEqual(steps, [2, 1, 1, 1]);
});

test('biases and norms are not decayed, and the factor of a parameter scales its rate', () => {
  using _ = scope();
  const make = (shape: readonly number[]) => {
    const tensor = ops.ones(shape);
    tensor.requiresGrad = true;
    return tensor;
  };
  const parameters = new Map([
    ['matrix', make([1, 2])],
    ['vector', make([2])],
    ['fast', make([1, 2])],
  ]);
  using optimizer = createOptimizer({ type: 'lomo', weight_decay: 0.5, clip_grad_value: 2 }, parameters, {
    rateFactor: (key) => (key === 'fast' ? 4 : 1),
  });
  {
    using _updates = optimizer.inBackward!(0.1);
    const all = [...parameters.values()].map((parameter) => ops.sum(ops.mulScalar(parameter, 3)));
    all.reduce((a, b) => ops.add(a, b)).backward();
    // Gradients of 3 are clipped to 2.
  }
  const first = (key: string) => (parameters.get(key)!.data() as Float32Array)[0]!;
  const close = (got: number, want: number) => assert.ok(Math.abs(got - want) < 1e-6, `${got}, not ${want}`);
  close(first('matrix'), 1 - 0.1 * 0.5 - 0.1 * 2);
  close(first('vector'), 1 - 0.1 * 2);
  close(first('fast'), 1 - 0.4 * 0.5 - 0.4 * 2);
});
