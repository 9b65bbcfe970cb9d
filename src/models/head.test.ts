/** Whose head a model has: the checkpoint's, or a new one for classes that the checkpoint does not know. */
import assert from 'node:assert/strict';
import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { tinyVit } from '../../test/samples/tiny.ts';
import { golden, numbers, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { readJsonObject } from '../io/index.ts';
import { moduleAt } from '../nn/index.ts';
import { scope, type Tensor } from '../tensor/index.ts';
import { loadModel } from './index.ts';

before(() => startEngine());

/** The classifier's weight under these labels, of a ViT whose own four classes have these names. */
function classifier(dir: string, names: readonly string[] | undefined, labels?: readonly string[]): Float32Array {
  const config = readJsonObject(join(tinyVit(dir), 'config.json'));
  const id2label = names ? Object.fromEntries(names.map((name, i) => [i, name])) : config.id2label;
  writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, id2label }));
  using _ = scope();
  using model = loadModel(dir, { task: 'image-classification', ...(labels && { labels }) });
  return numbers((moduleAt(model.root, 'classifier') as unknown as { weight: Tensor }).weight).slice();
}

test('a head is made new for other classes, and for as many of other names; names for nameless ones keep it', () => {
  using dir = temporary();
  const stored = classifier(dir.path, undefined);
  const own = ['cat', 'dog', 'hen', 'owl'];
  assert.deepEqual(classifier(dir.path, own), stored);
  assert.deepEqual(classifier(dir.path, own, own), stored);
  assert.deepEqual(classifier(dir.path, undefined, own), stored);
  for (const labels of [['ant', 'bee', 'fly', 'wasp'], [...own].reverse(), ['cat', 'dog', 'hen', 'owl', 'yak']]) {
    const made = classifier(dir.path, own, labels);
    assert.equal(made.length, 32 * labels.length);
    assert.notDeepEqual(made.subarray(0, 128), stored, labels.join());
  }
});

test('a head that gives several numbers at a time is refused rather than read as classes', () => {
  using dir = temporary();
  cpSync(golden('families', 'bert-seqcls'), dir.path, { recursive: true });
  const file = join(dir.path, 'config.json');
  writeFileSync(file, JSON.stringify({ ...readJsonObject(file), problem_type: 'regression' }));
  assert.throws(() => loadModel(dir.path), /regression with 3 outputs is not supported/);
});
