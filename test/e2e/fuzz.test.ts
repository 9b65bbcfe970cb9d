/** Damaged files over every reader, a few hundred; `npm run proof:fuzz` tries ten thousand. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { fuzz, readers } from '../samples/fuzz.ts';

const files = 400;

test(`${files} damaged files are read or refused in a sentence, in time and in little memory`, async (t) => {
  const tallies = await fuzz(files, 7);
  assert.deepEqual(
    tallies.flatMap(({ reader, problems }) => problems.map((problem) => `${reader}: ${problem}`)),
    [],
  );
  const sum = (of: 'files' | 'read' | 'refused') => tallies.reduce((total, tally) => total + tally[of], 0);
  assert.equal(sum('files'), files);
  assert.equal(sum('read') + sum('refused'), files);
  assert.equal(tallies.length, readers.length);
  assert.ok(sum('refused') > files / 4 && sum('read') > 20, `${sum('read')} read, ${sum('refused')} refused`);
  t.diagnostic(`${readers.length} readers: ${sum('read')} read, ${sum('refused')} refused`);
});
