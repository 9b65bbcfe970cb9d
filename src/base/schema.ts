import { z } from 'zod';
import { type ErrorKind, GraftError } from './errors.ts';
import { nearest } from './nearest.ts';

type Issue = z.core.$ZodIssue;

/** Returns the keys that the schema has at `path`, to suggest one for a mistyped key. */
function keysAt(schema: z.ZodType, path: readonly PropertyKey[], value: unknown): string[] {
  let schemaHere: z.ZodType | undefined = schema;
  let valueHere = value;
  for (const part of path) {
    if (typeof part === 'number') {
      valueHere = (valueHere as unknown[] | undefined)?.[part];
      continue;
    }
    const parent: z.ZodType | undefined = schemaHere && unwrapped(schemaHere);
    schemaHere =
      parent instanceof z.ZodRecord
        ? (parent.valueType as z.ZodType)
        : parent && shapeOf(parent, valueHere)[String(part)];
    valueHere = (valueHere as Record<PropertyKey, unknown> | undefined)?.[part];
  }
  return schemaHere ? Object.keys(shapeOf(schemaHere, valueHere)) : [];
}

/** Returns the schema inside `optional`, `default`, `nullable` and `prefault`. */
function unwrapped(schema: z.ZodType): z.ZodType {
  let inner = schema;
  while (
    inner instanceof z.ZodOptional ||
    inner instanceof z.ZodDefault ||
    inner instanceof z.ZodNullable ||
    inner instanceof z.ZodPrefault
  ) {
    inner = inner.unwrap() as z.ZodType;
  }
  return inner;
}

/** Returns the fields of an object schema; for a discriminated union, those of the variant that `value` names. */
function shapeOf(schema: z.ZodType, value: unknown): Record<string, z.ZodType> {
  const inner = unwrapped(schema);
  if (inner instanceof z.ZodArray) return shapeOf(inner.element as z.ZodType, value);
  if (inner instanceof z.ZodDiscriminatedUnion) {
    const name = (value as Record<string, unknown> | undefined)?.[inner.def.discriminator];
    const variant = (inner.options as z.ZodType[]).find((option) => {
      const tag = shapeOf(option, value)[inner.def.discriminator];
      return tag?.safeParse(name).success;
    });
    if (variant) return shapeOf(variant, value);
  }
  if (inner instanceof z.ZodObject) return inner.shape as Record<string, z.ZodType>;
  if (inner instanceof z.ZodRecord && inner.keyType instanceof z.ZodEnum) {
    return Object.fromEntries(inner.keyType.options.map((name) => [String(name), inner.valueType as z.ZodType]));
  }
  if (inner instanceof z.ZodUnion) {
    return Object.assign({}, ...(inner.options as z.ZodType[]).map((option) => shapeOf(option, value))) as Record<
      string,
      z.ZodType
    >;
  }
  return {};
}

/** The types of zod in words. */
const typeNames: Readonly<Record<string, string>> = {
  object: 'an object with named fields',
  array: 'a list',
  record: 'an object with names as keys',
  int: 'a whole number',
};

/** Returns what a value is, in a word or two. */
function shown(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  return typeof value === 'object' ? 'an object' : JSON.stringify(value);
}

/** Returns what a number, or the length of a text or list, has to be. */
function limit(issue: z.core.$ZodIssueTooSmall | z.core.$ZodIssueTooBig): string {
  const small = issue.code === 'too_small';
  const bound = small ? issue.minimum : issue.maximum;
  const isCounted = issue.origin === 'string' || issue.origin === 'array';
  if (isCounted && small && bound === 1) return 'must not be empty';
  const side =
    issue.inclusive === false
      ? small
        ? `above ${bound}`
        : `below ${bound}`
      : `${bound} or ${small ? 'more' : 'less'}`;
  if (!isCounted) return `must be ${side}, but is ${shown(issue.input)}`;
  return `must have ${side} ${issue.origin === 'string' ? 'characters' : 'entries'}`;
}

/** Where keys that people know from other programs stand in ours, each in a few words. */
export type OtherNames = Readonly<Record<string, string>>;

/** Whether an answer such as `method.r` holds for a key at `path`: there, only where that object has the field `r`. */
function fits(answer: string, path: string, allowedKeys: readonly string[]): boolean {
  const [target] = answer.split(' ') as [string];
  const parts = target.split('.');
  const leaf = parts.pop()!;
  return parts.length === 0 || parts.join('.') !== path.replace(/\.\d+$/, '') || allowedKeys.includes(leaf);
}

