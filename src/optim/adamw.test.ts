/** AdamW and clipping where some parameters, or all, have no gradient in a step: what torch does (tools/golden/make_optimizer.py). */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { golden, numbers, readTensors, relativeError } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { detachFromScopes, ops, scope, Tensor } from '../tensor/index.ts';
import { clipGradients } from './clip.ts';
import { createOptimizer } from './registry.ts';

before(() => startEngine());

test('a parameter without a gradient keeps its value, moments and step count, as in torch, also where a whole group has none', () => {
  using _ = scope();
  const { tensors, metadata } = readTensors(golden('optimizer', 'adamw.safetensors'));
  const { settings, tolerance } = JSON.parse(String(metadata.get('provenance')));
  const { lr, beta1, beta2, eps, weight_decay, max_grad_norm } = settings;
  const names = [...tensors.keys()].flatMap((key) => (key.startsWith('start.') ? [key.slice('start.'.length)] : []));
  const parameters = new Map(names.map((name) => [name, detachFromScopes(ops.clone(tensors.get(`start.${name}`)!))]));
  for (const parameter of parameters.values()) parameter.requiresGrad = true;
  using optimizer = createOptimizer({ type: 'adamw', beta1, beta2, eps, weight_decay }, parameters);
  const norms = numbers(tensors.get('norms')!);
  let absent = 0;
  norms.forEach((wanted, step) => {
    for (const [name, parameter] of parameters) {
      const grad = tensors.get(`${step}.grad.${name}`);
      parameter.grad = grad && ops.clone(grad);
      if (!grad) absent++;
    }
    const norm = clipGradients(parameters.values(), max_grad_norm);
    assert.ok(Math.abs(norm - wanted) <= 1e-6 * wanted, `the norm of step ${step} is ${norm}, not ${wanted}`);
    optimizer.step(lr);
    for (const parameter of parameters.values()) parameter.grad = undefined;
  });
  let compared = 0;
  const close = (got: Tensor, key: string) => {
    const error = relativeError(numbers(got), numbers(tensors.get(key)!));
    assert.ok(error <= tolerance, `${key} differs by ${error}`);
    compared++;
  };
  for (const [name, parameter] of parameters) {
    close(parameter, `final.${name}`);
    for (const key of ['exp_avg', 'exp_avg_sq', 'step']) {
      const got = optimizer.state.get(`${name}.${key}`);
      if (tensors.has(`${key}.${name}`)) close(got!, `${key}.${name}`);
      else assert.equal(got, undefined, `${key} of ${name}, which never had a gradient`);
    }
    parameter.dispose();
  }
  assert.deepEqual({ steps: norms.length, absent, compared }, { steps: 6, absent: 16, compared: 5 + 4 * 3 });
});

test('a step without any gradient, and one without parameters, change nothing', () => {
  using _ = scope();
  const parameter = Tensor.from(Float32Array.of(1, -2), [1, 2]);
  parameter.requiresGrad = true;
  using optimizer = createOptimizer({ type: 'adamw', weight_decay: 0.5 }, new Map([['weight', parameter]]));
  optimizer.step(0.1);
  assert.deepEqual([...numbers(parameter)], [1, -2]);
  assert.equal(clipGradients([parameter], 1), 0);
  using empty = createOptimizer({ type: 'adamw' }, new Map());
  empty.step(0.1);
});

test('what is kept for a parameter appears with its gradient, goes when it is released, and begins anew; a checkpoint decides what there is', () => {
  using _ = scope();
  const parameters = new Map(
    ['a', 'b'].map((name) => {
      const parameter = Tensor.from(Float32Array.of(1, -2), [1, 2]);
      parameter.requiresGrad = true;
      return [name, parameter] as const;
    }),
  );
  using optimizer = createOptimizer({ type: 'adamw' }, parameters);
  const names = () => [...optimizer.state.keys()];
  const of = (key: string) => ['exp_avg', 'exp_avg_sq', 'step'].map((slot) => `${key}.${slot}`);
  const stepWith = (...keys: string[]) => {
    for (const key of keys) parameters.get(key)!.grad = Tensor.from(Float32Array.of(1, 1), [1, 2]);
    optimizer.step(0.1);
    for (const parameter of parameters.values()) parameter.grad = undefined;
  };
  assert.deepEqual(names(), []);
  stepWith('a');
  assert.deepEqual(names(), of('a'));
  stepWith('a', 'b');
  optimizer.release(['a']);
  assert.deepEqual(names(), of('b'));
  stepWith('a', 'b');
  assert.equal(optimizer.state.get('a.step')!.item(), 1);
  assert.equal(optimizer.state.get('b.step')!.item(), 2);
  optimizer.prepare(of('a'));
  assert.deepEqual(names(), of('a'));
});
