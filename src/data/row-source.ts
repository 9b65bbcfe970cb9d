import { GraftError } from '../base/index.ts';
import { type ReadOptions, readRecords, rowsInMemory } from './readers/index.ts';
import type { RawRecord } from './record.ts';

/** A row as it stands in a file or in memory: an object whose field names tell its format (docs/recipe.md, Rows). */
export type RowInput = object;

/**
 * Rows: the path of a file, a folder or a pattern (`rows-*.jsonl`), a data set on the hub (`hub:owner/name`), several of these, or
 * rows in memory.
 */
export type RowSource = string | readonly string[] | readonly RowInput[];

const arePaths = (source: RowSource): source is readonly string[] =>
  Array.isArray(source) && source.length > 0 && source.every((entry) => typeof entry === 'string');

/** The paths that a source has; none for rows in memory. */
export const pathsOf = (source: RowSource): readonly string[] =>
  typeof source === 'string' ? [source] : arePaths(source) ? source : [];

/** The source with each of its paths changed. */
export const withPaths = (source: RowSource, change: (path: string) => string): RowSource =>
  typeof source === 'string' ? change(source) : arePaths(source) ? source.map(change) : source;

/** What messages call a source: its path or paths, or `name` for rows in memory. */
export const nameOfSource = (source: RowSource, name: string): string => pathsOf(source).join(', ') || name;

/** Rows wherever they come from; those of an iterable are read to their end before they are used. */
export type RowStream = RowSource | Iterable<RowInput> | AsyncIterable<RowInput>;

/**
 * The records of a source, each with its place: file and line, or its number among rows in memory (`data.train[3]`).
 * @param name of rows in memory, in places
 * @throws GraftError 'input' or 'usage' as `readRecords` does, and for a row in memory that is not an object
 */
export async function recordsOf(source: RowSource, name: string, options: ReadOptions = {}): Promise<RawRecord[]> {
  const paths = pathsOf(source);
  if (paths.length === 0) return rowsInMemory(source as readonly RowInput[], name, options);
  const { limit = Number.POSITIVE_INFINITY } = options;
  const records: RawRecord[] = [];
  for (const path of paths) {
    if (records.length >= limit) break;
    for (const record of await readRecords(path, { ...options, limit: limit - records.length })) records.push(record);
  }
  requireOnce(records);
  return records;
}

/** @throws GraftError 'usage' where two paths of a source name the same rows */
function requireOnce(records: readonly RawRecord[]): void {
  const places = new Set<string>();
  for (const { place } of records) {
    if (places.has(place))
      throw new GraftError('usage', 'two paths of the data name the same row', {
        place,
        hint: 'Name each file once',
      });
    places.add(place);
  }
}

/** Whether rows have to be collected before they can cross a thread. */
const isIterable = (stream: unknown): stream is Iterable<RowInput> | AsyncIterable<RowInput> =>
  typeof stream === 'object' &&
  stream !== null &&
  !Array.isArray(stream) &&
  (Symbol.asyncIterator in stream || Symbol.iterator in stream);

/**
 * Rows that can cross a thread: an iterable as a list of its rows, everything else as it is, at once.
 * @param signal stops the collecting
 * @throws the signal's reason
 */
export function collectRows(stream: RowStream, signal?: AbortSignal): RowSource | Promise<RowSource> {
  return isIterable(stream) ? collect(stream, signal) : (stream as RowSource);
}

async function collect(
  stream: Iterable<RowInput> | AsyncIterable<RowInput>,
  signal?: AbortSignal,
): Promise<RowInput[]> {
  const iterator =
    Symbol.asyncIterator in stream ? stream[Symbol.asyncIterator]() : (stream as Iterable<RowInput>)[Symbol.iterator]();
  const aborted = new Promise<never>((_, reject) => {
    signal?.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
  aborted.catch(() => {}); // it may lose every race
  const rows: RowInput[] = [];
  try {
    for (;;) {
      signal?.throwIfAborted();
      const next = await Promise.race([iterator.next(), aborted]);
      if (next.done) return rows;
      rows.push(next.value);
    }
  } catch (error) {
    void Promise.resolve(iterator.return?.()).catch(() => {});
    throw error;
  }
}
