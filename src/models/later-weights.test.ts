/** Weights that are read afterwards, some rows at a time: the same bytes as those of a model that is loaded at once. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { randomLlama } from '../../test/samples/llama.ts';
import { golden, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { heldTensors, type Model } from '../nn/index.ts';
import type { Quantize } from '../quant/index.ts';
import { isAbsent, ops, scope, type Tensor } from '../tensor/index.ts';
import { LaterWeights, loadModel, loadModels } from './index.ts';

before(() => startEngine());

const bytesOf = (tensor: Tensor) => Buffer.from(ops.contiguous(tensor).bytes());
const tensorsOf = ({ root }: Model) => [...new Map([...heldTensors(root)].map(([path, tensor]) => [tensor, path]))];

test('rows of every weight, however it is stored and held', () => {
  using dir = temporary();
  const wide = randomLlama(join(dir.path, 'wide'), { width: 64, inner: 128, layers: 1, dtype: 'bfloat16' });
  const cases: [path: string, quantize: Quantize, vocabRows?: number][] = [
    [golden('models', 'llama3'), 'none'],
    [golden('models', 'llama3'), 'none', 143],
    [golden('gguf', 'qwen2.gguf'), 'none', 70],
    [golden('gguf', 'llama.gguf'), 'keep'],
    [golden('gguf', 'llama.gguf'), 'none'],
    [golden('gguf', 'qwen2.gguf'), 'int8'],
    [golden('families', 'gpt2'), 'none'],
    [golden('families', 'gpt2'), 'int8'],
    [golden('families', 'gpt-neox'), 'none'],
    [golden('families', 'bert-seqcls'), 'none'],
    [golden('families', 'vit'), 'none'],
    [wide, 'nf4'],
  ];
  let [pieces, whole] = [0, 0];
  for (const [path, quantize, vocabRows] of cases) {
    using _ = scope();
    const options = { quantize, ...(vocabRows !== undefined && { vocabRows }) };
    using expected = loadModel(path, options);
    using later = new LaterWeights();
    using model = loadModels(path, [{}], options, later)[0]!;
    assert.ok(vocabRows === undefined || model.vocabSize === vocabRows);
    const wanted = tensorsOf(expected);
    const found = tensorsOf(model);
    assert.equal(found.length, wanted.length);
    assert.equal(model.parameters, expected.parameters);
    for (const [i, [tensor, name]] of found.entries()) {
      const [want] = wanted[i]!;
      const what = `${path} ${quantize}: ${name}`;
      assert.deepEqual([tensor.shape, tensor.dtype], [want.shape, want.dtype], what);
      assert.ok(later.tensors.has(tensor) && isAbsent(tensor), what);
      assert.throws(() => tensor.data(), /a tensor on meta has no numbers to read/, what);
      const rows = want.shape.length > 1 ? want.size(0) : 1;
      const rowBytes = want.nbytes / rows;
      const all = bytesOf(want);
      for (const [first, count] of [
        [0, rows],
        [0, 1],
        [rows - 1, 1],
        [rows >> 2, Math.ceil(rows / 3)],
      ] as const) {
        const got = bytesOf(later.rows(tensor, { first, count }));
        assert.ok(got.equals(all.subarray(first * rowBytes, (first + count) * rowBytes)), `${what} from row ${first}`);
        pieces++;
      }
      later.fill([tensor]);
      assert.ok(!isAbsent(tensor) && bytesOf(tensor).equals(all), what);
      whole++;
    }
  }
  assert.ok(pieces >= 4 * whole && whole > 150, `${pieces} pieces of ${whole} weights`);
});
