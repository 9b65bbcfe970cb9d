import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { allTypes, type GgufFile, type GgufTensor, ggufFile, temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { openGguf, openWeights } from './index.ts';

const f32 = (name: string, dims: (number | bigint)[], offset?: number | bigint): GgufTensor => ({
  name,
  dims,
  type: 0,
  bytes: dims.reduce<number>((n, d) => n * Number(d), 4),
  ...(offset !== undefined && { offset }),
});

function refuses(path: string, message: RegExp): void {
  assert.throws(
    () => openGguf(path)[Symbol.dispose](),
    (error) => {
      assert(error instanceof GraftError, String(error));
      assert.match(error.message, message);
      assert.equal(error.kind, 'input');
      return true;
    },
  );
}

describe('openGguf', () => {
  it('gives every metadata type, in versions 2 and 3', () => {
    using dir = temporary();
    for (const version of [2, 3]) {
      using weights = openGguf(dir.put('m.gguf', ggufFile({ version, pairs: allTypes })));
      const expected = new Map<string, unknown>(allTypes.map(([key, , value]) => [key, value]));
      const arrays = {
        uint8: Uint8Array,
        int8: Int8Array,
        uint16: Uint16Array,
        int16: Int16Array,
        uint32: Uint32Array,
        int32: Int32Array,
        float32: Float32Array,
        float64: Float64Array,
        uint64: BigUint64Array,
        int64: BigInt64Array,
      };
      for (const [name, type] of Object.entries(arrays))
        expected.set(`a.${name}`, new type(expected.get(`a.${name}`) as never));
      expected.set('a.array', [new Uint32Array([1, 2]), new Uint32Array(), new Uint32Array([3])]);
      expected.set('t.uint64', Number.MAX_SAFE_INTEGER);
      expected.set('t.int64', Number.MIN_SAFE_INTEGER);
      assert.deepEqual(new Map<string, unknown>(weights.metadata), expected);
    }
  });

  it('gives tensors in torch order, block formats, alignment and bytes', () => {
    using dir = temporary();
    const tensors: GgufTensor[] = [
      f32('a', [3, 2]),
      { name: 'q4', dims: [64, 3], type: 2, bytes: 108 },
      { name: 'q6', dims: [256], type: 14, bytes: 210 },
      { name: 'bf', dims: [5], type: 30, bytes: 10 },
      { name: 'scalar', dims: [], type: 26, bytes: 4 },
      { name: 'none', dims: [0, 7], type: 1, bytes: 0 },
    ];
    const bytes = ggufFile({ tensors, alignment: 64, pairs: [['general.alignment', 4, 64]] });
    using weights = openWeights(dir.put('without-the-usual-ending', bytes));
    const seen = [...weights.entries.values()].map(({ name, shape, format, bytes }) => [name, shape, format, bytes]);
    assert.deepEqual(seen, [
      ['a', [2, 3], 'float32', 24],
      ['q4', [3, 64], 'q4_0', 108],
      ['q6', [256], 'q6_k', 210],
      ['bf', [5], 'bfloat16', 10],
      ['scalar', [], 'int32', 4],
      ['none', [7, 0], 'float16', 0],
    ]);
    const into = new Uint8Array(10);
    weights.read('bf', into);
    assert.deepEqual([...into], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  });

  it('is found in a directory that holds nothing else', () => {
    using dir = temporary();
    dir.put('README.md', '');
    dir.put('m-00001-of-00002.gguf', ggufFile({ tensors: [f32('a', [1])] }));
    dir.put('m-00002-of-00002.gguf', ggufFile({ tensors: [f32('b', [1])] })); // shards without split.* keys join too
    using weights = openWeights(dir.path);
    assert.deepEqual([...weights.entries.keys()], ['a', 'b']);
    dir.put('other.gguf', ggufFile({}));
    assert.throws(
      () => openWeights(dir.path),
      /There are 2 GGUF models in this directory. Give the path of one of them: m-00001-of-00002\.gguf, other\.gguf/,
    );
  });

  it('refuses what is not a GGUF file that it reads', () => {
    using dir = temporary();
    const at = (bytes: Uint8Array | string) => dir.put('m.gguf', bytes);
    const bigEndian = ggufFile({});
    bigEndian.writeUInt32BE(3, 4);
    refuses(at(''), /Not a GGUF file: it is empty/);
    refuses(at('PK\x03\x04….'), /looks like a PyTorch pickle/);
    refuses(at('GGUF\x03'), /The version at byte 4 needs 4 bytes or more, but the file has only 1 left/);
    refuses(at(bigEndian), /big-endian/);
    refuses(at(ggufFile({ version: 1 })), /GGUF version 1; Graft reads 2 and 3/);
    refuses(at(ggufFile({ version: 4 })), /GGUF version 4/);
    refuses(dir.path, /This is a directory. Give the path of a file/);
  });

  it('refuses counts and lengths that the file cannot hold', () => {
    using dir = temporary();
    const refusesFile = (file: GgufFile, message: RegExp) => refuses(dir.put('m.gguf', ggufFile(file)), message);
    refusesFile(
      { tensorCount: 2n ** 40n },
      /The table of tensors at byte 16 needs 26388279066624 bytes or more, but the file has only \d+ left/,
    );
    refusesFile(
      { tensorCount: 2n ** 64n - 1n },
      /The table of tensors at byte 8 is 18446744073709551615, more than the size of any file/,
    );
    refusesFile({ pairCount: 2n ** 33n }, /The metadata at byte 24 needs/);
    const cut = (last: Uint8Array, keep: Uint8Array) => dir.put('m.gguf', Buffer.concat([keep, last]));
    const one = ggufFile({ pairs: [['k', 9, [1, 2, 3], 4]] });
    const count = one.indexOf('k') + 1 + 4 + 4;
    one.writeBigUInt64LE(2n ** 50n, count);
    refuses(dir.put('m.gguf', one), /The metadata value "k", an array, at byte 49 needs/);
    const string = ggufFile({ pairs: [['k', 8, 'x']] });
    string.writeBigUInt64LE(2n ** 27n, count - 4);
    refuses(dir.put('m.gguf', string), /The metadata value "k" at byte 45 needs 134217728 bytes/);
    string.writeBigUInt64LE(2n ** 30n, count - 4);
    refuses(dir.put('m.gguf', string), /has length 1073741824; the maximum is 268435456/);
    refuses(cut(new Uint8Array(), string.subarray(0, 30)), /needs 13 bytes|has only/);
  });

  it('refuses metadata that cannot be', () => {
    using dir = temporary();
    const refusesFile = (file: GgufFile, message: RegExp) => refuses(dir.put('m.gguf', ggufFile(file)), message);
    refusesFile(
      {
        pairs: [
          ['k', 4, 1],
          ['k', 4, 1],
        ],
      },
      /the key "k" more than once/,
    );
    refusesFile({ pairs: [['k', 7, 2]] }, /"k" is a boolean of 2/);
    refusesFile({ pairs: [['k', 9, [], 13]] }, /"k" is an array of the unknown type 13/);
    for (const alignment of [0, 1, 12, 4, 2 ** 31])
      refusesFile(
        { pairs: [['general.alignment', 4, alignment]] },
        /general\.alignment is \d+; it must be a power of two and at least 8/,
      );
    refusesFile({ pairs: [['general.alignment', 8, '32']] }, /general\.alignment is "32"/);
    const unknown = ggufFile({ pairs: [['k', 4, 1]] });
    unknown.writeUInt32LE(99, unknown.indexOf('k') + 1);
    refuses(dir.put('m.gguf', unknown), /"k" has the unknown value type 99/);
  });

  it('refuses tensors that cannot be', () => {
    using dir = temporary();
    const refusesFile = (tensors: GgufTensor[], message: RegExp) =>
      refuses(dir.put('m.gguf', ggufFile({ tensors })), message);
    const odd = (type: number, dims: (number | bigint)[]): GgufTensor[] => [{ name: 'w', dims, type, bytes: 32 }];
    refusesFile(odd(77, [8]), /Tensor "w" has the unknown type 77/);
    refusesFile(odd(20, [32]), /Tensor "w" has type IQ4_NL \(20\), which Graft does not read. Quantise/);
    refusesFile(odd(2, [33]), /rows of 33 elements, which is not a whole number of q4_0 blocks of 32/);
    refusesFile(odd(0, [1, 1, 1, 1, 1]), /has 5 axes; the maximum is 4/);
    refusesFile(odd(0, [2 ** 30, 2 ** 30]), /more than 2\^53 elements/);
    refusesFile(odd(0, [2n ** 60n]), /"w": a size at byte \d+ is 1152921504606846976, more than/);
    refusesFile(odd(0, [9]), /"w" ends at byte 100, but the file at byte 96/);
    refusesFile([f32('a', [1]), f32('a', [1])], /two tensors named "a"/);
    refusesFile([f32('a', [8], 4)], /starts at byte 4 of the data, which is not a multiple of the alignment 32/);
    refusesFile([f32('a', [8], 2n ** 62n)], /"a": its offset at byte \d+ is 4611686018427387904/);
    refusesFile([f32('a', [16]), f32('b', [8], 32)], /Tensors "a" and "b" overlap/);
    const file = ggufFile({ tensors: [f32('a', [8])] });
    refuses(dir.put('m.gguf', file.subarray(0, -1)), /"a" ends at byte \d+, but the file at byte \d+/);
  });

  it('joins shards, whichever is named', () => {
    using dir = temporary();
    const shard = (no: number, name: string, more: Partial<Record<'no' | 'count' | 'total', number>> = {}) =>
      dir.put(
        `m-0000${no + 1}-of-00002.gguf`,
        ggufFile({
          pairs: [
            ...(no === 0 ? ([['general.name', 8, 'whole']] as const) : []),
            ['split.no', 2, more.no ?? no],
            ['split.count', 2, more.count ?? 2],
            ['split.tensors.count', 5, more.total ?? 2],
          ],
          tensors: [f32(name, [2])],
        }),
      );
    shard(0, 'a');
    const second = shard(1, 'b');
    using weights = openGguf(second);
    assert.deepEqual([...weights.entries.keys()], ['a', 'b']);
    assert.equal(weights.metadata.get('general.name'), 'whole');
    const into = new Uint8Array(8);
    weights.read('b', into);
    assert.deepEqual([...into], [0, 1, 2, 3, 4, 5, 6, 7]);
    refuses(
      dir.put('renamed.gguf', readFileSync(second)),
      /By its metadata this is shard 1 \(from 0\) of 2, by its name shard 0 of 1/,
    );
    shard(1, 'a');
    refuses(second, /Tensor "a" is also in m-00001-of-00002\.gguf/);
    shard(1, 'b', { no: 0 });
    refuses(second, /shard 0 \(from 0\) of 2, by its name shard 1 of 2/);
    shard(1, 'b');
    shard(0, 'a', { total: 3 });
    refuses(second, /The 2 shards hold 2 tensors instead of 3/);
    refuses(
      dir.put('m-00001-of-00009.gguf', readFileSync(dir.put('x', ggufFile({})))),
      /m-00002-of-00009\.gguf: There is no such file/,
    );
  });

  it('reads headers longer than its window', () => {
    using dir = temporary();
    const words = Array.from({ length: 120_000 }, (_, i) => `Ġword${i}`);
    const long = 'x'.repeat(3_000_000);
    const pairs = [
      ['words', 9, words, 8],
      ['long', 8, long],
      ['ids', 9, words.map((_, i) => i), 4],
      ['end', 4, 7],
    ] as const;
    const path = dir.put('m.gguf', ggufFile({ pairs }));
    using weights = openGguf(path);
    assert.deepEqual(weights.metadata.get('words'), words);
    assert.equal(weights.metadata.get('long'), long);
    assert.deepEqual(
      weights.metadata.get('ids'),
      Uint32Array.from(words, (_, i) => i),
    );
    assert.equal(weights.metadata.get('end'), 7);
    writeFileSync(path, readFileSync(path).subarray(0, 2_500_000));
    refuses(path, /file has only \d+ left/);
  });
});
