import { GraftError, nearest } from '../../base/index.ts';
import type { RawRecord } from '../record.ts';

/**
 * Records with their columns renamed: each column of the format is taken from the column of the file that `columns` names.
 * @throws GraftError 'usage' for a column that no record has
 */
export function renamed(
  records: readonly RawRecord[],
  columns: Readonly<Record<string, string>> = {},
  source = '',
): readonly RawRecord[] {
  const names = Object.entries(columns);
  if (names.length === 0) return records;
  for (const [column, from] of names) {
    if (records.some(({ value }) => from in value)) continue;
    const present = [...new Set(records.slice(0, 100).flatMap(({ value }) => Object.keys(value)))];
    const near = nearest(from, present);
    throw new GraftError('usage', `data.columns: no row has the column '${from}', which ${column} is to be`, {
      place: source,
      hint: near ? `Did you mean '${near}'?` : `The columns are ${present.slice(0, 20).join(', ')}`,
    });
  }
  const taken = new Set(names.flat());
  return records.map(({ value, place }) => ({
    value: {
      ...Object.fromEntries(Object.entries(value).filter(([name]) => !taken.has(name))),
      ...Object.fromEntries(names.flatMap(([column, from]) => (from in value ? [[column, value[from]]] : []))),
    },
    place,
  }));
}
