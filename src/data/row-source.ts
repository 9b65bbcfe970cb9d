import { readRecords } from './readers.ts';
import type { RawRecord } from './record.ts';

/** A row as it stands in a file or in memory: a set of named fields, whose names tell its format (docs/recipe.md, Rows). */
export type RowInput = Readonly<Record<string, unknown>>;

/** Rows: the path of a file or an image folder, or rows in memory. */
export type RowSource = string | readonly RowInput[];

/** Rows wherever they come from; those of an async iterable are read to their end before they are used. */
export type RowStream = RowSource | AsyncIterable<RowInput>;

/**
 * The records of a source, each with its place: file and line, or its number among rows in memory (`data.train[3]`).
 * @param name of rows in memory, in places
 * @throws GraftError 'input' or 'usage' as `readRecords` does
 */
export async function recordsOf(source: RowSource, name: string): Promise<RawRecord[]> {
  if (typeof source === 'string') return readRecords(source);
  return source.map((value, i) => ({ value: value as Record<string, unknown>, place: `${name}[${i}]` }));
}

/** Rows that can cross a thread: an async iterable as a list of its rows. */
export async function collectRows(stream: RowStream): Promise<RowSource> {
  return typeof stream === 'string' || !(Symbol.asyncIterator in stream) ? stream : await Array.fromAsync(stream);
}
