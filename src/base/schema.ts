import { z } from 'zod';
import { GraftError } from './errors.ts';
import { nearest } from './nearest.ts';

type Issue = z.core.$ZodIssue;

/** Keys that the schema knows at `path`, to suggest one for a mistyped key. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let at: z.ZodType | undefined = schema;
  for (const part of path) at = at && child(at, String(part));
  return at ? Object.keys(shapeOf(at)) : [];
}

function unwrapped(schema: z.ZodType): z.ZodType {
  let at = schema;
  while (
    at instanceof z.ZodOptional ||
    at instanceof z.ZodDefault ||
    at instanceof z.ZodNullable ||
    at instanceof z.ZodPrefault
  ) {
    at = at.unwrap() as z.ZodType;
  }
  return at;
}

function shapeOf(schema: z.ZodType): Record<string, z.ZodType> {
  const at = unwrapped(schema);
  if (at instanceof z.ZodObject) return at.shape as Record<string, z.ZodType>;
  if (at instanceof z.ZodUnion) {
    return Object.assign({}, ...(at.options as z.ZodType[]).map(shapeOf)) as Record<string, z.ZodType>;
  }
  return {};
}

const child = (schema: z.ZodType, key: string): z.ZodType | undefined => shapeOf(schema)[key];

function describe(schema: z.ZodType, issue: Issue): string[] {
  const path = issue.path.map(String).join('.');
  const at = path ? `${path}: ` : '';
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(schema, issue.path);
    return issue.keys.map((key) => {
      const near = nearest(key, known);
      return `${at}unknown key '${key}'${near ? ` (did you mean '${near}'?)` : ` (known are ${known.join(', ')})`}`;
    });
  }
  if (issue.code === 'invalid_type' && issue.input === undefined) return [`${path} is missing`];
  const allowed = issue.code === 'invalid_value' ? issue.values.map(String) : [];
  const choices = 'options' in issue && Array.isArray(issue.options) ? issue.options.map(String) : allowed;
  if (choices.length > 0) {
    const near = typeof issue.input === 'string' ? nearest(issue.input, choices) : undefined;
    return [`${at}must be one of ${choices.join(', ')}${near ? ` (did you mean '${near}'?)` : ''}`];
  }
  return [`${at}${issue.message.replace(/^Invalid input: /, '')}`];
}

/**
 * `value` under `schema`, with defaults filled in.
 * @throws GraftError 'usage' that lists all mistakes at once, each with its path
 */
export function parseWith<T extends z.ZodType>(schema: T, value: unknown, place: string): z.output<T> {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  const mistakes = result.error.issues.flatMap((issue) => describe(schema, issue));
  throw new GraftError('usage', mistakes.join('; '), { place, data: { mistakes } });
}
