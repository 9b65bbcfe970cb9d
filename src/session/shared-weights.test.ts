/** Sessions that compute with the weights of one model. */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { temporary } from '../../test/support.ts';
import { Session } from './index.ts';

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
  // Who reads the file again finds nothing but zeros.
  const file = join(path, 'model.safetensors');
  const bytes = readFileSync(file);
  writeFileSync(file, bytes.fill(0, 8 + Number(bytes.readBigUInt64LE(0))));
  assert.notDeepEqual(await vectorsOf(), wanted);
  assert.deepEqual(await vectorsOf(model), wanted);
  assert.equal(wanted[0]!.length, 32);
});
