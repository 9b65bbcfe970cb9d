/** An output layer of its own in a file whose config ties it to the embeddings. */
import assert from 'node:assert/strict';
import { cpSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, logitsOf, readTensors, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { readJsonObject, writeSafetensors } from '../io/index.ts';
import { moduleAt } from '../nn/index.ts';
import { type DType, ops, scope, type Tensor } from '../tensor/index.ts';
import { loadModel, saveModel } from './index.ts';

before(() => startEngine());

/** Models that tie, and the keys of head and embeddings in their files. */
const tied = [
  { base: ['models', 'llama3'], head: 'lm_head', embeddings: 'model.embed_tokens' },
  { base: ['models', 'qwen3'], head: 'lm_head', embeddings: 'model.embed_tokens' },
  { base: ['families', 'gpt2'], head: 'lm_head', embeddings: 'transformer.wte' },
  { base: ['families', 'gpt-neox-serial'], head: 'embed_out', embeddings: 'gpt_neox.embed_in' },
] as const;

const row = [7, 31, 5, 60, 22, 9, 44];

/** Writes the model with other weights and config. */
function write(
  dir: string,
  base: readonly string[],
  change: (tensors: Map<string, Tensor>) => void,
  fields = {},
): string {
  cpSync(golden(...base), dir, { recursive: true });
  const { tensors } = readTensors(golden(...base, 'model.safetensors'));
  change(tensors);
  writeSafetensors(
    join(dir, 'model.safetensors'),
    [...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() })),
  );
  writeFileSync(
    join(dir, 'config.json'),
    JSON.stringify({ ...readJsonObject(golden(...base, 'config.json')), ...fields }),
  );
  return dir;
}

const logits = (path: string) => {
  using model = loadModel(path);
  return logitsOf(model, row);
};

/** Whether head and embeddings share their memory. */
const shares = (path: string) => {
  using model = loadModel(path);
  const [head, table] = [model.sites.head!, model.sites.embeddings].map(
    (at) => moduleAt(model.root, at) as unknown as { weight: Tensor },
  );
  return head!.weight === table!.weight;
};

for (const { base, head, embeddings } of tied) {
  const name = base.join('/');
  test(`${name}: a head with other numbers counts, and a saved model says that it is not tied`, () => {
    using _ = scope();
    using dir = temporary();
    const other = (tensors: Map<string, Tensor>) => {
      const table = tensors.get(`${embeddings}.weight`)!;
      const values = ops.clone(table);
      // One number of the last row is another.
      ops.fill_(ops.narrow(ops.narrow(values, 0, table.size(0) - 1, 1), 1, 3, 1), 0.5);
      tensors.set(`${head}.weight`, values);
    };
    const flag = write(join(dir.path, 'flag'), base, other);
    const noFlag = write(join(dir.path, 'no-flag'), base, other, { tie_word_embeddings: false });
    assert.deepEqual(logits(flag), logits(noFlag));
    assert.notDeepEqual(logits(flag), logits(golden(...base)));
    assert.equal(shares(flag), false);
    using model = loadModel(flag);
    saveModel(model, join(dir.path, 'saved'), flag);
    assert.equal(readJsonObject(join(dir.path, 'saved', 'config.json')).tie_word_embeddings, false);
    assert.deepEqual(logits(join(dir.path, 'saved')), logits(flag));
  });

  test(`${name}: a head with the same numbers, in whatever element type, shares the table`, () => {
    using _ = scope();
    for (const dtype of ['float32', 'float64', 'bfloat16'] as DType[]) {
      using dir = temporary();
      const same = write(dir.path, base, (tensors) => {
        const table = tensors.get(`${embeddings}.weight`)!;
        // Numbers that bfloat16 has too.
        const rounded = ops.toCopy(ops.toCopy(table, { dtype: 'bfloat16' }), { dtype: 'float32' });
        tensors.set(`${embeddings}.weight`, rounded);
        tensors.set(`${head}.weight`, ops.toCopy(rounded, { dtype }));
      });
      assert.equal(shares(same), true, dtype);
    }
  });

  test(`${name}: no head without the flag, and a bias of the head, are refused`, () => {
    using _ = scope();
    using dir = temporary();
    const noHead = write(join(dir.path, 'no-head'), base, () => {}, { tie_word_embeddings: false });
    assert.throws(() => loadModel(noHead), new RegExp(`${head}\\.weight \\[\\d+, \\d+\\] is missing`));
    const biased = write(join(dir.path, 'biased'), base, (tensors) => {
      const table = tensors.get(`${embeddings}.weight`)!;
      tensors.set(`${head}.weight`, table);
      tensors.set(`${head}.bias`, ops.ones([table.size(0)]));
    });
    assert.throws(() => loadModel(biased), new RegExp(`the model does not use ${head}\\.bias`));
    const shorter = write(join(dir.path, 'shorter'), base, (tensors) => {
      const table = tensors.get(`${embeddings}.weight`)!;
      tensors.set(`${head}.weight`, ops.contiguous(ops.narrow(table, 0, 1, table.size(0) - 1)));
    });
    assert.throws(() => loadModel(shorter), new RegExp(`${head}\\.weight is \\[.*the config requires`));
  });
}
