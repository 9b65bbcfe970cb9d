/** What JSON has and JavaScript's values do not: whole floats, large integers, and the order of keys that are numbers. */

/** Text that `JSON.stringify` writes as it is; TypeScript's library does not know it yet. */
const { rawJSON } = JSON as unknown as { rawJSON(text: string): object };

/** A number as its text. It is copied between threads, and `JSON.stringify` writes the number again. */
const exactNumber = (text: string): object =>
  Object.defineProperty({ rawJSON: text }, 'toJSON', { value: () => rawJSON(text) });

/** The keys of an object in the order of its text, where JavaScript has another one. */
const KEY_ORDER = Symbol('key order');

/** An object's entries in the order of the text that it was read from. */
export function orderedEntries(value: object): [string, unknown][] {
  const order = (value as { [KEY_ORDER]?: readonly string[] })[KEY_ORDER];
  const fields = value as Readonly<Record<string, unknown>>;
  return order
    ? order.filter((key) => Object.hasOwn(fields, key)).map((key) => [key, fields[key]])
    : Object.entries(value);
}

/** The text of a number that JavaScript's cannot hold; undefined for other objects. */
export function exactNumberText(value: object): string | undefined {
  const { rawJSON: text } = value as { rawJSON?: unknown };
  return typeof text === 'string' && /^-?\d+(\.\d+)?([eE][-+]?\d+)?$/.test(text) ? text : undefined;
}

/** What `JSON.stringify` writes as the number that such an object or an integer of any size is; undefined for any other value. */
export function exactJson(value: unknown): object | undefined {
  if (typeof value === 'bigint') return rawJSON(String(value));
  const text = typeof value === 'object' && value !== null ? exactNumberText(value) : undefined;
  return text === undefined ? undefined : rawJSON(text);
}

/** Whether a text of JSON may have what `JSON.parse` loses: a quick look, which says yes too often. */
const mayLose = (text: string) => /"\d+"\s*:|\d\.0|\d[eE]|\d{16}/.test(text);

/**
 * Reads JSON as `JSON.parse` does, and keeps the numbers and the order of keys that chat templates print: `20.0` is a float and
 * 9007199254740993 the integer that it is, as objects with their text (`exactNumberText`).
 * @param plain names of fields whose numbers are JavaScript's all the same
 * @throws SyntaxError
 */
export function parseJsonExactly(text: string, plain: readonly string[] = []): unknown {
  const value: unknown = JSON.parse(text);
  return mayLose(text) ? new ExactReader(text, plain).value('') : value;
}

const NUMBER = /-?\d+(\.\d+)?([eE][-+]?\d+)?/y;
const STRING = /"(?:[^"\\]|\\.)*"/y;

/** Reads a text that is known to be valid. */
class ExactReader {
  readonly #text: string;
  readonly #plain: readonly string[];
  #at = 0;

  constructor(text: string, plain: readonly string[]) {
    this.#text = text;
    this.#plain = plain;
  }

  #match(pattern: RegExp): string {
    pattern.lastIndex = this.#at;
    const [found] = pattern.exec(this.#text)!;
    this.#at = pattern.lastIndex;
    return found;
  }

  /** The next character that is no white space. */
  #next(): string {
    while (' \n\r\t'.includes(this.#text[this.#at]!)) this.#at++;
    return this.#text[this.#at]!;
  }

  value(field: string): unknown {
    switch (this.#next()) {
      case '{':
        return this.#object();
      case '[':
        return this.#list(field);
      case '"':
        return JSON.parse(this.#match(STRING));
      case 't':
      case 'f':
      case 'n':
        return JSON.parse(this.#match(/true|false|null/y));
      default:
        return this.#number(field);
    }
  }

  #number(field: string): unknown {
    const source = this.#match(NUMBER);
    const value = Number(source);
    const isFloat = /[.eE]/.test(source);
    const isLost = isFloat ? Number.isInteger(value) || !Number.isFinite(value) : !Number.isSafeInteger(value);
    return isLost && !this.#plain.includes(field) ? exactNumber(source) : value;
  }

  #list(field: string): unknown[] {
    const items: unknown[] = [];
    for (this.#at++; this.#next() !== ']'; ) {
      items.push(this.value(field));
      if (this.#next() === ',') this.#at++;
    }
    this.#at++;
    return items;
  }

  #object(): object {
    const fields: Record<string, unknown> = {};
    const keys = new Set<string>();
    for (this.#at++; this.#next() !== '}'; ) {
      const key = JSON.parse(this.#match(STRING)) as string;
      this.#next();
      this.#at++; // the colon
      const value = this.value(key);
      Object.defineProperty(fields, key, { value, enumerable: true, writable: true, configurable: true });
      keys.add(key);
      if (this.#next() === ',') this.#at++;
    }
    this.#at++;
    const order = [...keys];
    if (Object.keys(fields).some((key, i) => key !== order[i]))
      Object.defineProperty(fields, KEY_ORDER, { value: order });
    return fields;
  }
}
