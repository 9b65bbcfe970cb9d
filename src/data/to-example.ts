import { z } from 'zod';
import { GraftError, nearest } from '../base/index.ts';
import { unusedColumns } from './chat-rows.ts';
import type { Example, ExampleContent } from './example.ts';
import { type Format, formats, tokensContent, tokensSchema } from './formats.ts';
import type { RawRecord } from './record.ts';

/** The format that the columns of a row have. @throws GraftError 'input' where no format, or more than one, has them */
function detectFormat({ value, place }: RawRecord): Format {
  const present = Object.keys(value);
  const all = Object.keys(formats) as Format[];
  const complete = all.filter((name) => {
    const { columns, excludedColumns = [] } = formats[name];
    return columns.every((c) => present.includes(c)) && !excludedColumns.some((c) => present.includes(c));
  });
  const isAsking = (name: Format) => present.includes(formats[name].askingColumn ?? '');
  const possible = complete.length > 0 ? complete : all.filter(isAsking);
  // Files of rows in several formats have null in the columns that a row lacks.
  const filled = possible.filter((name) => formats[name].columns.every((c) => value[c] !== null));
  const candidates = filled.length > 0 ? filled : possible;
  if (candidates.length === 1) return candidates[0]!;
  if (candidates.length > 1) {
    throw new GraftError('input', `the row could be ${candidates.join(' or ')}`, {
      place,
      hint: 'Name the format in the recipe (data.format)',
    });
  }
  const expected = Object.values(formats).flatMap(({ columns }) => columns);
  const suggestions = present.flatMap((column) => {
    const near = nearest(column, expected);
    return near && near !== column ? [`'${near}' instead of '${column}'`] : [];
  });
  const supported = Object.entries(formats).map(([name, { columns }]) => `${name} (${columns.join(', ')})`);
  throw new GraftError(
    'input',
    `unrecognised columns ${present.map((column) => `'${column}'`).join(', ') || '(none)'}${suggestions.length > 0 ? `; did you mean ${suggestions.join(', ')}?` : ''}`,
    {
      place,
      hint: `Say with data.columns (--columns of a command) which column is which, as { text: body, label: kind }; the formats and their columns are ${supported.join(', ')}`,
    },
  );
}

/**
 * Reads a record as an example.
 * @throws GraftError 'input' with its place when the format is not recognised, or a column is missing or of the wrong type
 */
export function toExample(record: RawRecord, format: Format | 'auto'): Example {
  const name = format === 'auto' ? detectFormat(record) : format;
  const parsed = formats[name].schema.safeParse(record.value);
  if (!parsed.success) throw invalidRow(name, record, deepestIssue(parsed.error.issues));
  const content = formats[name].read(parsed.data as never);
  const { shape } = formats[name].schema as Partial<z.ZodObject>;
  // Conversations and completions tell by themselves, for they read more columns than they must have.
  const isTold = !shape || content.kind === 'chat';
  const unused = isTold ? [] : unusedColumns(record.value, Object.keys(shape));
  return withTask(unused.length > 0 ? { ...content, unused } : content, record.value);
}

/** The content with the task number of its row, if it has one. */
const withTask = (content: ExampleContent, { task }: Readonly<Record<string, unknown>>): Example =>
  Number.isInteger(task) ? { ...content, task: task as number } : content;

/** For a value that matches no member of a union: the issue of the member that it matches best, by depth. */
function deepestIssue(issues: readonly z.core.$ZodIssue[]): z.core.$ZodIssue {
  const [first] = issues;
  if (first!.code !== 'invalid_union') return first!;
  const inner = first!.errors.map((list) => deepestIssue(list)).sort((a, b) => b.path.length - a.path.length);
  return inner[0] ? { ...inner[0], path: [...first!.path, ...inner[0].path] } : first!;
}

function invalidRow(
  name: Format,
  { value, place }: RawRecord,
  { path, message: problem }: z.core.$ZodIssue,
): GraftError {
  const [field] = path.map(String);
  // A missing field may be there misspelt.
  const near = field && !(field in value) ? nearest(field, Object.keys(value)) : undefined;
  return new GraftError(
    'input',
    `invalid row of format ${name}: ${path.map(String).join('.') || 'the row'}: ${problem.replace(/^Invalid input: /, '')}`,
    { place, ...(near && { hint: `Did you mean '${field}' instead of '${near}'?` }) },
  );
}

/**
 * Reads a record of the format `batches`, the rows of one optimizer step: `{"rows": [{"ids": […], "labels": […]}]}`.
 * @throws GraftError 'input' with the record's place for one of another form
 */
export function toStep({ value, place }: RawRecord): { example: Example; place: string }[] {
  const parsed = z.looseObject({ rows: z.array(tokensSchema).min(1) }).safeParse(value);
  if (!parsed.success) {
    const [first] = parsed.error.issues;
    const field = first!.path.map(String).join('.') || 'the line';
    throw new GraftError('input', `invalid row of format batches: ${field}: ${first!.message}`, { place });
  }
  return parsed.data.rows.map((row, i) => ({ example: withTask(tokensContent(row), row), place: `${place} row ${i}` }));
}
