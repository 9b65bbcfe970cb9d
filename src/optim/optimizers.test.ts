/** Every optimizer against its reference implementation (tools/golden/make_optimizer.py), and what all have in common. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { golden, numbers, readTensors, relativeError } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { detachFromScopes, Generator, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { updateComposite, updateFused } from './adamw8bit.ts';
import { codesOf } from './dynamic-codes.ts';
import { createOptimizer, type OptimizerChoice, optimizers } from './registry.ts';

before(() => startEngine());

const inBlock = (key: string) => key.startsWith('layers.');

function reference() {
  const { tensors, metadata } = readTensors(golden('optimizer', 'all.safetensors'));
  const { cases, steps, lr, factors, absent, tolerance } = JSON.parse(String(metadata.get('provenance')));
  const names = [...tensors.keys()].flatMap((key) => (key.startsWith('start.') ? [key.slice('start.'.length)] : []));
  const parameters = () =>
    new Map(
      names.map((name) => {
        const parameter = detachFromScopes(ops.clone(tensors.get(`start.${name}`)!));
        parameter.requiresGrad = true;
        return [name, parameter] as const;
      }),
    );
  /** Sets the gradients of a step. */
  const setGradients = (trained: ReadonlyMap<string, Tensor>, step: number) => {
    for (const [name, parameter] of trained) {
      const grad = tensors.get(`grad.${step % 3}.${name}`);
      const isAbsent = (absent[name] ?? []).includes(step);
      parameter.grad = isAbsent ? undefined : ops.mulScalar(grad!, factors[step % 4]);
    }
  };
  return { tensors, cases: cases as Record<string, OptimizerChoice>, steps, lr, tolerance, parameters, setGradients };
}

test('twenty steps of each optimizer as its reference: matrices, vectors, odd shapes, absent gradients', (t) => {
  const { tensors, cases, steps, lr, tolerance, parameters, setGradients } = reference();
  let compared = 0;
  for (const [name, choice] of Object.entries(cases)) {
    using _ = scope();
    const trained = parameters();
    using optimizer = createOptimizer(choice, trained, { inBlock });
    for (let step = 0; step < steps; step++) {
      setGradients(trained, step);
      optimizer.step(lr);
    }
    let worst = 0;
    for (const [key, parameter] of trained) {
      const error = relativeError(numbers(parameter), numbers(tensors.get(`${name}.${key}`)!));
      assert.ok(error <= tolerance, `${name}: ${key} differs by ${error}`);
      worst = Math.max(worst, error);
      compared++;
      parameter.dispose();
    }
    t.diagnostic(`${name}: at most ${worst.toExponential(1)}`);
  }
  assert.deepEqual(
    [...new Set(Object.values(cases).map(({ type }) => type))].sort().join(),
    'adafactor,adamw8bit,galore,lion,sgd',
  );
  assert.equal(compared, 12 * 9);
});

test('8-bit codes are those of bitsandbytes: its tables bit for bit, and its states after twenty steps', () => {
  using _ = scope();
  const { tensors, cases, steps, lr, parameters, setGradients } = reference();
  for (const kind of ['signed', 'unsigned'] as const)
    assert.deepEqual(numbers(codesOf(kind)), numbers(tensors.get(`codes.${kind}`)!), kind);
  const trained = parameters();
  using optimizer = createOptimizer(cases.adamw8bit!, trained, { inBlock });
  for (let step = 0; step < steps; step++) {
    setGradients(trained, step);
    optimizer.step(lr);
  }
  let codes = 0;
  for (const slot of ['exp_avg', 'exp_avg_sq']) {
    const key = (part: string) =>
      [optimizer.state.get(`layers.1.large.${part}`)!, tensors.get(`adamw8bit.state.${part}.layers.1.large`)!] as const;
    const [largest, wantedLargest] = key(`${slot}_max`);
    const error = relativeError(numbers(largest), numbers(wantedLargest));
    assert.ok(error <= 5e-6, `the magnitudes of ${slot} differ by ${error}`);
    const [got, wanted] = key(slot).map(numbers) as [Float32Array, Float32Array];
    const different = Array.from(got).filter((code, i) => code !== wanted[i]).length;
    assert.ok(different <= 4, `${different} of ${got.length} codes of ${slot} differ`);
    codes += got.length;
  }
  assert.equal(codes, 2 * 61 * 69);
  for (const parameter of trained.values()) parameter.dispose();
});

