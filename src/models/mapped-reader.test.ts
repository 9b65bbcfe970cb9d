/** Weights that stay in files: the same bytes as in memory, and the files of models are never written to. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { randomLlama } from '../../test/samples/llama.ts';
import { temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { digestOfPath, ScratchFile } from '../io/index.ts';
import { heldTensors } from '../nn/index.ts';
import { noGrad, ops, scope } from '../tensor/index.ts';
import { loadModel, saveGguf } from './index.ts';

before(() => startEngine());

/** Bytes of a file that are mapped into this process. */
const mappedBytes = (name: string) =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.endsWith(name))
    .map((line) => line.split(' ')[0]!.split('-').map((address) => Number.parseInt(address, 16)) as [number, number])
    .reduce((sum, [from, to]) => sum + to - from, 0);

test('the model’s own file where it holds what is computed with, else a copy', () => {
  using dir = temporary();
  const sizes = { width: 128, inner: 256, layers: 2, vocab: 160 } as const;
  const path = (name: string) => join(dir.path, name);
  const [wide, half, blocks] = [path('float32'), path('bfloat16'), path('blocks.gguf')];
  randomLlama(wide, sizes);
  randomLlama(half, { ...sizes, dtype: 'bfloat16' });
  {
    using model = loadModel(wide);
    saveGguf(model, blocks, { source: wide, formatOf: (path) => (path.includes('layers') ? { format: 'q8_0' } : undefined) });
  }
  // Which weights are in the file of the model. GGUF orders the rows of two matrices of each layer otherwise; its embeddings are float32.
  const cases = [
    [wide, 'none', 'all'],
    [half, 'none', 'none'],
    [half, 'nf4', 'none'],
    [blocks, 'keep', 'some'],
    [blocks, 'none', 'some'],
  ] as const;
  let compared = 0;
  for (const [file, quantize, where] of cases) {
    using _ = scope();
    const digest = digestOfPath(file);
    using expected = loadModel(file, { quantize });
    const wanted = [...heldTensors(expected.root)];
    using copy = new ScratchFile(dir.path);
    using model = loadModel(file, { quantize, offload: copy });
    const what = `${file} ${quantize}`;
    const mapped = mappedBytes(file.endsWith('.gguf') ? file : join(file, 'model.safetensors'));
    assert.equal(mapped > 0, where !== 'none', `${what}: ${mapped} bytes of the file`);
    assert.equal(copy.size > 0, where !== 'all', `${what}: ${copy.size} bytes of the copy`);
    for (const [i, [name, tensor]] of [...heldTensors(model.root)].entries()) {
      const [wantedName, want] = wanted[i]!;
      assert.equal(name, wantedName);
      assert.deepEqual([tensor.shape, tensor.dtype], [want.shape, want.dtype], `${what}: ${name}`);
      assert.ok(Buffer.from(tensor.bytes()).equals(Buffer.from(want.bytes())), `${what}: ${name}`);
      compared++;
      noGrad(() => ops.zero_(tensor));
    }
    assert.equal(digestOfPath(file), digest, `${what}: the file is as it was`);
  }
  assert.ok(compared >= cases.length * 20, `${compared} tensors`);
});
