/** What a run announces before it loads anything, against the peak memory of its process; the wide part is `npm run proof:memory`. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { fromWire } from '../../src/base/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import type { DoctorResult } from '../../src/session/index.ts';
import type { RunMemory, TrainEvent } from '../../src/train/index.ts';
import { randomLlama } from '../samples/llama.ts';
import { type MemoryCase, trainedMemory } from '../samples/memory-run.ts';
import { temporary } from '../support.ts';
import { graft } from './cli.ts';

const dir = temporary();
after(() => dir[Symbol.dispose]());
const vocab = 8000;
const model = join(dir.path, 'model');
before(async () => {
  await startEngine();
  randomLlama(model, { layers: 6, width: 512, inner: 1536, heads: 8, vocab, tied: true, dtype: 'bfloat16' });
});

const lora = { type: 'lora', r: 16, target_modules: 'all-linear' };
const cases: Readonly<Record<string, MemoryCase>> = {
  'lora, packed, several micro-batches': { method: lora, quantize: 'nf4', train: { micro_tokens: 500 } },
  'full, checkpointed': { method: { type: 'full' }, train: { gradient_checkpointing: true } },
};
/** What one and the same run takes more or less at another time: of so small a model, a tenth. */
const noiseMb = 16;
let held = 0;

/** The sum of the parts that are shown. */
const partsOf = ({ weightsMb, gradientsMb, optimizerMb, activationsMb, engineMb, apartMb }: RunMemory) =>
  weightsMb + gradientsMb + optimizerMb + activationsMb + engineMb - apartMb;

for (const [name, fields] of Object.entries(cases)) {
  test(`${name}: the peak is within 10 % of what was announced`, (t) => {
    const { memory, measuredMb, ratio } = trainedMemory(dir.path, { model, vocab }, { ...fields, steps: 2 });
    t.diagnostic(`${JSON.stringify(memory)}, measured ${measuredMb.toFixed(0)} MB: ${ratio.toFixed(3)}`);
    const apart = Math.abs(memory.totalMb - measuredMb);
    assert.ok(apart <= 0.1 * measuredMb + noiseMb, `announced ${memory.totalMb} MB, measured ${measuredMb}`);
    const [start] = readFileSync(join(dir.path, 'run', 'events.jsonl'), 'utf8').split('\n');
    const logged = fromWire(JSON.parse(start!)) as Extract<TrainEvent, { type: 'start' }>;
    assert.deepEqual(logged.memory, memory);
    assert.equal(partsOf(memory), memory.totalMb);
    // Exact: nothing of these is estimated.
    const numbers = logged.trainable * 4;
    assert.equal(memory.gradientsMb, Math.round(numbers / 2 ** 20));
    assert.equal(memory.optimizerMb, Math.round((2 * numbers) / 2 ** 20));
    const attached = memory.weightsMb - logged.weightBytes / 2 ** 20;
    const added = fields.method === lora ? numbers / 2 ** 20 : 0;
    assert.ok(Math.abs(attached - added) < 1, `${attached} MB beside the weights, of ${added}`);
    held++;
  });
}

/** What doctor finds, once. */
const found: { doctor?: DoctorResult } = {};
function doctor(): DoctorResult {
  if (!found.doctor) {
    const { status, stdout } = graft(dir.path, ['doctor', '--json', '--model', model]);
    assert.equal(status, 0);
    found.doctor = fromWire(JSON.parse(stdout)) as DoctorResult;
  }
  return found.doctor;
}

