import { readFileSync } from 'node:fs';
import { fileError, GraftError } from '../base/index.ts';
import { brief } from './input-file.ts';

/**
 * Returns the value in a JSON file.
 * @throws GraftError `input` with file, line and column, where the file is missing or is not valid JSON
 */
export function readJson(path: string): unknown {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw fileError(error, path, 'read');
  }
  return parseJson(text.replace(/^\uFEFF/, ''), path);
}

/** As `readJson`, for a file that must hold an object. */
export function readJsonObject(path: string): Record<string, unknown> {
  const value = readJson(path);
  if (isObject(value)) return value;
  throw new GraftError('input', 'The file holds JSON, but not an object', {
    place: path,
    hint: 'The file must start with {',
  });
}

export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Parses JSON text.
 * @param place of the text, for the error, which adds line and column
 * @param unique refuse an object with a repeated key (JSON.parse takes the last one); this takes twice as long as JSON.parse
 * @throws GraftError `input` for invalid JSON
 */
export function parseJson(text: string, place: string, { unique = false } = {}): unknown {
  let value: unknown;
  let problem: unknown;
  try {
    value = JSON.parse(text);
    if (!unique) return value;
  } catch (error) {
    problem = error;
  }
  const fault = findFault(text, unique);
  if (!fault && problem === undefined) return value;
  if (!fault) throw new GraftError('input', `This is not valid JSON: ${(problem as Error).message}`, { place });
  const before = text.slice(0, fault.at);
  const line = before.split('\n').length;
  const column = fault.at - before.lastIndexOf('\n');
  throw new GraftError('input', fault.problem, { place: `${place}:${line}:${column}`, hint: 'Correct the JSON there' });
}

const SCALAR = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y;
const ESCAPE = /\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})/y;

/**
 * Returns the first place where `text` violates RFC 8259, which JSON.parse does not always tell, or (if `unique`) repeats a
 * key of an object. Not recursive, so that deep nesting does not overflow the stack.
 */
function findFault(text: string, unique: boolean): { at: number; problem: string } | undefined {
  const open: (Set<string> | null)[] = []; // the keys of each open object, null for an open array
  let at = 0;
  let expect: 'value' | 'value or ]' | 'key' | 'key or }' | 'comma' = 'value';
  const fault = (problem: string) => ({ at, problem });
  for (;;) {
    while (' \t\n\r'.includes(text[at] ?? '.')) at++;
    const c = text[at];
    const openKeys = open.at(-1);
    if (c === undefined)
      return expect === 'comma' && open.length === 0 ? undefined : fault('The JSON ends before it is complete');
    if (expect === 'comma') {
      if (open.length === 0) return fault(`Unexpected text after the end of the JSON: ${JSON.stringify(c)}`);
      if (c === ',') expect = openKeys ? 'key' : 'value';
      else if (c === (openKeys ? '}' : ']')) open.pop();
      else return fault(`Expected a comma or the closing ${openKeys ? '}' : ']'}, found ${JSON.stringify(c)}`);
      at++;
    } else if ((c === '}' && expect === 'key or }') || (c === ']' && expect === 'value or ]')) {
      open.pop();
      expect = 'comma';
      at++;
    } else if (expect === 'key' || expect === 'key or }') {
      const end = c === '"' ? endOfString(text, at) : -1;
      if (end < 0) return fault(`Expected a key in double quotes${c === '}' ? ' after the comma' : ''}`);
      const key: string = JSON.parse(text.slice(at, end));
      if (unique && openKeys?.has(key)) return fault(`The key ${brief(key)} is repeated`);
      openKeys?.add(key);
      for (at = end; ' \t\n\r'.includes(text[at] ?? '.'); ) at++;
      if (text[at] !== ':') return fault(`Expected a colon after the key ${brief(key)}`);
      at++;
      expect = 'value';
    } else if (c === '{' || c === '[') {
      open.push(c === '{' ? new Set() : null);
      expect = c === '{' ? 'key or }' : 'value or ]';
      at++;
    } else {
      SCALAR.lastIndex = at;
      const end = c === '"' ? endOfString(text, at) : SCALAR.test(text) ? SCALAR.lastIndex : -1;
      if (end < 0)
        return fault(
          c === '"'
            ? 'This string does not end or has an invalid character'
            : `Expected a value, found ${JSON.stringify(c)}`,
        );
      at = end;
      expect = 'comma';
    }
  }
}

/** Returns the index after the closing quote of the string that opens at `at`, or -1 where it is not a JSON string. */
function endOfString(text: string, at: number): number {
  for (let i = at + 1; i < text.length; ) {
    const c = text.charCodeAt(i);
    if (c === 0x22) return i + 1;
    if (c < 0x20) return -1;
    if (c === 0x5c) {
      ESCAPE.lastIndex = i;
      if (!ESCAPE.test(text)) return -1;
      i = ESCAPE.lastIndex;
    } else i++;
  }
  return -1;
}
