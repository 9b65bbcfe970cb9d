/** A method on a quantised base gives the same logits, losses and gradients as on the same weights dequantised. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type Method, methods } from '../../src/methods/index.ts';
import { loadModel, saveModel } from '../../src/models/index.ts';
import { type Model, namedTensors } from '../../src/nn/index.ts';
import { manualSeed, ops, scope } from '../../src/tensor/index.ts';
import { batchLoss } from '../../src/train/index.ts';
import { logitsOf, numbers, relativeError, temporary } from '../support.ts';
import { bases } from './bases.ts';
import { methodCases, perturb } from './cases.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

let compared = 0;

for (const [name, cases] of Object.entries(methodCases)) {
  const method = methods[name as keyof typeof methods] as unknown as Method<unknown>;
  for (const base of bases.filter((b) => b.packed && !cases.refuses(b, 'defaults'))) {
    const onBoth = (config: string) =>
      !cases.refuses(base, config) && !cases.refuses({ ...base, name: 'dense', packed: false }, config);
    test(`${name} on ${base.name} equals ${name} on the dequantised base`, () => {
      using dir = temporary();
      using packed = base.load();
      saveModel(packed, join(dir.path, 'dense'), dir.path);
      using dense = loadModel(join(dir.path, 'dense'));
      const stored = (model: Model) => [...namedTensors(model.root)].filter(([, t]) => t.dtype === 'uint8').length;
      assert.ok(stored(packed) > 10 && stored(dense) === 0);

      for (const [config, given] of Object.entries(cases.configs).filter(([config]) => onBoth(config))) {
        using _ = scope();
        const fields = typeof given === 'function' ? given(base) : given;
        const [got, want] = [packed, dense].map((model) => {
          using adapter = method.attach(model, method.config.parse(fields), 5, savedAdapters(model));
          perturb(adapter, 6);
          const batch = base.batch(model);
          // Many rows, a few and one: other kernels compute each.
          const rows = [13, 3, 1].map((n) => logitsOf(model, batch.ids.subarray(0, n)));
          manualSeed(9);
          const loss = batchLoss(model, batch);
          loss.backward();
          const gradients = [...adapter.parameters].map(([key, parameter]) => {
            const gradient = numbers(ops.contiguous(parameter.grad!));
            parameter.grad = undefined;
            return [key, gradient] as const;
          });
          return { rows, loss: loss.item(), gradients };
        }) as [Outcome, Outcome];
        want.rows.forEach((row, r) => {
          const error = relativeError(got.rows[r]!, row);
          assert.ok(error <= 1e-5, `${config}: the logits differ by ${error}`);
        });
        assert.ok(Math.abs(got.loss / want.loss - 1) <= 2e-6, `${config}: the loss differs`);
        for (const [i, [key, gradient]] of want.gradients.entries()) {
          const error = relativeError(got.gradients[i]![1], gradient);
          assert.ok(error <= 5e-5, `${config}: the gradient of ${key} differs by ${error}`);
          compared++;
        }
      }
    });
  }
}

interface Outcome {
  readonly rows: Float32Array[];
  readonly loss: number;
  readonly gradients: (readonly [string, Float32Array])[];
}

test('enough gradients were compared', (t) => {
  t.diagnostic(`${compared} gradients`);
  assert.ok(compared > 500);
});
