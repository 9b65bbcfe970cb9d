import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../engine/index.ts';
import {
  checkpoint,
  detachFromScopes,
  dropout,
  type Gate,
  gated,
  give,
  giveBack,
  isAbsent,
  manualSeed,
  noGrad,
  ops,
  refill,
  scope,
  setAside,
  Tensor,
  takeAway,
  takeMemory,
} from './index.ts';

before(async () => {
  await startEngine();
});

const handles = () => currentEngine().native.memory().handles;
const leaf = (data: readonly number[]): Tensor => {
  const tensor = Tensor.from(data);
  tensor.requiresGrad = true;
  return tensor;
};
const gradient = (tensor: Tensor) => [...(tensor.grad!.data() as Float32Array)];

test('values and gradients equal those without checkpointing, for inputs and for closures, and forward runs twice', () => {
  using _ = scope();
  const [x, w] = [leaf([1, -2, 3]), leaf([0.5, 0.25, 2])];
  let runs = 0;
  const forward = (a: Tensor, b: Tensor) => {
    runs++;
    return [ops.mul(ops.mul(a, w), b), ops.tanh(ops.add(a, b))];
  };
  const outcome = (by: typeof checkpoint) => {
    // Two checkpoints, one after the other; y is an input of both.
    const y = ops.mulScalar(x, 2);
    const [first, second] = by(forward, [x, y]) as [Tensor, Tensor];
    const [third, fourth] = by(forward, [ops.add(first, second), y]) as [Tensor, Tensor];
    const sum = ops.add(ops.sum(third), ops.sum(ops.mul(fourth, first)));
    sum.backward();
    const results = [sum.item(), ...gradient(x), ...gradient(w)];
    x.grad = undefined;
    w.grad = undefined;
    return results;
  };
  const plain = outcome((f, inputs) => f(...inputs));
  assert.equal(runs, 2);
  const again = outcome(checkpoint);
  assert.equal(runs, 6);
  again.forEach((value, i) => {
    assert.ok(Math.abs(value - plain[i]!) <= 1e-6 * Math.abs(plain[i]!), `${i}: ${value}, not ${plain[i]}`);
  });
});

test('the second run has the dropout of the first, and does not change the random numbers that follow', () => {
  using _ = scope();
  const ones = Array.from({ length: 1000 }, () => 1);
  const x = leaf(ones);
  const drawn = () => [...(dropout(Tensor.from(ones), 0.5).data() as Float32Array)];
  manualSeed(5);
  const [y] = checkpoint((a) => [dropout(a!, 0.5)], [x]) as [Tensor];
  const second = drawn();
  ops.sum(y).backward();
  assert.deepEqual(gradient(x), [...(y.data() as Float32Array)]);
  const third = drawn();
  manualSeed(5);
  assert.deepEqual([drawn(), drawn(), drawn()], [gradient(x), second, third]);
});

test('a graph is freed with its tensors, also without a backward pass, and a second backward pass is an error', () => {
  const live = handles();
  {
    using _ = scope();
    const x = leaf([0.5, 0.25]);
    const deep = (a: Tensor) => {
      let y = a;
      for (let i = 0; i < 20; i++) y = ops.tanh(y);
      return [y];
    };
    const [y] = checkpoint(deep, [x]) as [Tensor];
    assert.equal(handles(), live + 2);
    const sum = ops.sum(y);
    sum.backward();
    assert.throws(() => sum.backward(), /a second time/);
    assert.equal(handles(), live + 3);
    checkpoint(deep, [x]);
  }
  assert.equal(handles(), live);
});

test('without a tensor that needs a gradient it is a plain call', () => {
  using _ = scope();
  let runs = 0;
  const twice = (a: Tensor) => {
    runs++;
    return [ops.mulScalar(a, 2)];
  };
  const [frozen] = checkpoint(twice, [Tensor.from([1, 2])]) as [Tensor];
  assert.ok(!frozen.requiresGrad);
  const [evaluated] = noGrad(() => checkpoint(twice, [leaf([1, 2])])) as [Tensor];
  assert.ok(!evaluated.requiresGrad);
  assert.equal(runs, 2);
});

test('backward throws the error of the second run unchanged, and the next pass is correct', () => {
  const live = handles();
  {
    using _ = scope();
    const x = leaf([1, 2]);
    let runs = 0;
    const failing = (a: Tensor) => {
      if (runs++ > 0) throw new RangeError('not again');
      return [ops.mulScalar(a, 3)];
    };
    const broken = (a: Tensor) => [runs++ > 1 ? ops.mm(a, a) : ops.mulScalar(a, 3)];
    const [y] = checkpoint(failing, [x]) as [Tensor];
    assert.throws(() => ops.sum(y).backward(), { name: 'RangeError', message: 'not again' });
    runs = 1;
    const [z] = checkpoint(broken, [x]) as [Tensor];
    assert.throws(() => ops.sum(z).backward(), /aten::mm/);
    assert.equal(x.grad, undefined);
    const [w] = checkpoint((a) => [ops.mul(a, a)], [x]) as [Tensor];
    ops.sum(w).backward();
    assert.deepEqual(gradient(x), [2, 4]);
  }
  assert.equal(handles(), live);
});

