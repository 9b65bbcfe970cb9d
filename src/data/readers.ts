import { createReadStream, existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, extname, resolve } from 'node:path';
import { GraftError, nearestPath } from '../base/index.ts';
import { parseJson } from '../io/index.ts';
import { exactRow, parseExactly } from './exact-rows.ts';
import { imageRecords } from './images/index.ts';
import type { RawRecord } from './record.ts';

/**
 * Reads the records of a .jsonl, .json, .csv, .parquet or .conll file, or the images of a directory with a folder for each label.
 * @throws GraftError 'usage' for a file that is not found or has an unsupported extension, 'input' with file and line for
 *   invalid contents and for an empty file
 */
export async function readRecords(file: string): Promise<RawRecord[]> {
  if (!existsSync(file)) {
    const near = nearestPath(file);
    throw new GraftError('usage', 'the data file was not found', {
      place: file,
      hint: near ? `Did you mean ${near}?` : 'Check the path',
    });
  }
  if (statSync(file).isDirectory()) return imageRecords(file);
  const reader = readers[extname(file).toLowerCase()];
  if (!reader) {
    throw new GraftError('usage', `files with the extension '${extname(file)}' are not supported`, {
      place: file,
      hint: `Use one of ${Object.keys(readers).join(', ')}`,
    });
  }
  let records: RawRecord[];
  try {
    records = await reader(file);
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    throw new GraftError('input', `the file cannot be read: ${(cause as Error).message}`, { place: file, cause });
  }
  if (records.length === 0) throw new GraftError('input', 'the file has no rows', { place: file });
  return records.map(({ value, place }) => {
    // Paths of images are relative to the file that lists them.
    const { image } = value;
    return typeof image === 'string'
      ? { value: { ...value, image: resolve(dirname(file), image) }, place }
      : { value, place };
  });
}

const readers: Readonly<Record<string, (file: string) => Promise<RawRecord[]>>> = {
  '.jsonl': jsonLines,
  '.ndjson': jsonLines,
  '.json': json,
  '.csv': csv,
  '.parquet': parquet,
  '.conll': conll,
};

function toRecord(value: unknown, place: string): RawRecord {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    const actual = value === null ? 'null' : Array.isArray(value) ? 'a list' : `a ${typeof value}`;
    throw new GraftError('input', `a row must be an object with named fields, and this is ${actual}`, { place });
  }
  return { value: value as Record<string, unknown>, place };
}

/** The lines of a file without their line feeds. Other line separators do not end a line, since JSON strings may contain them. */
async function* linesOf(file: string): AsyncGenerator<Buffer> {
  let line: Buffer[] = []; // the chunks of the line so far
  for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) {
    let start = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, start)) {
      line.push(chunk.subarray(start, at));
      yield line.length === 1 ? line[0]! : Buffer.concat(line);
      line = [];
      start = at + 1;
    }
    if (start < chunk.length) line.push(chunk.subarray(start));
  }
  if (line.length > 0) yield Buffer.concat(line);
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

async function jsonLines(file: string): Promise<RawRecord[]> {
  const records: RawRecord[] = [];
  let line = 0;
  for await (const bytes of linesOf(file)) {
    const place = `${file}:${++line}`;
    let value: unknown;
    try {
      const content = utf8.decode(bytes); // without a byte order mark
      if (content.trim() === '') continue;
      value = exactRow(JSON.parse(content), () => parseExactly(content));
    } catch (cause) {
      const problem = cause instanceof SyntaxError ? `not valid JSON: ${cause.message}` : 'not valid UTF-8';
      throw new GraftError('input', `the line is ${problem}`, { place, cause });
    }
    records.push(toRecord(value, place));
  }
  return records;
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}

/** The text of a file, without a byte order mark. @throws GraftError 'input' where it is not valid UTF-8 */
function readText(file: string): string {
  const bytes = readFileSync(file);
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw new GraftError('input', 'the file is not valid UTF-8', { place: file, hint: 'Save it as UTF-8', cause });
  }
}

async function json(file: string): Promise<RawRecord[]> {
  const text = readText(file);
  const value = parseJson(text, file);
  const list = Array.isArray(value) ? value : (value as { data?: unknown } | null)?.data;
  if (!Array.isArray(list))
    throw new GraftError('input', 'the file must hold a list of rows, or an object with such a list under data', {
      place: file,
    });
  const exactList = once(() =>
    Array.isArray(value) ? parseExactly(text) : (parseExactly(text) as { data: unknown }).data,
  );
  const exact = (i: number) => (exactList() as unknown[])[i];
  return list.map((item, i) =>
    toRecord(
      exactRow(item, () => exact(i)),
      `${file}:row ${i + 1}`,
    ),
  );
}

async function csv(file: string): Promise<RawRecord[]> {
  const content = readText(file);
  const { parse } = await import('csv-parse/sync'); // loaded only where a CSV file is read
  try {
    const rows = parse(content, {
      columns: true,
      info: true,
      skip_empty_lines: true,
    }) as unknown as {
      record: Record<string, string>;
      info: { lines: number };
    }[];
    return rows.map(({ record: value, info }) => ({ value, place: `${file}:${info.lines}` }));
  } catch (cause) {
    const { message, lines } = cause as Error & { lines?: number };
    throw new GraftError('input', `the file is not valid CSV: ${message}`, {
      place: lines ? `${file}:${lines}` : file,
      cause,
    });
  }
}

/**
 * Reads tagged words in the format of the CoNLL shared tasks: a line has a word and more columns, the last of which is its tag;
 * an empty line ends a sentence, `-DOCSTART-` begins a document.
 */
async function conll(file: string): Promise<RawRecord[]> {
  const records: RawRecord[] = [];
  let [tokens, tags]: [string[], string[]] = [[], []];
  let [line, firstLine] = [0, 1];
  const endSentence = () => {
    if (tokens.length > 0) records.push({ value: { tokens, tags }, place: `${file}:${firstLine}` });
    [tokens, tags] = [[], []];
  };
  for await (const bytes of linesOf(file)) {
    line++;
    const columns = utf8.decode(bytes).trim().split(/\s+/);
    if (columns[0] === '' || columns[0] === '-DOCSTART-') {
      endSentence();
      continue;
    }
    if (columns.length < 2)
      throw new GraftError('input', 'the line has a word but no tag', { place: `${file}:${line}` });
    if (tokens.length === 0) firstLine = line;
    tokens.push(columns[0]!);
    tags.push(columns.at(-1)!);
  }
  endSentence();
  return records;
}

/**
 * The value of a column with typed arrays as lists, and 64-bit integers as numbers where these are exact. Objects in it have no
 * fields that are null: all objects of a column share their fields, so null is how Parquet leaves one out.
 */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (Array.isArray(value)) return value.map(plain);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plain);
  if (value === null || typeof value !== 'object' || value instanceof Date) return value;
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, item]) => (item === null || item === undefined ? [] : [[key, plain(item)]])),
  );
}

async function parquet(file: string): Promise<RawRecord[]> {
  const { asyncBufferFromFile, parquetReadObjects } = await import('hyparquet');
  try {
    const rows = await parquetReadObjects({ file: await asyncBufferFromFile(file) });
    return rows.map((row, i) => {
      const columns = Object.entries(row).map(([name, value]) => [name, plain(value)]);
      return toRecord(Object.fromEntries(columns), `${file}:row ${i + 1}`);
    });
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    throw new GraftError('input', `the Parquet file cannot be read: ${(cause as Error).message}`, {
      place: file,
      cause,
    });
  }
}
