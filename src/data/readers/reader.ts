import { GraftError } from '../../base/index.ts';
import type { RawRecord } from '../record.ts';

/** How the rows of a source are read. */
export interface ReadOptions {
  /** The column of the file for each column that its format has: `{ text: 'body' }`. */
  readonly columns?: Readonly<Record<string, string | undefined>> | undefined;
  /** Whether columns that no row has are passed over, where the names are those of other rows. Default: they are refused. */
  readonly columnsMayLack?: boolean | undefined;
  /** Rows that are read at most, from the first. */
  readonly limit?: number | undefined;
  /** CSV: what separates the fields. Default: found from the first lines. */
  readonly delimiter?: string | undefined;
  /** Whether a delimiter is passed over where no file has use for it, since it is that of other rows. Default: that is noted. */
  readonly delimiterMayLack?: boolean | undefined;
  /** Is told what of a source is not read. */
  readonly note?: ((text: string) => void) | undefined;
}

/** Reads the records of a file of one kind, `limit` at most. */
export type Reader = (file: string, limit: number, options: ReadOptions) => Promise<RawRecord[]>;

/** A value as a record. @throws GraftError 'input' for one that is no object */
export function toRecord(value: unknown, place: string): RawRecord {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const actual = value === null ? 'null' : Array.isArray(value) ? 'a list' : `a ${typeof value}`;
    throw new GraftError('input', `a row must be an object with named fields, and this is ${actual}`, { place });
  }
  return { value: value as Record<string, unknown>, place };
}

/** @throws GraftError 'input' where two columns have one name, of which only the last would be seen */
export function requireDistinct(names: readonly string[], place: string): void {
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice === undefined) return;
  const numbers = names.flatMap((name, i) => (name === twice ? [i + 1] : []));
  throw new GraftError('input', `columns ${numbers.join(' and ')} have the same name, '${twice}'`, {
    place,
    hint: 'Rename one of them',
  });
}
