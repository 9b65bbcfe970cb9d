import type { z } from 'zod';
import { badRequest, brief } from '../errors.ts';

/**
 * Fields that have no effect here, each with the values that ask for none: the default of OpenAI's reference, and null. `remark`: any
 * value, since the field changes no answer anywhere.
 */
export type NeutralFields = Readonly<Record<string, readonly unknown[] | 'remark'>>;

/** Who asks, and for what: it changes no answer. */
export const remarks = {
  user: 'remark',
  safety_identifier: 'remark',
  prompt_cache_key: 'remark',
  metadata: 'remark',
} as const;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** `messages[0].content`. */
const pathOf = (path: readonly PropertyKey[]): string =>
  path.reduce<string>(
    (text, part) => (typeof part === 'number' ? `${text}[${part}]` : text ? `${text}.${String(part)}` : String(part)),
    '',
  );

/** The deepest problem of a value that fits none of several forms: that of the form which it fits furthest. */
function furthest(issue: z.core.$ZodIssue): z.core.$ZodIssue {
  if (issue.code !== 'invalid_union') return issue;
  const inner = issue.errors
    .flatMap((issues) => issues.slice(0, 1))
    .map(furthest)
    .filter(({ path }) => path.length > 0)
    .sort((a, b) => b.path.length - a.path.length)[0];
  return inner ? { ...inner, path: [...issue.path, ...inner.path] } : issue;
}

/**
 * A body as its schema says. Fields that are null count as absent.
 * @throws RequestError 400 naming the first field that is unknown, not supported, or wrong
 */
export function readBody<T>(schema: z.ZodType<T>, body: unknown, neutral: NeutralFields = {}): T {
  if (!isObject(body)) throw badRequest('The body must be a JSON object.', undefined, 'invalid_json');
  const fields: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(body)) {
    if (value === null) continue;
    const accepted = Object.hasOwn(neutral, name) ? neutral[name] : undefined;
    if (!accepted) fields[name] = value;
    else if (accepted !== 'remark' && !accepted.some((one) => JSON.stringify(one) === JSON.stringify(value))) {
      const allowed = accepted.map((one) => JSON.stringify(one)).join(' or ');
      const rest = allowed ? `, and accepts ${allowed} only` : '';
      throw badRequest(`This server does not support the field '${name}'${rest}. Leave it out.`, name, 'unsupported');
    }
  }
  const result = schema.safeParse(fields);
  if (result.success) return result.data;
  const issue = furthest(result.error.issues[0]!);
  if (issue.code === 'unrecognized_keys') {
    const name = pathOf([...issue.path, issue.keys[0]!]);
    throw badRequest(`'${brief(name)}' is not a field that this server knows. Leave it out.`, brief(name), 'unknown');
  }
  const param = pathOf(issue.path);
  const missing =
    issue.code === 'invalid_type' && issue.input === undefined && valueAt(fields, issue.path) === undefined;
  const problem = missing ? 'is required' : `is wrong: ${lower(issue.message)}`;
  throw badRequest(`'${brief(param)}' ${problem}.`, brief(param), missing ? 'missing' : 'invalid');
}

const lower = (text: string): string => text.charAt(0).toLowerCase() + text.slice(1).replace(/\.$/, '');

const valueAt = (value: unknown, path: readonly PropertyKey[]): unknown =>
  path.reduce<unknown>((at, part) => (at as Record<PropertyKey, unknown> | undefined)?.[part], value);
