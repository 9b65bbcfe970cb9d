import { dirname, extname, isAbsolute, join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { imageRecords } from '../images/index.ts';
import type { RawRecord } from '../record.ts';
import { renamed } from './columns.ts';
import { conll } from './conll.ts';
import { csv, tsv } from './csv.ts';
import { json, jsonLines } from './json.ts';
import { compressedExtensions } from './lines.ts';
import { parquet } from './parquet.ts';
import type { Reader, ReadOptions } from './reader.ts';
import { formatExtension, sourceOf } from './sources.ts';

export type { ReadOptions } from './reader.ts';

const readers: Readonly<Record<string, Reader>> = {
  '.jsonl': jsonLines,
  '.ndjson': jsonLines,
  '.json': json,
  '.csv': csv,
  '.tsv': tsv,
  '.parquet': parquet,
  '.conll': conll,
};
const supported = Object.keys(readers);

/**
 * Reads the records of a source: a .jsonl, .json, .csv, .tsv, .parquet or .conll file, which may be compressed (.gz, .zst), all
 * files of a folder or of a pattern (`rows-*.jsonl`) one after the other, a data set on the hub (`hub:owner/name`), or the images
 * of a directory with a folder for each label.
 * @throws GraftError 'usage' for a source that is not found or has an unsupported extension, 'input' with file and line for
 *   invalid contents (of the first twenty rows that are bad) and for an empty file
 */
export async function readRecords(source: string, options: ReadOptions = {}): Promise<RawRecord[]> {
  const { limit = Number.POSITIVE_INFINITY, note = () => {} } = options;
  const found = await sourceOf(source, supported, (text) => note(`${source}: ${text}`));
  if ('imageFolder' in found) {
    noteDelimiter(found.imageFolder, options);
    return [...renamed(firstOfEach(imageRecords(found.imageFolder, note), limit), options, source)];
  }
  const records: RawRecord[] = [];
  const other = found.files.find((file) => formatExtension(file) !== '.csv');
  if (other !== undefined) noteDelimiter(other, options);
  for (const file of found.files) {
    if (records.length >= limit) break;
    for (const record of await fileRecords(file, limit - records.length, options)) records.push(record);
  }
  if (records.length === 0) throw new GraftError('input', 'the file has no rows', { place: source });
  return renamed(records, options, source).map(withImagePath);
}

/** At most `limit` records, of each label in turn: the first ones of a folder would be of one label. */
function firstOfEach(records: readonly RawRecord[], limit: number): readonly RawRecord[] {
  if (records.length <= limit) return records;
  const groups = [...Map.groupBy(records, ({ value }) => value.label).values()];
  const longest = Math.max(...groups.map(({ length }) => length));
  const inTurn = Array.from({ length: longest }, (_, i) => groups.flatMap((group) => group[i] ?? [])).flat();
  return inTurn.slice(0, limit);
}

/** Names a delimiter that rows which are in no .csv file have no use for, unless it is that of other rows. */
function noteDelimiter(place: string, { delimiter, delimiterMayLack, note = () => {} }: ReadOptions): void {
  if (delimiter !== undefined && !delimiterMayLack)
    note(`${place}: data.delimiter is not used, since it is for .csv files`);
}

async function fileRecords(file: string, limit: number, options: ReadOptions): Promise<RawRecord[]> {
  const reader = readers[formatExtension(file)];
  if (!reader) {
    throw new GraftError('usage', `files with the extension '${extname(file)}' are not supported`, {
      place: file,
      hint: `Use one of ${supported.join(', ')}, which may be compressed (${compressedExtensions.join(', ')})`,
    });
  }
  try {
    return await reader(file, limit, options);
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    throw new GraftError('input', `the file cannot be read: ${(cause as Error).message}`, { place: file, cause });
  }
}

/** Paths of images are relative to the file that lists them. */
function withImagePath(record: RawRecord): RawRecord {
  const { value, place } = record;
  const { image } = value;
  const base = dirname(place);
  const absolute = (path: string) => (isAbsolute(path) ? path : join(base, path));
  if (typeof image === 'string') return { ...record, value: { ...value, image: absolute(image) } };
  const { bytes, path } = (image ?? {}) as { bytes?: unknown; path?: unknown };
  if (bytes || typeof path !== 'string' || Array.isArray(image)) return record;
  return { ...record, value: { ...value, image: absolute(path) } };
}

/**
 * The records of rows in memory, each with its number as its place (`data.train[3]`).
 * @param name of the rows, in places
 * @throws GraftError 'input' for a row that is not an object
 */
export function rowsInMemory(rows: readonly object[], name: string, options: ReadOptions = {}): RawRecord[] {
  noteDelimiter(name, options);
  const records = rows.slice(0, options.limit).map((value, i): RawRecord => {
    const place = `${name}[${i}]`;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new GraftError('input', 'the row is not an object', { place });
    }
    return { value: value as Record<string, unknown>, place };
  });
  return [...renamed(records, options, name)];
}
