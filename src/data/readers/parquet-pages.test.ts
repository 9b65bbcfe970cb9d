import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { golden, temporary } from '../../../test/support.ts';
import { readRecords } from './index.ts';

/** A file of pyarrow with 40 rows that nothing packs: `text` is in each `row`, `none` is null. */
const stored = readFileSync(golden('data', 'stored.parquet'));

/** The file with the bytes of `from`, in hexadecimal, replaced wherever they stand, or only in the first place. */
function changed(from: string, to: string, places: 'all' | 'first'): Buffer {
  const hex = stored.toString('hex');
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
  ];
  for (const [what, file, problem] of damaged) await assert.rejects(read(file), problem, what);
  assert.equal(damaged.length, 4);
});

test('Parquet: a column of nothing but null in LZ4, and pages of the second kind', async () => {
  const rows = await read(readFileSync(golden('data', 'second.parquet')));
  assert.deepEqual(
    rows,
    Array.from({ length: 40 }, () => ({ text: 'row', none: null })),
  );
});
