import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { loadTokenizer } from '../../src/data/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { loadModel, type Quantize } from '../../src/models/index.ts';
import { outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, scope } from '../../src/tensor/index.ts';
import { numbers, temporary } from '../support.ts';
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

test('held in int8 and nf4 its embeddings stay near, and it does not write', { skip }, (t) => {
  using _ = scope();
  const tokens = packTokens([
    [101, 2023, 2003, 102],
    [101, 3899, 102],
  ]);
  const embedded = (quantize: Quantize) => {
    using model = loadModel(path!, { quantize });
    return noGrad(() => numbers(outputOf(model, tokens)).slice());
  };
  const dense = embedded('none');
  for (const [quantize, least] of [
    ['int8', 0.999],
    ['nf4', 0.85],
  ] as const) {
    const got = embedded(quantize);
    const cosines = [0, 1].map((r) => {
      const of = (v: Float32Array) => v.subarray(384 * r, 384 * (r + 1));
      return of(got).reduce((sum, x, i) => sum + x * of(dense)[i]!, 0);
    });
    t.diagnostic(`${quantize}: cosines ${cosines}`);
    assert.ok(
      cosines.every((c) => c > least && c < 1 + 1e-5),
      `${quantize}: ${cosines}`,
    );
  }
  const asked = spawnSync(process.execPath, ['bin/graft.js', 'generate', '--model', path!, '--prompt', 'Hi'], {
    cwd: packageRoot,
    encoding: 'utf8',
  });
  assert.match(asked.stderr, /the model is for embedding, and does not generate text/);
  assert.equal(asked.status, 2);
});
