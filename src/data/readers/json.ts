import { GraftError } from '../../base/index.ts';
import { parseJson } from '../../io/index.ts';
import { BadRows, mapRows } from '../bad-rows.ts';
import { exactRow, parseExactly } from '../exact-rows.ts';
import type { RawRecord } from '../record.ts';
import { linesOf, textOf, utf8 } from './lines.ts';
import { type Reader, toRecord } from './reader.ts';

/** Reads JSON Lines, an object a line; also a file that holds one list of objects. */
export const jsonLines: Reader = async (file, limit, options) => {
  const records: RawRecord[] = [];
  const bad = new BadRows();
  let line = 0;
  for await (const bytes of linesOf(file)) {
    const place = `${file}:${++line}`;
    const record = bad.try(() => lineRecord(bytes, place));
    if (record === 'list') {
      if (records.length === 0) return json(file, limit, options);
      bad.try(() => toRecord([], place));
    } else if (record) records.push(record);
    if (records.length === limit) break;
  }
  bad.refuse();
  return records;
};

/** The record of a line; undefined for an empty line, `list` for the beginning of a list. */
function lineRecord(bytes: Buffer, place: string): RawRecord | 'list' | undefined {
  let value: unknown;
  let content = '';
  try {
    content = utf8.decode(bytes); // without a byte order mark
    if (content.trim() === '') return undefined;
    value = exactRow(JSON.parse(content), () => parseExactly(content));
  } catch (cause) {
    if (content.trimStart().startsWith('[')) return 'list';
    const problem = cause instanceof SyntaxError ? `not valid JSON: ${cause.message}` : 'not valid UTF-8';
    throw new GraftError('input', `the line is ${problem}`, { place, cause });
  }
  return Array.isArray(value) ? 'list' : toRecord(value, place);
}

/** Reads a list of objects, or an object with such a list under `data`; also JSON Lines. */
export const json: Reader = async (file, limit, options) => {
  const text = await textOf(file);
  if (isLines(text)) return jsonLines(file, limit, options);
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
  return mapRows([...list.slice(0, limit).entries()], ([i, item]) =>
    toRecord(
      exactRow(item, () => exact(i)),
      `${file}:row ${i + 1}`,
    ),
  );
};

/** Whether the first line is an object, and another one follows it. */
function isLines(text: string): boolean {
  const [, first = '', rest = ''] = /^\s*(\{[^\n]*\})[^\S\n]*\r?\n\s*(\S?)/.exec(text) ?? [];
  if (rest !== '{') return false;
  try {
    JSON.parse(first);
    return true;
  } catch {
    return false;
  }
}

function once<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