test('8 bits: the fused update is that of plain operators, one block and many, whole and cut off, from nothing and from states', () => {
  using _ = scope();
  using generator = new Generator(5);
  const settings = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0 };
  let codes = 0;
  for (const shape of [[1], [7], [256], [3, 300], [17, 31, 9]]) {
    const random = () => {
      const magnitude = ops.exp(ops.mulScalar(ops.randn(shape, { generator }), 2));
      return ops.mul(ops.randn(shape, { generator }), magnitude);
    };
    const parameter = random();
    const count = parameter.shape.reduce((a, b) => a * b, 1);
    const blocks = [Math.ceil(count / 256)];
    const trained = () => ({
      key: 'x',
      parameter: ops.clone(parameter),
      slots: {
        exp_avg: ops.zeros(shape, { dtype: 'uint8' }),
        exp_avg_max: ops.zeros(blocks),
        exp_avg_sq: ops.zeros(shape, { dtype: 'uint8' }),
        exp_avg_sq_max: ops.zeros(blocks),
        step: ops.zeros([]),
      },
    });
    const [fused, composite] = [trained(), trained()];
    for (let step = 1; step <= 6; step++) {
      // Gradients of different size, and in the fourth step none.
      const grad = ops.mulScalar(random(), step === 4 ? 0 : 10 ** (step - 4));
      for (const [each, update] of [
        [fused, updateFused],
        [composite, updateComposite],
      ] as const) {
        ops.fill_(each.slots.step, step);
        update([{ ...each, grad }], { lr: 0.01, weightDecay: 0.1 }, settings);
      }
      assert.ok(
        relativeError(numbers(fused.parameter), numbers(composite.parameter)) <= 1e-6,
        `${shape}, step ${step}`,
      );
    }
    for (const slot of ['exp_avg', 'exp_avg_sq'] as const) {
      const [a, b] = [fused, composite].map((each) => Array.from(numbers(each.slots[slot])));
      const different = a!.filter((code, i) => code !== b![i]).length;
      assert.ok(different <= count / 500, `${different} of ${count} codes of ${slot} differ`);
      codes += count;
    }
  }
  const zero = { parameter: ops.ones([300]), grad: ops.zeros([300]) };
  const slots = {
    exp_avg: ops.zeros([300], { dtype: 'uint8' }),
    exp_avg_max: ops.zeros([2]),
    exp_avg_sq: ops.zeros([300], { dtype: 'uint8' }),
    exp_avg_sq_max: ops.zeros([2]),
    step: ops.ones([]),
  };
  for (const update of [updateFused, updateComposite]) {
    update([{ key: 'zero', ...zero, slots }], { lr: 0.01, weightDecay: 0 }, settings);
    assert.deepEqual([...new Set(numbers(zero.parameter))], [1], 'without any gradient nothing moves');
  }
  assert.equal(codes, 2 * (1 + 7 + 256 + 900 + 17 * 31 * 9));
});

test('8 bits: the fused update refuses what it cannot compute with', () => {
  using _ = scope();
  const parameter = ops.ones([300]);
  const state = (bytes = 300, blocks = 2) => ({
    exp_avg: ops.zeros([bytes], { dtype: 'uint8' }),
    exp_avg_max: ops.zeros([blocks]),
  });
  const run = (fields: { parameter?: Tensor; grad?: Tensor; state?: ReturnType<typeof state> }) => {
    const { exp_avg, exp_avg_max } = fields.state ?? state();
    const slots = { exp_avg, exp_avg_max, exp_avg_sq: exp_avg, exp_avg_sq_max: exp_avg_max, step: ops.ones([]) };
    const trained = { key: 'x', parameter: fields.parameter ?? parameter, grad: fields.grad ?? ops.ones([300]), slots };
    updateFused([trained], { lr: 1, weightDecay: 0 }, { beta1: 0.9, beta2: 0.9, eps: 1e-8, weight_decay: 0 });
  };
  const trainable = ops.ones([300]);
  trainable.requiresGrad = true;
  assert.throws(() => run({ parameter: trainable }), /a parameter gets no gradient from this operator/);
  noGrad(() => run({ parameter: trainable }));
  assert.throws(() => run({ parameter: ops.t(ops.ones([20, 15])), grad: ops.ones([15, 20]) }), /must be contiguous/);
  assert.throws(() => run({ parameter: ops.ones([300], { dtype: 'float64' }) }), /must be float32/);
  assert.throws(() => run({ grad: ops.ones([299]) }), /must have its parameter's shape/);
  assert.throws(() => run({ state: state(299) }), /a byte for each number/);
  assert.throws(() => run({ state: state(300, 3) }), /a magnitude for each block/);
});

/** Every optimizer, with settings that fit these shapes. */
const choices: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  galore: { rank: 3, update_proj_gap: 3 },
  adafactor: { beta1: 0.9 },
};

