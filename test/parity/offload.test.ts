/** Runs with weights and optimizer state on the disk against the same runs in memory: the same losses and results, bit for bit. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { Session } from '../../src/session/index.ts';
import type { RecipeInput, TrainEvent, TrainResult } from '../../src/train/index.ts';
import { randomLlama } from '../samples/llama.ts';
import { alone, assertLosses, interruptedAt, launched, lora, recipe } from '../samples/ranks-runs.ts';
import { temporary } from '../support.ts';

before(() => startEngine());

/** Large enough that weights and moments do not stay in memory for being small. */
const sizes = { width: 96, inner: 192, layers: 2, vocab: 160 } as const;
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
  let [bytes, onDisk] = [0, 0];
  for (const [name, more, train] of trained) {
    const input = (to: string, settings: object) =>
      recipe(join(dir.path, name, to), { model, ...more }, { ...few, ...train, ...settings });
    const inMemory = await alone(input('memory', {}));
    await using session = new Session();
    const running = session.train(input('disk', { offload }));
    for await (const event of running) {
      if (event.type !== 'memory') continue;
      assert.equal(event.weightsOnDiskMb > 0, !/full|layers/.test(name), name);
      onDisk += event.weightsOnDiskMb + event.optimizerOnDiskMb;
    }
    bytes += assertSame(await running, inMemory, name);
  }
  assert.ok(bytes > 1e6, `${bytes} bytes of results`);
  assert.ok(onDisk > 2, `${onDisk} MB`);
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
      const inMemory = await launched({ recipe: input('memory', {}), ranks: 2 });
      const notes: string[] = [];
      const onDisk = await launched({ recipe: input('disk', { offload }), ranks: 2 }, (event: TrainEvent) => {
        if (event.type === 'warning') notes.push(event.message);
      });
      assertLosses(onDisk, inMemory, what);
      assert.ok(notes.some((note) => note.startsWith('frozen weights stay in files')), notes.join());
      cases++;
    }
  assert.equal(cases, 8);
});

test('a run that was stopped goes on with its state in a file, or in memory again', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  const input = (to: string, settings: object): RecipeInput => {
    const whole = recipe(join(dir.path, to), { model, method: { type: 'full' } }, { ...few, lr: 1e-4, ...settings });
    return { ...whole, run: { ...whole.run, checkpoint_every: 2 } };
  };
  const whole = await alone(input('whole', {}));
  for (const [first, then] of [
    [{ offload }, { offload }],
    [{ offload }, {}],
    [{}, { offload }],
  ] as const) {
    const to = JSON.stringify([first, then]).replace(/\W+/g, '-');
    const stop = new AbortController();
    await using session = new Session();
    const running = session.train(input(to, first), { signal: stop.signal });
    const listen = interruptedAt(3, () => stop.abort());
    await assert.rejects(async () => {
      for await (const event of running) listen(event);
      await running;
    });
    const rest = await alone(input(to, then));
    assert.ok(rest.resumedFrom! >= 3);
    assertSame(rest, whole, to);
  }
});

test('a run does not start where the disk has no room, or no place for the files', async () => {
  using dir = temporary();
  const model = randomLlama(join(dir.path, 'model'), sizes);
  mkdirSync(join(dir.path, 'taken'));
  writeFileSync(join(dir.path, 'taken', 'file'), '');
  const input = recipe(join(dir.path, 'run'), { model }, { ...few, offload: { ...offload, dir: join(dir.path, 'taken', 'file') } });
  await assert.rejects(alone(input), /taken\/file/);
});