test('a gate surrounds the forward pass, and the second one with the backward pass through it: parameters are there only in it', () => {
  using _ = scope();
  const weight = detachFromScopes(Tensor.from([0.5, 2]));
  weight.requiresGrad = true;
  const numbers = weight.data();
  takeAway(weight);
  assert.ok(isAbsent(weight) && weight.requiresGrad);
  const order: string[] = [];
  const gradients: number[][] = [];
  const inside = <T>(name: string, run: () => T): T => {
    order.push(`${name} begins`);
    give(weight, Tensor.from(numbers));
    try {
      return run();
    } finally {
      const { grad } = weight;
      if (grad) gradients.push([...(grad.data() as Float32Array)]);
      takeAway(weight);
      order.push(`${name} ends`);
    }
  };
  const gate: Gate = { forward: (run) => inside('forward', run), backward: (run) => inside('backward', run) };
  const forward = ([x]: readonly Tensor[]) => [ops.mul(ops.tanh(ops.mul(x!, weight)), weight)];
  const x = leaf([1, -2]);
  const [y] = checkpoint((...inputs) => forward(inputs), [x], gate) as [Tensor];
  assert.deepEqual(order, ['forward begins', 'forward ends']);
  assert.throws(() => weight.data());
  ops.sum(y).backward();
  assert.deepEqual(order.slice(2), ['backward begins', 'backward ends']);
  // The same without a checkpoint.
  const [plain, w] = [leaf([1, -2]), leaf([...(numbers as Float32Array)])];
  ops.sum(ops.mul(ops.tanh(ops.mul(plain, w)), w)).backward();
  assert.deepEqual(gradient(x), gradient(plain));
  assert.deepEqual(gradients, [gradient(w)]);
  noGrad(() => checkpoint((...inputs) => forward(inputs), [x], gate));
  assert.deepEqual(order.slice(4), ['forward begins', 'forward ends']);
  weight.dispose();
});

test('a gated part is not run again: what it has read is given the same memory for the backward pass, and freed between', () => {
  const live = handles();
  {
    using _ = scope();
    const numbers = [0.5, 2];
    const [weight, gathered] = [Tensor.from([0, 0]), Tensor.from(numbers)].map(detachFromScopes) as [Tensor, Tensor];
    noGrad(() => give(weight, ops.detach(ops.view(gathered, [2]))));
    weight.requiresGrad = true;
    let runs = 0;
    let aside: Tensor | undefined;
    const { native } = currentEngine();
    const gate: Gate = {
      forward(run, isRecorded) {
        assert.ok(isRecorded);
        const outputs = run();
        aside = detachFromScopes(setAside(weight));
        const { bytes } = native.memory();
        takeMemory(gathered).dispose();
        assert.equal(bytes - native.memory().bytes, 8);
        return outputs;
      },
      backward(run) {
        assert.ok(isAbsent(weight) && weight.requiresGrad);
        assert.throws(() => weight.data());
        noGrad(() => refill(gathered, Tensor.from(numbers)));
        giveBack(weight, aside!);
        run();
      },
    };
    const forward = ([x, z]: readonly Tensor[]) => {
      runs++;
      return [ops.mul(ops.tanh(ops.mul(x!, weight)), weight), ops.mulScalar(x!, 2), z!];
    };
    const [x, z] = [leaf([1, -2]), Tensor.from([3, 4])];
    const [y, twice, through] = gated((...inputs) => forward(inputs), [x, z], gate) as [Tensor, Tensor, Tensor];
    assert.deepEqual(
      [y, twice, through].map((tensor) => tensor.requiresGrad),
      [true, true, false],
    );
    assert.deepEqual([...(through.data() as Float32Array)], [3, 4]);
    ops.sum(ops.mul(y, through)).backward(); // of `twice` there is no gradient
    assert.equal(runs, 1);
    const [plain, w] = [leaf([1, -2]), leaf(numbers)];
    ops.sum(ops.mul(ops.mul(ops.tanh(ops.mul(plain, w)), w), z)).backward();
    assert.deepEqual(gradient(x), gradient(plain));
    assert.deepEqual(gradient(weight), gradient(w));
    for (const tensor of [weight, gathered]) tensor.dispose();
  }
  assert.equal(handles(), live);
});
