import assert from 'node:assert/strict';
import { copyFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadTokenizer } from '../../src/data/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { temporary } from '../support.ts';
import { compareMiniLM } from './minilm.ts';

before(() => startEngine());

const path = process.env.GRAFT_TEST_MINILM;
const skip = !path && 'GRAFT_TEST_MINILM names no directory of all-MiniLM-L6-v2 (npm run proof:minilm fetches it)';

test('all-MiniLM-L6-v2: hidden states, sentence embeddings and token ids are those of Python', { skip }, (t) => {
  const found = compareMiniLM(path!);
  t.diagnostic(JSON.stringify(found));
  assert.ok(found.hidden <= 5e-6, `hidden states differ by ${found.hidden}`);
  assert.ok(found.embedding <= 8e-6, `embeddings differ by ${found.embedding}`);
  assert.ok(found.cosine <= 2e-6, `cosines differ by ${found.cosine}`);
  assert.deepEqual([found.hiddenCompared, found.sentences], [70, 11]);
  assert.deepEqual([found.sameIds, found.sameText], [found.lines, found.lines]);
});

test('its vocab.txt alone gives the same tokens', { skip }, () => {
  using dir = temporary();
  const files = readdirSync(path!).filter((name) => name !== 'tokenizer.json' && !name.endsWith('.safetensors'));
  for (const name of files) {
    if (statSync(join(path!, name)).isFile()) copyFileSync(join(path!, name), join(dir.path, name));
  }
  const [old, now] = [loadTokenizer(dir.path), loadTokenizer(path!)];
  const text = 'Über die Straße: 東京, 3 p.m.? [MASK] unbelievably…';
  assert.deepEqual([...old.encode(text)], [...now.encode(text)]);
  assert.equal(old.vocabSize, now.vocabSize);
});
