/** Sessions that compute with the weights of one model. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { golden, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { loadModel, SharedWeights } from '../models/index.ts';
import { heldTensors } from '../nn/index.ts';
import { scope, type Tensor, takeTensors } from '../tensor/index.ts';
import { Session } from './index.ts';

test('nothing is shared but what the model holds: weights that are packed while they are loaded leave no copy', async () => {
  await startEngine();
  using _ = scope();
  using weights = new SharedWeights();
  using model = loadModel(golden('families', 'gpt2'), { quantize: 'int8', weights });
  using again = loadModel(golden('families', 'gpt2'), { quantize: 'int8', weights });
  const held = [...heldTensors(model.root)];
  const others = [...heldTensors(again.root)];
  for (const [i, [name, tensor]] of held.entries()) assert.deepEqual(others[i]![1].bytes(), tensor.bytes(), name);
  const bytes = (tensors: Iterable<Tensor>) => Iterator.from(tensors).reduce((sum, { nbytes }) => sum + nbytes, 0);
  assert.ok(bytes(weights.entries.values()) <= bytes(new Set(held.map(([, tensor]) => tensor))));
  assert.ok([...weights.entries.keys()].some((name) => name.includes('transposed')));
  assert.ok(held.length > 20, `${held.length} tensors`);
});

const rows = [{ text: 'one two' }, { text: 'three' }];

test('a model of another session computes with the same weights, also when that one is gone', async () => {
  using dir = temporary();
  const path = tinyModel(join(dir.path, 'model'));
  const session = new Session();
  const model = await session.load(path);
  await using other = new Session();
  const vectorsOf = async (weightsOf?: typeof model) => {
    await using loaded = await other.load(path, { task: 'embedding', weightsOf });
    const before = await loaded.predict(rows);
    if (weightsOf) {
      await session[Symbol.asyncDispose]();
      assert.deepEqual((await loaded.predict(rows)).predictions, before.predictions);
    }
    return before.predictions.map(({ embedding }) => embedding);
  };
  const wanted = await vectorsOf();
  await assert.rejects(other.load(path, { quantize: 'int8', weightsOf: model }).then(), {
    kind: 'usage',
    place: 'weightsOf',
    message: /quantize int8/,
  });
  const stopped = AbortSignal.abort();
  await assert.rejects(other.load(path, { weightsOf: model, signal: stopped }).then(), { kind: 'interrupted' });
  await assert.rejects(other.load(join(dir.path, 'none'), { weightsOf: model }).then(), { kind: 'usage' });
  // What was given has been taken, or taken back: the third thread finds nothing.
  for (let number = 0; number < 3; number++) assert.throws(() => takeTensors(number), /taken before/);
  // Who reads the file again finds nothing but zeros.
  const file = join(path, 'model.safetensors');
  const bytes = readFileSync(file);
  writeFileSync(file, bytes.fill(0, 8 + Number(bytes.readBigUInt64LE(0))));
  assert.notDeepEqual(await vectorsOf(), wanted);
  assert.deepEqual(await vectorsOf(model), wanted);
  assert.equal(wanted[0]!.length, 32);
});
