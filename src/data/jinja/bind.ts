import { fail, type Kwargs, type Value } from './values.ts';

/**
 * The arguments of a call by position, as Python binds them to parameters; undefined for one that is not given.
 * @param parameters names; one that must be given ends with `!`
 */
export function bind(
  name: string,
  parameters: readonly string[],
  args: readonly Value[],
  kwargs: Kwargs,
): (Value | undefined)[] {
  if (args.length > parameters.length) {
    fail(`${name}() takes at most ${parameters.length} arguments (${args.length} given)`);
  }
  const names = parameters.map((parameter) => parameter.replace(/!$/, ''));
  const bound: (Value | undefined)[] = names.map((_, i) => args[i]);
  for (const [key, value] of kwargs) {
    const at = names.indexOf(key);
    if (at < 0) fail(`${name}() got an unexpected keyword argument '${key}'`);
    if (bound[at]) fail(`${name}() got multiple values for argument '${key}'`);
    bound[at] = value;
  }
  for (const [i, parameter] of parameters.entries()) {
    if (parameter.endsWith('!') && !bound[i]) fail(`${name}() missing a required argument: '${names[i]}'`);
  }
  return bound;
}
