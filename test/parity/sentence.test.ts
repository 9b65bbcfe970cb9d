/** Sentence embeddings under the settings of sentence-transformers, against its `encode`. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test from 'node:test';
import { openSafetensors, writeSafetensors } from '../../src/io/index.ts';
import { Session } from '../../src/session/index.ts';
import { golden, temporary } from '../support.ts';

type Files = Readonly<Record<string, unknown>>;
const { files, table, sentences, cases } = JSON.parse(readFileSync(golden('sentence', 'vectors.json'), 'utf8')) as {
  files: Files;
  table: number;
  sentences: string[];
  cases: { name: string; files: Files; vectors: number[][] }[];
};
const tokenizer = JSON.parse(readFileSync(golden('tokenizer', 'bert.json'), 'utf8')) as object;

/** The golden BERT with a larger table, as the golden describes it. */
function writeWeights(file: string): void {
  using source = openSafetensors(golden('families', 'bert', 'model.safetensors'));
  writeSafetensors(
    file,
    [...source.entries.values()].map(({ name, shape, bytes }) => {
      let stored = new Float32Array(bytes / 4);
      source.read(name, new Uint8Array(stored.buffer));
      const isTable = name === 'embeddings.word_embeddings.weight';
      const [rows, width] = shape as [number, number];
      if (isTable) {
        const small = stored;
        const scale = (i: number) => Math.fround(1 + Math.fround(i / 1000));
        const at = (i: number) => small[(Math.floor(i / width) % rows) * width + (i % width)]!;
        stored = Float32Array.from({ length: table * width }, (_, i) => at(i) * scale(Math.floor(i / width)));
      }
      const own = new Uint8Array(stored.buffer);
      return { name, dtype: 'float32' as const, shape: isTable ? [table, width] : shape, bytes: () => own };
    }),
  );
}

test('vectors are those of SentenceTransformer.encode under every setting of the golden', async () => {
  await using session = new Session();
  let compared = 0;
  for (const { name, files: own, vectors } of cases) {
    using dir = temporary();
    writeWeights(join(dir.path, 'model.safetensors'));
    const all = {
      ...files,
      ...own,
      'tokenizer.json': { ...tokenizer, ...(own['tokenizer.json'] as object | undefined) },
    };
    for (const [file, content] of Object.entries(all)) {
      mkdirSync(dirname(join(dir.path, file)), { recursive: true });
      writeFileSync(join(dir.path, file), JSON.stringify(content));
    }
    await using model = await session.load(dir.path, { task: 'embedding' });
    const found = await model.embed(sentences);
    vectors.forEach((vector, i) => {
      assert.equal(found[i]!.length, vector.length, name);
      const error = Math.max(...vector.map((x, c) => Math.abs(x - found[i]![c]!)));
      assert.ok(error <= 1e-5, `${name}, '${sentences[i]}': ${error}`);
      compared++;
    });
  }
  assert.ok(compared >= 90, `${compared} vectors`);
});
