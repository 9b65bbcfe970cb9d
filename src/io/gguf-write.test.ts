import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import test from 'node:test';
import { allTypes, ggufFile, temporary } from '../../test/samples/io.ts';
import { golden } from '../../test/support.ts';
import { type GgufField, type GgufTensor, openGguf, writeGguf } from './index.ts';

/** Writes what a file holds to another file. */
function copy(from: string, to: string, without: readonly string[] = []): void {
  using source = openGguf(from);
  const fields = new Map([...source.fields].filter(([key]) => !without.includes(key)));
  const tensors = [...source.entries.values()].map(({ name, format, shape, bytes: size }) => {
    const bytes = () => {
      const into = new Uint8Array(size);
      source.read(name, into);
      return into;
    };
    return { name, format, shape, bytes };
  });
  writeGguf(to, fields, tensors);
}

test('a file that was read is written again byte for byte: every type, block format, alignment', () => {
  using dir = temporary();
  const tensors = [
    { name: 'q4', dims: [64, 3], type: 2, bytes: 108 },
    { name: 'q6', dims: [256], type: 14, bytes: 210 },
    { name: 'scalar', dims: [], type: 26, bytes: 4 },
    { name: 'none', dims: [0, 7], type: 1, bytes: 0 },
  ];
  for (const alignment of [32, 64]) {
    const pairs = allTypes.filter(([key]) => key !== 'a.array');
    const bytes = ggufFile({ tensors, alignment, pairs: [...pairs, ['general.alignment', 4, alignment]] });
    const from = dir.put('from.gguf', bytes);
    copy(from, `${dir.path}/to.gguf`);
    const written = readFileSync(`${dir.path}/to.gguf`);
    // The writer pads the last tensor too, as llama.cpp's does.
    assert.deepEqual(written.subarray(0, bytes.length), bytes);
    assert.ok(written.length % alignment === 0 && written.subarray(bytes.length).every((byte) => byte === 0));
  }
  for (const name of ['llama', 'qwen2']) {
    copy(golden('gguf', `${name}.gguf`), `${dir.path}/${name}.gguf`);
    const [a, b] = [readFileSync(golden('gguf', `${name}.gguf`)), readFileSync(`${dir.path}/${name}.gguf`)];
    assert.ok(a.equals(b), `${name}.gguf, written by PyPI gguf`);
  }
});

test('what GGUF cannot hold is refused, and nothing is left of the file', () => {
  using dir = temporary();
  const path = `${dir.path}/m.gguf`;
  const tensor = (more: Partial<GgufTensor>): GgufTensor => ({
    name: 'a',
    format: 'float32',
    shape: [2],
    bytes: () => new Uint8Array(8),
    ...more,
  });
  const field = (type: GgufField['type'], value: GgufField['value']) => new Map([['k', { type, value }]]);
  const cases: [Map<string, GgufField>, GgufTensor[], RegExp][] = [
    [new Map(), [tensor({ format: 'nf4', shape: [64] })], /tensor "a" has the format nf4, which GGUF does not have/],
    [new Map(), [tensor({ format: 'int3x32', shape: [32] })], /the format int3x32, which GGUF does not have/],
    [new Map(), [tensor({ format: 'q4_k', shape: [32] })], /not a whole number of q4_k blocks of 256/],
    [new Map(), [tensor({}), tensor({})], /given more than once/],
    [new Map(), [tensor({ name: 'n'.repeat(64) })], /a name of more than 63 bytes/],
    [new Map(), [tensor({ shape: [1, 1, 1, 1, 2] })], /5 axes; the maximum is 4/],
    [new Map(), [tensor({}), tensor({ name: 'b', bytes: () => new Uint8Array(9) })], /takes 8 bytes, but 9 were given/],
    [field('uint8', 256), [], /"k" has 256, which is not a uint8/],
    [field('int32', 'x'), [], /"k" has "x", which is not a int32/],
    [field('string', [1, 2] as never), [], /"k" has 1, which is not a string/],
    [field('array', []), [], /array of arrays, which Graft does not write/],
  ];
  for (const [fields, tensors, message] of cases) {
    assert.throws(() => writeGguf(path, fields, tensors), message);
    assert.ok(!existsSync(path) && readdirSync(dir.path).length === 0, String(message));
  }
});
