import { GraftError } from '../base/index.ts';
import { readRecords } from './readers.ts';
import type { RawRecord } from './record.ts';

/** A row as it stands in a file or in memory: an object whose field names tell its format (docs/recipe.md, Rows). */
export type RowInput = object;

/** Rows: the path of a file or an image folder, or rows in memory. */
export type RowSource = string | readonly RowInput[];

/** Rows wherever they come from; those of an iterable are read to their end before they are used. */
export type RowStream = RowSource | Iterable<RowInput> | AsyncIterable<RowInput>;

/**
 * The records of a source, each with its place: file and line, or its number among rows in memory (`data.train[3]`).
 * @param name of rows in memory, in places
 * @throws GraftError 'input' or 'usage' as `readRecords` does, and for a row in memory that is not an object
 */
export async function recordsOf(source: RowSource, name: string): Promise<RawRecord[]> {
  if (typeof source === 'string') return readRecords(source);
  return source.map((value, i) => {
    const place = `${name}[${i}]`;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new GraftError('input', 'the row is not an object', { place });
    }
    return { value: value as Record<string, unknown>, place };
  });
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
