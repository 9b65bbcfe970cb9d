import { z } from 'zod';
import { type ErrorKind, GraftError } from './errors.ts';
import { nearest } from './nearest.ts';

type Issue = z.core.$ZodIssue;

/** Keys that the schema knows at `path`, to suggest one for a mistyped key. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[], value: unknown): string[] {
  let at: z.ZodType | undefined = schema;
  let here = value;
  for (const part of path) {
    if (typeof part === 'number') {
      here = (here as unknown[] | undefined)?.[part];
      continue;
    }
    const named: z.ZodType | undefined = at && unwrapped(at);
    at = named instanceof z.ZodRecord ? (named.valueType as z.ZodType) : named && shapeOf(named, here)[String(part)];
    here = (here as Record<PropertyKey, unknown> | undefined)?.[part];
  }
  return at ? Object.keys(shapeOf(at, here)) : [];
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

/** Fields of an object; of a union told apart by a field, those of the form that `value` names. */
function shapeOf(schema: z.ZodType, value: unknown): Record<string, z.ZodType> {
  const at = unwrapped(schema);
  if (at instanceof z.ZodArray) return shapeOf(at.element as z.ZodType, value);
  if (at instanceof z.ZodDiscriminatedUnion) {
    const name = (value as Record<string, unknown> | undefined)?.[at.def.discriminator];
    const form = (at.options as z.ZodType[]).find((option) => {
      const tag = shapeOf(option, value)[at.def.discriminator];
      return tag?.safeParse(name).success;
    });
    if (form) return shapeOf(form, value);
  }
  if (at instanceof z.ZodObject) return at.shape as Record<string, z.ZodType>;
  if (at instanceof z.ZodUnion) {
    return Object.assign({}, ...(at.options as z.ZodType[]).map((option) => shapeOf(option, value))) as Record<
      string,
      z.ZodType
    >;
  }
  return {};
}

const words: Readonly<Record<string, string>> = {
  object: 'a set of named fields',
  array: 'a list',
  record: 'a map of names',
  int: 'a whole number',
};

/** What a value is, in a word or two. */
function shown(value: unknown): string {
  if (value === null) return 'empty';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'a set of named fields' : JSON.stringify(value);
}

function describe(schema: z.ZodType, issue: Issue, value: unknown): string[] {
  if (issue.code === 'invalid_union' && issue.errors.length > 0) {
    // Of the forms that a value may have, the one that it was meant to have: its mistakes lie deepest.
    const depth = (issues: Issue[]) => Math.max(...issues.map(({ path }) => path.length));
    const [meant] = issue.errors.toSorted((a, b) => depth(b) - depth(a)) as [Issue[]];
    if (depth(meant) > 0) {
      return meant.flatMap((inner) => describe(schema, { ...inner, path: [...issue.path, ...inner.path] }, value));
    }
  }
  const path = issue.path.map(String).join('.');
  const at = path ? `${path}: ` : '';
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(schema, issue.path, value);
    return issue.keys.map((key) => {
      const near = nearest(key, known);
      return `${at}unknown key '${key}'${near ? ` (did you mean '${near}'?)` : ` (known are ${known.join(', ')})`}`;
    });
  }
  if (issue.code === 'invalid_key') return issue.issues.map(({ message }) => at + message);
  if (issue.code === 'invalid_type' && issue.input === undefined) return [`${path} is missing`];
  if (issue.code === 'invalid_type')
    return [`${at || 'this '}must be ${words[issue.expected] ?? `a ${issue.expected}`}, and is ${shown(issue.input)}`];
  const allowed = issue.code === 'invalid_value' ? issue.values.map(String) : [];
  const choices = 'options' in issue && Array.isArray(issue.options) ? issue.options.map(String) : allowed;
  if (choices.length > 0) {
    const given = issue.path.reduce(
      (at: unknown, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key],
      value,
    );
    const near = typeof given === 'string' ? nearest(given, choices) : undefined;
    return [`${at}must be one of ${choices.join(', ')}${near ? ` (did you mean '${near}'?)` : ''}`];
  }
  return [`${at}${issue.message.replace(/^Invalid input: /, '')}`];
}

/**
 * `value` under `schema`, with defaults filled in.
 * @param kind of the error: 'usage' for what a person writes, 'input' for a file that came with a model
 * @throws GraftError that lists all mistakes at once, each with its path
 */
export function parseWith<T extends z.ZodType>(
  schema: T,
  value: unknown,
  place: string,
  kind: ErrorKind = 'usage',
): z.output<T> {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  const mistakes = result.error.issues.flatMap((issue) => describe(schema, issue, value));
  throw new GraftError(kind, mistakes.join('; '), { place, data: { mistakes } });
}
