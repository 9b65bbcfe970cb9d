import { GraftError, nearest } from '../../base/index.ts';
import type { RawRecord } from '../record.ts';
import type { ReadOptions } from './reader.ts';

/**
 * Records with their columns renamed: each column of the format is taken from the column of the file that `columns` names.
 * A record without that column keeps the one of the format's name.
 * @throws GraftError 'usage' where no record has it
 */
export function renamed(
  records: readonly RawRecord[],
  { columns = {}, columnsMayLack = false }: ReadOptions,
  source: string,
): readonly RawRecord[] {
  const names = Object.entries(columns).filter((entry): entry is [string, string] => entry[1] !== undefined);
  if (names.length === 0) return records;
  for (const [column, from] of names) {
    if (columnsMayLack || records.some(({ value }) => from in value)) continue;
    const present = [...new Set(records.slice(0, 100).flatMap(({ value }) => Object.keys(value)))];
    const near = nearest(from, present);
    throw new GraftError('usage', `data.columns: no row has the column '${from}', which ${column} is to be`, {
      place: source,
      hint: near ? `Did you mean '${near}'?` : `The columns are ${present.slice(0, 20).join(', ')}`,
    });
  }
  return records.map(({ value, place }) => {
    const moved = names.filter(([, from]) => from in value);
    const taken = new Set(moved.flat());
    const kept = Object.entries(value).filter(([name]) => !taken.has(name));
    const columnsMoved = moved.map(([column, from]) => [column, value[from]]);
    return { value: Object.fromEntries([...kept, ...columnsMoved]), original: value, place };
  });
}
