/**
 * Twenty steps of layer-wise training against LMFlow's LISA, BAdam's own optimizer, and torch's AdamW over switched parameters
 * (tools/golden/make_layerwise.py), from recipe to files.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { golden, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

interface Run {
  readonly name: string;
  readonly model: string;
  readonly lora?: true;
  readonly weight_decay?: number;
  /** The parts that trained, for each step. */
  readonly trained: readonly (readonly (number | string)[])[];
  /** Fields of the policy. */
  readonly [field: string]: unknown;
}

const { runs, lr } = JSON.parse(readFileSync(golden('layerwise', 'runs.json'), 'utf8')) as {
  runs: readonly Run[];
  lr: number;
};
const seen = { runs: 0, losses: 0, norms: 0, tensors: 0, switches: 0 };
const only = <T extends TrainEvent['type']>(events: readonly TrainEvent[], type: T) =>
  events.filter((event): event is Extract<TrainEvent, { type: T }> => event.type === type);

for (const run of runs) {
  test(run.name, async () => {
    using _ = scope();
    using dir = temporary();
    const { name, model, lora, weight_decay = 0, trained, loss: _loss, float32_error: _error, ...policy } = run;
    const { tensors, metadata } = readTensors(golden('layerwise', `${name}.safetensors`));
    const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: Record<string, number> };
    const method = lora ? { type: 'lora', r: 4, lora_alpha: 8, target_modules: 'all-linear' } : { type: 'full' };
    const recipe = parseRecipe({
      model: golden('models', model),
      ...(lora && { adapter: golden('train', 'start') }),
      method: [method, { type: 'layerwise', ...policy }],
      data: { train: golden('qat', 'batches.jsonl'), format: 'batches' },
      train: { lr, weight_decay, micro_tokens: 768, threads: 1, precision: 'float32' },
      run: { dir: dir.path },
    });
    const events: TrainEvent[] = [];
    const result = await runTraining({ recipe }, (event) => events.push(event));

    const changes = only(events, 'layers');
    for (const [step, parts] of trained.entries()) {
      const now = changes.findLast((event) => event.step <= step + 1)!;
      assert.deepEqual(now.trained, parts, `step ${step + 1}`);
    }
    seen.switches += changes.length;
    const steps = only(events, 'step');
    assert.equal(steps.length, 20);
    for (const [i, want] of numbers(tensors.get('loss')!).entries()) {
      const error = Math.abs(steps[i]!.loss / want - 1);
      assert.ok(error <= Math.min(1e-3, tolerance.loss!), `the loss of step ${i + 1} differs by ${error}`);
      seen.losses++;
    }
    for (const [i, want] of numbers(tensors.get('grad_norm')!).entries()) {
      const error = Math.abs(steps[i]!.gradNorm / want - 1);
      assert.ok(error <= tolerance.grad_norm!, `the gradient norm of step ${i + 1} differs by ${error}`);
      seen.norms++;
    }
    const file = lora ? 'adapter_model.safetensors' : 'model.safetensors';
    const saved = readTensors(join(result.adapter, file)).tensors;
    for (const [key, want] of tensors) {
      if (!key.startsWith('final.')) continue;
      const error = relativeError(numbers(saved.get(key.slice(6))!), numbers(want));
      assert.ok(error <= tolerance.final!, `${key} differs by ${error}`);
      seen.tensors++;
    }
    seen.runs++;
  });
}

test('so much was compared', (t) => {
  t.diagnostic(JSON.stringify(seen));
  assert.deepEqual(seen, { runs: 13, losses: 260, norms: 260, tensors: 41, switches: 61 });
});
