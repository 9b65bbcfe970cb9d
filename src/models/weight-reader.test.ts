import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ggufFile, temporary } from '../../test/samples/io.ts';
import { startEngine } from '../engine/index.ts';
import { openGguf, openSafetensors, writeSafetensors } from '../io/index.ts';
import { formats } from '../quant/index.ts';
import { type DType, Generator, ops, scope, type Tensor } from '../tensor/index.ts';
import { readTensor, WeightReader } from './weight-reader.ts';

await startEngine();
const dir = temporary();
after(() => dir[Symbol.dispose]());

/** 17 MB in bfloat16: two whole pieces and a part of one. */
const [rows, width, heads] = [2080, 4096, 5];

function written(dtype: DType): { tensor: Tensor; file: string } {
  using generator = new Generator(7);
  const tensor = ops.toCopy(ops.randn([rows, width], { generator }), { dtype });
  const file = join(dir.path, `${dtype}.safetensors`);
  writeSafetensors(file, [{ name: 'w', dtype, shape: tensor.shape, bytes: tensor.bytes() }]);
  return { tensor, file };
}

function same(got: Tensor, want: Tensor): void {
  assert.deepEqual([got.shape, got.dtype], [want.shape, want.dtype]);
  assert.equal(Buffer.compare(got.bytes(), want.bytes()), 0);
}

for (const dtype of ['bfloat16', 'float32'] as const) {
  test(`a matrix of several pieces, ${dtype}: dense, raw, packed, heads in order`, () => {
    using _ = scope();
    const { tensor, file } = written(dtype);
    using source = openSafetensors(file);
    using reader = new WeightReader(source);
    const stored = { entry: source.entries.get('w')!, interleavedHeads: undefined };
    const float = ops.toCopy(tensor, { dtype: 'float32' });
    same(reader.dense(stored, 'float32'), float);
    assert.equal(Buffer.compare(reader.raw(stored).bytes(), tensor.bytes()), 0);
    for (const format of ['nf4', 'q8_0'] as const)
      same(reader.packed(stored, format), ops.quantize(float, formats[format].nativeId));

    const mixed = ops.view(ops.contiguous(ops.transpose(ops.view(float, [heads, rows / heads / 2, 2, width]), 1, 2)), [
      rows,
      width,
    ]);
    const inOrder = { ...stored, interleavedHeads: heads };
    same(reader.dense(inOrder, 'float32'), mixed);
    same(reader.packed(inOrder, 'nf4'), ops.quantize(mixed, formats.nf4.nativeId));
  });
}

test('a table with more or fewer rows than the file: new ones are zeros, wherever rows begin', () => {
  using _ = scope();
  const { tensor, file } = written('bfloat16');
  using source = openSafetensors(file);
  using reader = new WeightReader(source);
  const stored = { entry: source.entries.get('w')!, interleavedHeads: undefined };
  const float = ops.toCopy(tensor, { dtype: 'float32' });
  const zeros = ops.zeros([3, width]);
  const more = { ...stored, modelRows: rows + 3 };
  const whole = ops.cat([float, zeros], 0);
  same(reader.dense(more, 'float32'), whole);
  for (const [first, count] of [
    [0, 2],
    [rows - 2, 4],
    [rows, 3],
    [rows + 1, 1],
  ] as const)
    same(reader.dense(more, 'float32', false, { first, count }), ops.contiguous(ops.narrow(whole, 0, first, count)));
  same(reader.dense({ ...stored, modelRows: 7 }, 'float32'), ops.contiguous(ops.narrow(float, 0, 0, 7)));
});

test('what was read is not kept: many matrices take the memory of one', () => {
  using _ = scope();
  const { file } = written('bfloat16');
  using source = openSafetensors(file);
  using reader = new WeightReader(source);
  const stored = { entry: source.entries.get('w')!, interleavedHeads: undefined };
  const read = () => reader.packed(stored, 'nf4').dispose();
  read();
  const before = process.memoryUsage.rss();
  for (let i = 0; i < 40; i++) read(); // in one turn of the event loop, as a model is loaded
  const grown = process.memoryUsage.rss() - before;
  assert.ok(grown < 2 * stored.entry.bytes, `${grown} bytes more after 40 reads of ${stored.entry.bytes}`);
});

test('readTensor: the stored shape in the stored type or another, blocks as float32, an unknown name refused', () => {
  using _ = scope();
  const { tensor, file } = written('bfloat16');
  using source = openSafetensors(file);
  same(readTensor(source, 'w'), tensor);
  same(readTensor(source, 'w', 'float64'), ops.toCopy(tensor, { dtype: 'float64' }));
  assert.throws(() => readTensor(source, 'v'), /the tensor v was not found/);
  const dims = [64, 3, 2]; // GGUF lists the last axis first
  using blocks = openGguf(
    dir.put('blocks.gguf', ggufFile({ tensors: [{ name: 'q', dims, type: 8, bytes: 12 * 34 }] })),
  );
  using reader = new WeightReader(blocks);
  const dense = reader.dense({ entry: blocks.entries.get('q')!, interleavedHeads: undefined }, 'float32');
  assert.deepEqual(dense.shape, [2, 3, 64]);
  same(readTensor(blocks, 'q'), dense);
  same(readTensor(blocks, 'q', 'float64'), ops.toCopy(dense, { dtype: 'float64' }));
});
