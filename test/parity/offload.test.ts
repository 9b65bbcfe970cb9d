/** Runs with weights and optimizer state on the disk against the same runs in memory: the same losses and results, bit for bit. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { Session } from '../../src/session/index.ts';
import { parseRecipe, runTraining, type TrainEvent, type TrainResult } from '../../src/train/index.ts';
import { randomLlama } from '../samples/llama.ts';
import { alone, assertLosses, close, lora, recipe, together } from '../samples/ranks-runs.ts';
import { temporary } from '../support.ts';

before(() => startEngine());
after(close);

/** Large enough that weights and moments do not stay in memory for being small. */
const sizes = { width: 128, inner: 256, layers: 2, vocab: 160 } as const;
const offload = { weights: true, optimizer: true };

const trained: readonly (readonly [name: string, more: object, train?: object])[] = [
  ['lora', { method: { ...lora, r: 16 } }],
  ['lora on nf4', { method: lora, quantize: 'nf4' }],
  ['full', { method: { type: 'full' } }, { lr: 1e-4 }],
  ['full, adamw8bit', { method: { type: 'full' } }, { lr: 1e-4, optimizer: { type: 'adamw8bit' } }],
  ['layers in turn', { method: [{ type: 'full' }, { type: 'layerwise', policy: 'badam', every: 2 }] }, { lr: 1e-4 }],
  ['rounding the base', { method: [{ type: 'qat', weight: 'int8', group_size: 32, over: 'base' }, lora] }],
  ['PiSSA', { method: { ...lora, init_lora_weights: 'pissa' } }],
];

/** The files that a run has written, by name. */
const written = ({ adapter }: TrainResult) =>
  new Map(
    readdirSync(adapter)
      .filter((name) => name.endsWith('.safetensors'))
      .map((name) => [name, readFileSync(join(adapter, name))]),
  );

/** @returns how many bytes were compared */
function assertSame(got: TrainResult, want: TrainResult, what: string): number {
  assert.deepEqual(got.losses, want.losses, what);
  let bytes = 0;
  const files = written(got);
  for (const [name, content] of written(want)) {
    assert.ok(files.get(name)?.equals(content), `${what}: ${name}`);
    bytes += content.length;
  }
  return bytes;
}

const few = { steps: 6, keep_activations: false };

test('one process: every method has the bits of the run in memory', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  let [bytes, plans] = [0, 0];
  for (const [name, more, train] of trained) {
    const input = (to: string, settings: object) =>
      recipe(join(dir.path, name, to), { model, ...more }, { ...few, ...train, ...settings });
    const inMemory = await alone(input('memory', {}));
    await using session = new Session();
    const running = session.train(input('disk', { offload }));
    for await (const event of running) {
      if (event.type !== 'memory') continue;
      if (name === 'lora') assert.deepEqual([event.weightsOnDiskMb, event.weightsMb], [1, 0]);
      if (name === 'full')
        assert.deepEqual([event.weightsOnDiskMb, event.optimizerOnDiskMb, event.optimizerMb], [0, 3, 0]);
      plans++;
    }
    bytes += assertSame(await running, inMemory, name);
  }
  assert.ok(bytes > 1e6, `${bytes} bytes of results`);
  assert.equal(plans, trained.length);
});

test('several processes have on the disk what they have in memory', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  let cases = 0;
  for (const [name, more, train] of trained.filter(([each]) => ['lora', 'full'].includes(each)))
    for (const stage of [0, 1, 2, 3]) {
      const what = `${name}, stage ${stage}`;
      const input = (to: string, settings: object) =>
        recipe(join(dir.path, what, to), { model, ...more }, { ...few, ...train, zero: { stage }, ...settings });
      const { result: inMemory } = await together(2, input('memory', {}));
      const { result: onDisk, events } = await together(2, input('disk', { offload }));
      const notes = events.flatMap((event) => (event.type === 'warning' ? [event.message] : []));
      assertLosses(onDisk, inMemory, what);
      assert.ok(
        notes.some((note) => note.startsWith('frozen weights stay in files')),
        notes.join(),
      );
      cases++;
    }
  assert.equal(cases, 8);
});

test('a run that ended in between goes on with its state in a file, or in memory again', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  const input = (to: string, settings: object) => {
    const fields = recipe(join(dir.path, to), { model, method: { type: 'full' } }, { ...few, lr: 1e-4, ...settings });
    return { recipe: parseRecipe({ ...fields, run: { ...fields.run, checkpoint_every: 2 } }) };
  };
  const whole = await runTraining(input('whole', {}), () => {});
  const endedAt = (event: TrainEvent) => {
    if (event.type === 'step' && event.step === 5) throw new Error('ended');
  };
  let bytes = 0;
  for (const [i, [first, then]] of [
    [{ offload }, { offload }],
    [{ offload }, {}],
    [{}, { offload }],
  ].entries()) {
    await assert.rejects(runTraining(input(`${i}`, first!), endedAt), /ended/);
    const rest = await runTraining(input(`${i}`, then!), () => {});
    assert.equal(rest.resumedFrom, 4);
    bytes += assertSame(rest, whole, `${i}`);
  }
  assert.ok(bytes > 4e6, `${bytes} bytes`);
});

test('a run does not start where the disk has no room, or no place for the files', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  mkdirSync(join(dir.path, 'taken'));
  writeFileSync(join(dir.path, 'taken', 'file'), '');
  const input = recipe(
    join(dir.path, 'run'),
    { model },
    { ...few, offload: { ...offload, dir: join(dir.path, 'taken', 'file') } },
  );
  await assert.rejects(alone(input), /taken\/file/);
});
