/** A saved adapter as one method of several (the field `adapter` of a method). */
import { isDeepStrictEqual } from 'node:util';
import type { z } from 'zod';
import { GraftError } from '../base/index.ts';
import type { Model } from '../nn/index.ts';
import { type Adapter, type AttachContext, type Method, readSaved } from './shared/index.ts';

/**
 * Attaches a saved adapter with the config that it was saved with.
 * @param fields the method's fields in the recipe: those that only training reads count, others that differ are added to `warnings`
 */
export function attachSaved(
  model: Model,
  method: Method<unknown>,
  dir: string,
  fields: Readonly<Record<string, unknown>>,
  warnings: string[],
  context: AttachContext,
): Adapter {
  const saved = readSaved(dir, context);
  if (saved.method !== method.name) {
    throw new GraftError('mismatch', `the recipe says ${method.name}, and this adapter is ${saved.method}`, {
      place: dir,
      hint: `Set the type of the method to ${saved.method}`,
    });
  }
  const training = Object.entries(fields).filter(([field]) => method.trainingOnly?.includes(field));
  const config = { ...(saved.config as object), ...Object.fromEntries(training) };
  warnings.push(...ignoredFields(method, fields, config).map((problem) => `${problem} (${dir})`));
  if (saved.hasHead)
    warnings.push(`the head saved in ${dir} is not used: training begins with the base's, or a new one`);
  const adapter = method.attach(model, config, 0, { ...context, loading: true });
  try {
    saved.fill(adapter);
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}

/** Returns a sentence for each field of a recipe that is neither its default nor what a saved adapter has. */
function ignoredFields(
  { name, config }: Method<unknown>,
  fields: Readonly<Record<string, unknown>>,
  saved: Readonly<Record<string, unknown>>,
): string[] {
  const { shape } = config as unknown as z.ZodObject;
  return Object.entries(fields).flatMap(([field, value]) => {
    const { data: byDefault } = shape[field]?.safeParse(undefined) ?? {};
    if ([byDefault, saved[field]].some((other) => isDeepStrictEqual(value ?? undefined, other ?? undefined))) return [];
    return [`${name}: ${field} is ignored, since the adapter to begin from has its own config`];
  });
}
