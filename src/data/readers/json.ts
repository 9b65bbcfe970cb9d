import { GraftError } from '../../base/index.ts';
import { parseJson } from '../../io/index.ts';
import { BadRows, mapRows } from '../bad-rows.ts';
import { exactRow, parseExactly } from '../exact-rows.ts';
import type { RawRecord } from '../record.ts';
import { linesOf, textOf, utf8 } from './lines.ts';
import { type Reader, requireDistinct, toRecord } from './reader.ts';

/** Lines whose fields are looked through for two of one name: a file has these in all of its rows, or in none. */
const checkedLines = 100;

/** The names of an object's fields as its text has them, twice where it has a field twice. */
function namesIn(text: string): string[] {
  const names: string[] = [];
  let [depth, before] = [0, ''];
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\]:]/g)) {
    if (token === '{' || token === '[') depth++;
    else if (token === '}' || token === ']') depth--;
    else if (token === ':' && depth === 1) names.push(JSON.parse(before));
    before = token;
  }
  return names;
}

/** Reads JSON Lines, an object a line; also a file that holds one list of objects. */
export const jsonLines: Reader = async (file, limit, options) => {
  const records: RawRecord[] = [];
  const bad = new BadRows();
  let line = 0;
  for await (const bytes of linesOf(file)) {
    const place = `${file}:${++line}`;
    const record = bad.try(() => lineRecord(bytes, place, line <= checkedLines));
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
function lineRecord(bytes: Buffer, place: string, checksNames: boolean): RawRecord | 'list' | undefined {
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
  if (Array.isArray(value)) return 'list';
  const record = toRecord(value, place);
  if (checksNames) requireDistinct(namesIn(content), place);
  return record;
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