test('every optimizer: its state is what it announces, and a run from a copy of it goes on bit for bit', (t) => {
  let states = 0;
  for (const [type, { slots, config }] of Object.entries(optimizers)) {
    using _ = scope();
    const { lr, parameters, setGradients } = reference();
    const choice = { type, ...choices[type] };
    const settings = config.parse(choices[type] ?? {});
    const trained = parameters();
    using optimizer = createOptimizer(choice, trained, { inBlock });
    const steps = (of: ReadonlyMap<string, Tensor>, by: typeof optimizer, from: number, to: number) => {
      for (let step = from; step < to; step++) {
        setGradients(of, step);
        by.step(lr);
      }
    };
    steps(trained, optimizer, 0, 5);
    const announced = [...trained].flatMap(([key, { shape }]) => {
      const wanted =
        key === 'layers.1.never' ? {} : (slots as (...a: unknown[]) => object)(shape, settings, inBlock(key));
      return Object.entries(wanted).map(([slot, { dtype, shape }]) => `${key}.${slot} ${dtype} ${shape.join()}`);
    });
    const held = [...optimizer.state].map(([name, { dtype, shape }]) => `${name} ${dtype} ${shape.join()}`);
    assert.deepEqual(held.sort(), announced.sort(), type);
    states += held.length;

    const copies = new Map(
      [...trained].map(([key, tensor]) => [key, noGrad(() => detachFromScopes(ops.clone(tensor)))]),
    );
    for (const copy of copies.values()) copy.requiresGrad = true;
    using resumed = createOptimizer(choice, copies, { inBlock });
    resumed.prepare(optimizer.state.keys());
    noGrad(() => {
      for (const [name, tensor] of resumed.state) ops.copy_(tensor, optimizer.state.get(name)!);
    });
    optimizer.release(['layers.0.wide']);
    resumed.release(['layers.0.wide']);
    assert.ok(![...optimizer.state.keys()].some((name) => name.startsWith('layers.0.wide.')), type);
    steps(trained, optimizer, 5, 11);
    steps(copies, resumed, 5, 11);
    for (const [key, tensor] of trained) assert.ok(ops.equal(tensor, copies.get(key)!), `${type}: ${key}`);
    for (const tensor of [...trained.values(), ...copies.values()]) tensor.dispose();
  }
  t.diagnostic(`${Object.keys(optimizers).length} optimizers, ${states} tensors of state`);
  assert.ok(states > 100);
});

test('settings that an optimizer does not have, or that do not fit, are refused with what would do', () => {
  using _ = scope();
  const parameters = new Map([
    ['layers.0.a', ops.ones([8, 5])],
    ['layers.0.b', ops.ones([3, 9])],
    ['layers.0.norm', ops.ones([2])],
    ['embed', ops.ones([2, 2])],
  ]);
  const make = (choice: OptimizerChoice, of = parameters) => createOptimizer(choice, of, { inBlock });
  const refused = (choice: OptimizerChoice, message: RegExp, hint: RegExp, of = parameters) =>
    assert.throws(
      () => make(choice, of),
      (error: Error & { hint?: string }) => message.test(error.message) && hint.test(error.hint ?? ''),
      choice.type,
    );
  refused({ type: 'adam' }, /there is no optimizer 'adam'/, /adamw, adamw8bit, sgd/);
  refused(
    { type: 'galore', rank: 6 },
    /rank 6 is larger than the smaller side of 2 of 2 matrices: layers\.0\.a \[8, 5\], layers\.0\.b \[3, 9\]/,
    /largest rank that works here is 3/,
  );
  refused({ type: 'galore', rank: 4 }, /of 1 of 2 matrices: layers\.0\.b/, /is 3;/);
  refused(
    { type: 'galore', rank: 1 },
    /projects the matrices of layers, and none is trained/,
    /adamw/,
    new Map([['embed', ops.ones([2, 2])]]),
  );
  make({ type: 'galore', rank: 3 }).step(0.1);
  assert.throws(
    () => make({ type: 'sgd', beta1: 0.9 }),
    /unknown key 'beta1' \(allowed: momentum, nesterov, weight_decay\)/,
  );
  assert.throws(() => make({ type: 'sgd', momentum: 0, nesterov: true }), /nesterov: needs a momentum above 0/);
});
