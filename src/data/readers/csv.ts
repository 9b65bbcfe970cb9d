import type { Options } from 'csv-parse';
import { GraftError } from '../../base/index.ts';
import { BadRows } from '../bad-rows.ts';
import type { RawRecord } from '../record.ts';
import { textOf } from './lines.ts';
import { type Reader, requireDistinct } from './reader.ts';

/** What may separate the fields of a row, the likeliest first, with its name in messages. */
const delimiters: Readonly<Record<string, string>> = { ',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars' };
/** Rows that the delimiter is looked for in. */
const sampleRows = 50;
const sampleCharacters = 1 << 16;

type Parse = typeof import('csv-parse/sync')['parse'];
interface Parsed {
  readonly record: string[];
  readonly info: { readonly bytes: number };
}

/** A row of a CSV file as a record; the fields of a CSV file are texts. */
const readCsv =
  (fixed?: string): Reader =>
  async (file, limit, { delimiter: asked }) => {
    const content = await textOf(file);
    const { parse } = await import('csv-parse/sync'); // loaded only where a CSV file is read
    const delimiter = fixed ?? asked ?? delimiterOf(content, parse);
    const bad = new BadRows();
    const bytes = Buffer.from(content);
    const lines = new Lines(bytes);
    const place = (line: number) => `${file}:${line}`;
    const invalid = (error: Error, line: number) =>
      new GraftError('input', `the file is not valid CSV: ${withoutPlace(error.message)}`, {
        place: place(line),
        hint: `Its fields are separated by ${delimiters[delimiter] ?? `'${delimiter}'`}, and a field with quotes in it is quoted, with each of its quotes doubled. data.delimiter (--delimiter of a command) names another separator`,
        cause: error,
      });
    const options: Options = {
      delimiter,
      info: true,
      relax_column_count: true,
      skip_empty_lines: true,
      skip_records_with_error: true,
      ...(Number.isFinite(limit) && { to: limit + 1 }),
    };
    const errors: { error: Error; bytes: number }[] = [];
    const rows = parse(bytes, {
      ...options,
      on_skip: (error) => {
        if (error) errors.push({ error, bytes: (error as unknown as { bytes: number }).bytes });
        return undefined;
      },
    } as Options) as unknown as Parsed[];
    for (const { error, bytes: at } of errors) bad.try(() => refuse(invalid(error, lines.at(at))));
    const [header, ...body] = rows;
    if (!header) bad.refuse();
    if (!header) return [];
    const names = header.record;
    requireDistinct(names, `${file}:1`);
    const records: RawRecord[] = [];
    for (const { record, info } of body) {
      const line = lines.startOf(record, info.bytes);
      const width = (n: number) => `${n} ${n === 1 ? 'field' : 'fields'}`;
      bad.try(() => {
        if (record.length !== names.length)
          refuse(
            new GraftError(
              'input',
              `the file is not valid CSV: the row has ${width(record.length)}, and the first line ${width(names.length)}`,
              { place: place(line), hint: 'Quote a field that has the separator or a line break in it' },
            ),
          );
        records.push({ value: Object.fromEntries(names.map((name, i) => [name, record[i]])), place: place(line) });
      });
    }
    bad.refuse();
    return records;
  };

export const csv = readCsv();
/** Fields are separated by tabs. */
export const tsv = readCsv('\t');

function refuse(error: GraftError): never {
  throw error;
}

const withoutPlace = (message: string) =>
  message.replace(/,? (?:at|on) line \d+.*$/s, '').replace(/(?: instead of \w+)?(?:, at byte \d+)/, '');

/** The delimiter that the first line has, and with which most of the first rows have as many fields; a comma where there is none. */
function delimiterOf(content: string, parse: Parse): string {
  const sample = content.slice(0, sampleCharacters);
  const shares = Object.keys(delimiters).map((delimiter): number => {
    const options = { delimiter, relax_column_count: true, skip_empty_lines: true, skip_records_with_error: true };
    const [first, ...rows] = parse(sample, { ...options, to: sampleRows }) as string[][];
    if (!first || first.length === 1) return 0;
    return (1 + rows.filter(({ length }) => length === first.length).length) / (1 + rows.length);
  });
  return Object.keys(delimiters)[shares.indexOf(Math.max(...shares))]!;
}

/** Line numbers in a file whose lines end in LF, CR LF or CR. */
class Lines {
  readonly #bytes: Buffer;
  #at = 0;
  #line = 1;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** The line of a byte, from 1; bytes are asked for in ascending order, else counted from the beginning. */
  at(byte: number): number {
    if (byte < this.#at) [this.#at, this.#line] = [0, 1];
    for (; this.#at < byte; this.#at++) {
      const code = this.#bytes[this.#at];
      if (code === 10 || (code === 13 && this.#bytes[this.#at + 1] !== 10)) this.#line++;
    }
    return this.#line;
  }

  /** The line that a row begins in, from its fields and the byte where it ends. */
  startOf(fields: readonly string[], end: number): number {
    let last = end;
    while (last > 0 && (this.#bytes[last - 1] === 10 || this.#bytes[last - 1] === 13)) last--;
    return this.at(last) - fields.reduce((sum, field) => sum + (field.match(/\r\n|\r|\n/g)?.length ?? 0), 0);
  }
}