/** Returns what a value has to be that is none of the kinds of a union, whose schema has no words of its own for it. */
function describeUnion(issue: Issue, errors: readonly Issue[]): string {
  const path = issue.path.map(String).join('.');
  const prefix = path ? `${path}: ` : 'this ';
  const own = errors.find(({ code }) => code === 'custom');
  if (own) return prefix + own.message;
  // Where the kind is right, the size is not.
  const size = errors.find((error) => error.code === 'too_small' || error.code === 'too_big');
  if (size) return `${prefix}${limit(size as z.core.$ZodIssueTooSmall)}`;
  const expected = errors.flatMap((error) => {
    if (error.code === 'invalid_type') return [typeNames[error.expected] ?? `a ${error.expected}`];
    return error.code === 'invalid_value' ? error.values.map(String) : [];
  });
  return `${prefix}must be ${[...new Set(expected)].join(' or ') || 'another value'}, but is ${shown(issue.input)}`;
}

/** Returns one sentence for each mistake that an issue reports, with its path. */
function describe(schema: z.ZodType, issue: Issue, value: unknown, otherNames: OtherNames): string[] {
  if (issue.code === 'invalid_union' && issue.input === undefined) return [`${issue.path.join('.')} is missing`];
  if (issue.code === 'invalid_union' && issue.errors.length > 0) {
    // The variant that was intended is the one whose mistakes lie deepest.
    const depth = (issues: Issue[]) => Math.max(...issues.map(({ path }) => path.length));
    const [intended] = issue.errors.toSorted((a, b) => depth(b) - depth(a)) as [Issue[]];
    if (depth(intended) > 0) {
      return intended.flatMap((inner) =>
        describe(schema, { ...inner, path: [...issue.path, ...inner.path] }, value, otherNames),
      );
    }
    if (issue.message === 'Invalid input') return [describeUnion(issue, issue.errors.flat())];
  }
  const path = issue.path.map(String).join('.');
  const prefix = path ? `${path}: ` : '';
  if (issue.code === 'unrecognized_keys') {
    const allowedKeys = keysAt(schema, issue.path, value);
    return issue.keys.map((key) => {
      const ours = Object.hasOwn(otherNames, key) ? otherNames[key]! : undefined;
      if (ours && fits(ours, path, allowedKeys)) return `${prefix}unknown key '${key}' (in Graft: ${ours})`;
      const near = nearest(key, allowedKeys);
      const help = near ? `did you mean '${near}'?` : `allowed: ${allowedKeys.join(', ')}`;
      return `${prefix}unknown key '${key}' (${help})`;
    });
  }
  if (issue.code === 'invalid_key') return issue.issues.map(({ message }) => prefix + message);
  if (issue.code === 'invalid_type' && issue.input === undefined) return [`${path} is missing`];
  if (issue.code === 'invalid_type')
    return [
      `${prefix || 'this '}must be ${typeNames[issue.expected] ?? `a ${issue.expected}`}, but is ${shown(issue.input)}`,
    ];
  // A schema's own words for it are better.
  if ((issue.code === 'too_small' || issue.code === 'too_big') && /^Too (small|big): /.test(issue.message))
    return [`${prefix || 'this '}${limit(issue)}`];
  const allowed = issue.code === 'invalid_value' ? issue.values.map(String) : [];
  const choices = 'options' in issue && Array.isArray(issue.options) ? issue.options.map(String) : allowed;
  if (choices.length > 0) {
    const invalid = issue.path.reduce(
      (parent: unknown, key) => (parent as Record<PropertyKey, unknown> | undefined)?.[key],
      value,
    );
    const near = typeof invalid === 'string' ? nearest(invalid, choices) : undefined;
    return [`${prefix}must be one of ${choices.join(', ')}${near ? ` (did you mean '${near}'?)` : ''}`];
  }
  return [`${prefix}${issue.message.replace(/^Invalid input: /, '')}`];
}

/**
 * Returns `value` as `schema` parses it, with defaults filled in.
 * @param place the file or the argument that the value comes from
 * @param kind the kind of the error: 'usage' for what a user writes, 'input' for a file that came with a model
 * @param otherNames answers for keys from other programs
 * @throws GraftError that lists all mistakes at once, each with its path
 */
export function parseWith<T extends z.ZodType>(
  schema: T,
  value: unknown,
  place: string,
  kind: ErrorKind = 'usage',
  otherNames: OtherNames = {},
): z.output<T> {
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  const mistakes = result.error.issues.flatMap((issue) => describe(schema, issue, value, otherNames));
  throw new GraftError(kind, mistakes.join('; '), { place, data: { mistakes } });
}