test('what is on the disk: a run takes as much less memory as doctor and plan say', (t) => {
  let compared = 0;
  for (const part of ['weights', 'optimizer'] as const) {
    const method = part === 'weights' ? lora : { type: 'full' };
    const fields = { method, train: { offload: { [part]: true }, micro_tokens: 500 }, steps: 2 };
    const { memory, measuredMb } = trainedMemory(dir.path, { model, vocab }, fields);
    t.diagnostic(`${part}: ${JSON.stringify(memory)}, measured ${measuredMb.toFixed(0)} MB`);
    const onDiskMb = memory.weightsOnDiskMb + memory.optimizerOnDiskMb;
    assert.ok(onDiskMb > 90, `${onDiskMb} MB on the disk`);
    const ofState = ({ weightsMb, gradientsMb, optimizerMb, weightsOnDiskMb, optimizerOnDiskMb }: typeof memory) => [
      ...[weightsMb, gradientsMb, optimizerMb, weightsOnDiskMb, optimizerOnDiskMb],
    ];
    const [listed, ...others] = doctor().choices!.filter(({ offload }) => offload.includes(part));
    assert.deepEqual([ofState(listed!.memory!), others], [ofState(memory), []]);
    const plan = graft(dir.path, ['plan', 'recipe.yaml', '--ranks', '1', '--json']);
    assert.equal(plan.status, 0, plan.stderr);
    const [stage] = JSON.parse(plan.stdout).stages;
    const mebibytes = (bytes: number) => Math.round(bytes / 2 ** 20);
    assert.equal(mebibytes(stage.disk_bytes), onDiskMb);
    assert.ok(
      Math.abs(mebibytes(stage.weight_bytes + stage.optimizer_bytes) - memory.weightsMb - memory.optimizerMb) <= 1,
    );
    // While memory is not short, the pages of a mapped file are in the system's cache, and count as memory of the process too.
    const ratio = (memory.totalMb + onDiskMb) / measuredMb;
    assert.ok(
      ratio > 0.85 && ratio < 1.15,
      `announced ${memory.totalMb} MB and ${onDiskMb} on the disk, measured ${measuredMb}`,
    );
    compared++;
  }
  assert.equal(compared, 2);
});

test('doctor lists ways of training with what they take, and names those that the model refuses', () => {
  const { choices, freeBytes } = doctor();
  const possible = choices!.filter((choice) => choice.memory);
  assert.ok(possible.length >= 8 && possible.length === choices!.length, `${possible.length} of ${choices!.length}`);
  for (const { memory } of possible) assert.equal(partsOf(memory!), memory!.totalMb);
  for (const { memory, fits } of possible) assert.equal(fits, memory!.totalMb * 2 ** 20 <= freeBytes);
  const total = (fields: Partial<(typeof possible)[number]>) => {
    const found = possible.find((choice) =>
      Object.entries(fields).every(([key, value]) => choice[key as 'quantize'] === value),
    );
    return found!.memory!.totalMb;
  };
  const none = { optimizer: 'adamw', gradientCheckpointing: false, quantize: 'none' } as const;
  assert.ok(total({ ...none, gradientCheckpointing: true }) < total(none));
  const loraChoices = possible.filter(
    ({ method, gradientCheckpointing, offload }) =>
      method[0]!.type === 'lora' && !gradientCheckpointing && offload.length === 0,
  );
  assert.deepEqual(
    loraChoices.map(({ quantize }) => quantize),
    ['none', 'keep', 'int8', 'nf4'],
  );
  const weights = loraChoices.map(({ memory }) => memory!.weightsMb);
  assert.deepEqual(
    weights,
    weights.toSorted((a, b) => b - a),
  );
  const table = graft(dir.path, ['doctor', '--model', model]).stdout;
  const onDisk = ['full, adamw, offload optimizer', 'lora r=16, adamw, offload weights'];
  for (const word of ['full, adamw', 'lora r=16, adamw, checkpointing', 'nf4', 'optimizer', 'fits', ...onDisk])
    assert.ok(table.includes(word), word);
  const shown = table
    .split('\n')
    .flatMap((line) => /^(.*?)((?: +-?\d+){9}) +(?:fits|does not fit)$/.exec(line)?.[2] ?? []);
  assert.equal(shown.length, possible.length);
  for (const line of shown) {
    const [, ...parts] = line.trim().split(/ +/).map(Number);
    const [total] = parts.splice(-2); // the last is what is on the disk
    assert.equal(
      parts.reduce((a, b) => a + b),
      total,
      line,
    );
  }
});

test('every run was compared', () => assert.equal(held, 2));
