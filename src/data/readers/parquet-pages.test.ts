import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { golden, temporary } from '../../../test/support.ts';
import { readRecords } from './index.ts';
import { unpacking } from './parquet.ts';

/** A file of pyarrow with 40 rows that nothing packs: `text` is in each `row`, `none` is null. */
const stored = readFileSync(golden('data', 'stored.parquet'));

/** The same with pages of the second kind. */
const second = readFileSync(golden('data', 'second.parquet'));

/** The file with the bytes of `from`, in hexadecimal, replaced wherever they stand, or only in the first place. */
function changed(from: string, to: string, places: 'all' | 'first', file = stored): Buffer {
  const hex = file.toString('hex');
  assert.ok(hex.includes(from), 'the file has these bytes');
  return Buffer.from(places === 'all' ? hex.replaceAll(from, to) : hex.replace(from, to), 'hex');
}

async function read(bytes: Buffer): Promise<unknown[]> {
  using dir = temporary();
  const file = `${dir.path}/rows.parquet`;
  writeFileSync(file, bytes);
  return (await readRecords(file)).map(({ value }) => value);
}

test('Parquet: what headers and runs state is bounded by what the file can hold', async () => {
  const rows = Array.from({ length: 40 }, () => ({ text: 'row', none: null }));
  assert.deepEqual(await read(stored), rows);
  // 40 is 50, as a signed number and as the header of a run; the numbers put in its place have several bytes.
  const damaged: readonly [what: string, file: Buffer, problem: RegExp][] = [
    [
      'values of a page',
      changed('2c155015', '2c158080801015', 'first'),
      /'text' states more values than a file of \d+ bytes/,
    ],
    ['bytes of a page', changed('15bc042c', '15bb042c', 'first'), /a page states -286 bytes, and ends outside/],
    [
      'a run of levels',
      changed('020000005001', '060000008080801001', 'first'),
      /a run of 16777216 values stands where 40 are left/,
    ],
    [
      'entries of a list',
      changed('193c35001806', '19fcffffff07', 'first'),
      /16777215 entries or bytes are stated where/,
    ],
    ['rows of a group', changed('1650', '1652', 'all'), /column 'text' has 40 values for 41 rows/],
    // The header of a page of the column `none` ends before the length of its levels.
    [
      'a header that ends early',
      changed('15041500121c3650', '15040000121c3650', 'first', second),
      /a page has no number in field 6 of its header \(dataV2\)/,
    ],
    [
      'a header without its kind',
      changed('50415231150415', '5041523125', 'first', second),
      /a page has no number in field 1 of its header \(page\)/,
    ],
  ];
  for (const [what, file, problem] of damaged) await assert.rejects(read(file), problem, what);
  assert.equal(damaged.length, 7);
});

test('Parquet: a column of nothing but null in LZ4, and pages of the second kind', async () => {
  const rows = await read(readFileSync(golden('data', 'second.parquet')));
  assert.deepEqual(
    rows,
    Array.from({ length: 40 }, () => ({ text: 'row', none: null })),
  );
});

test('Parquet: LZ4 as Hadoop frames it and as a block; lengths that lead back are read as a block', async () => {
  const { compressors } = await import('hyparquet-compressors');
  const { LZ4, LZ4_RAW } = unpacking(compressors);
  // A block of 4 literals and a match of 8 bytes, 4 back; its frame has the lengths 12 and 12.
  const end = [0x50, 1, 2, 3, 4, 5];
  const block = Uint8Array.of(0x44, 97, 98, 99, 100, 4, 0, ...end);
  const unpacked = [...Buffer.from('abcdabcdabcd'), 1, 2, 3, 4, 5];
  const frame = Buffer.concat([Buffer.from([0, 0, 0, unpacked.length, 0, 0, 0, block.length]), block]);
  assert.deepEqual([...LZ4_RAW!(block, unpacked.length)], unpacked);
  assert.deepEqual([...LZ4!(block, unpacked.length)], unpacked);
  assert.deepEqual([...LZ4!(frame, unpacked.length)], unpacked);
  assert.deepEqual([...LZ4!(Buffer.concat([frame, frame]), 2 * unpacked.length)], [...unpacked, ...unpacked]);
  for (const back of ['00000000fffffff8', '0000000000000000'])
    assert.throws(() => LZ4!(Buffer.concat([Buffer.from(back, 'hex'), block]), 64), /lz4/, back);
});
