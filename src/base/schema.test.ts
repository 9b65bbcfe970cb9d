import assert from 'node:assert/strict';
import test from 'node:test';
import { z } from 'zod';
import type { GraftError } from './errors.ts';
import { parseWith } from './schema.ts';

test('a value out of range, a text or a list too short or too long: what it has to be, and what it is', () => {
  const schema = z.strictObject({
    positive: z.number().positive(),
    share: z.number().min(0).max(1),
    below: z.number().lt(5),
    text: z.string().min(1),
    short: z.string().max(2),
    list: z.array(z.int()).min(2),
  });
  const value = { positive: -1, share: 2, below: 5, text: '', short: 'abc', list: [1] };
  assert.throws(
    () => parseWith(schema, value, 'x'),
    ({ data }: GraftError) => {
      assert.deepEqual(data.mistakes, [
        'positive: must be above 0, but is -1',
        'share: must be 1 or less, but is 2',
        'below: must be below 5, but is 5',
        'text: must not be empty',
        'short: must have 2 or less characters',
        'list: must have 2 or more entries',
      ]);
      return true;
    },
  );
});

test('a key that a map of known names does not have: the names that it may have', () => {
  const schema = z.strictObject({ columns: z.partialRecord(z.enum(['text', 'label']), z.string()).optional() });
  const refusal = (columns: object) => () => parseWith(schema, { columns }, 'recipe');
  assert.throws(refusal({ txt: 'body' }), /columns: unknown key 'txt' \(did you mean 'text'\?\)/);
  assert.throws(refusal({ category: 'body' }), /unknown key 'category' \(allowed: text, label\)/);
});

test('a value of none of several kinds: the kinds that there are, or the size where the kind is right', () => {
  const rows = z.union([z.string(), z.array(z.string()).min(1)]);
  const schema = z.strictObject({ rows, weights: z.union([z.literal('balanced'), z.record(z.string(), z.number())]) });
  const refusal = (value: object) => () => parseWith(schema, { rows: 'a', weights: {}, ...value }, 'recipe');
  assert.throws(refusal({ rows: [] }), /rows: must not be empty/);
  assert.throws(refusal({ rows: 3 }), /rows: must be a string or a list, but is 3/);
  assert.throws(
    refusal({ weights: 'equal' }),
    /weights: must be balanced or an object with names as keys, but is "equal"/,
  );
});
