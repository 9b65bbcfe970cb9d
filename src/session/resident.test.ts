import assert from 'node:assert/strict';
import { copyFileSync, cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { golden } from '../../test/support.ts';
import { loadAdapter } from '../adapters/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { loadModel } from '../models/index.ts';
import { type Model, outputOf, packTokens } from '../nn/index.ts';
import { currentDevice, noGrad, onDevice, scope } from '../tensor/index.ts';
import { ResidentModel } from './resident.ts';

before(() => startEngine());

const logits = (model: Model): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return (outputOf(model, packTokens([[3, 1, 4, 1, 5]])).data() as Float32Array).slice();
  });

const base = golden('models', 'llama2');
const [first, second] = ['llama2-embed-tokens', 'llama2-modules-to-save'].map((name) => golden('lora', name)) as [
  string,
  string,
];

/** The logits of a model that is loaded for this adapter alone. */
function fresh(adapter?: string): Float32Array {
  using model = loadModel(base);
  using _ = adapter ? loadAdapter(model, adapter) : undefined;
  return logits(model);
}

test('one model for all adapters of a base; each gives what it gives alone, in any order', () => {
  const handles = currentEngine().native.memory().handles;
  const alone = new Map([undefined, first, second].map((adapter) => [adapter, fresh(adapter)]));
  assert.notDeepEqual(alone.get(first), alone.get(undefined));
  assert.notDeepEqual(alone.get(first), alone.get(second));
  {
    using resident = new ResidentModel(base, 'none');
    resident.addAdapter('first', first);
    const model = resident.use();
    for (const adapter of [undefined, first, second, 'first', undefined, second, undefined]) {
      assert.equal(resident.use(adapter), model);
      assert.deepEqual(logits(model), alone.get(adapter === 'first' ? first : adapter), adapter);
    }
    resident.release();
    assert.equal(currentEngine().native.memory().handles, handles);
    assert.deepEqual(logits(resident.use('first')), alone.get(first));
  }
  assert.equal(currentEngine().native.memory().handles, handles);
});

test('a turn has new tensors on the device of its model, also where turns of others come between', async () => {
  const devices = ['meta', 'cpu', 'meta'];
  const models = devices.map((device) => onDevice(device, () => new ResidentModel(base, 'none')));
  const turns = models.flatMap((model) => [model.inTurn(() => currentDevice()), model.inTurn(() => currentDevice())]);
  assert.deepEqual(
    await Promise.all(turns),
    devices.flatMap((device) => [device, device]),
  );
  await assert.rejects(
    models[0]!.inTurn(() => assert.fail('of the turn')),
    /of the turn/,
  );
  assert.equal(currentDevice(), 'cpu');
});

test('an adapter whose files were written again is loaded again', () => {
  using dir = temporary();
  const adapter = join(dir.path, 'adapter');
  cpSync(first, adapter, { recursive: true });
  using resident = new ResidentModel(base, 'none');
  const model = resident.use(adapter);
  const before = logits(model);
  for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
    copyFileSync(join(second, name), join(adapter, name));
  assert.equal(resident.use(adapter), model);
  assert.notDeepEqual(logits(model), before);
});

test('an adapter of several methods is loaded again when files in one of its folders were written', () => {
  using dir = temporary();
  const adapter = join(dir.path, 'adapter');
  cpSync(first, join(adapter, '0-lora'), { recursive: true });
  writeFileSync(join(adapter, 'graft.json'), JSON.stringify({ parts: ['0-lora'] }));
  using resident = new ResidentModel(base, 'none');
  const before = logits(resident.use(adapter));
  for (const name of ['adapter_config.json', 'adapter_model.safetensors'])
    copyFileSync(join(second, name), join(adapter, '0-lora', name));
  assert.notDeepEqual(logits(resident.use(adapter)), before);
});

test('an adapter that does not fit leaves the model usable', () => {
  using resident = new ResidentModel(base, 'none');
  const model = resident.use(first);
  assert.throws(() => resident.use(golden('lora', 'qwen2-all-linear')), /does not fit this base/);
  assert.equal(resident.use(first), model);
  assert.deepEqual(logits(model), fresh(first));
});

test('of many adapters the one that was used longest ago is detached', () => {
  using dir = temporary();
  const copies = Array.from({ length: 20 }, (_, i) => join(dir.path, `adapter-${i}`));
  for (const copy of copies) cpSync(first, copy, { recursive: true });
  const handles: number[] = [];
  using resident = new ResidentModel(base, 'none');
  for (const copy of copies) {
    resident.use(copy);
    handles.push(currentEngine().native.memory().handles);
  }
  assert.ok(handles[15]! > handles[14]!);
  assert.equal(handles[19], handles[15], 'sixteen at most');
  assert.deepEqual(logits(resident.use(copies[0])), fresh(first));
});
