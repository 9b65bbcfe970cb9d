import type { Expression, Signature } from './ast.ts';
import { dict, fail, type Kwargs, type Scope, str, tuple, undefinedValue, type Value } from './values.ts';

/** What the arguments of a call are bound to. */
interface Parameters {
  /** Of the macro. */
  readonly name: string;
  readonly signature: Signature;
  /** Whether the macro reads `caller`, `kwargs` or `varargs`, and thus takes what no parameter takes. */
  readonly special: (word: string) => boolean;
}

/**
 * Sets a macro's parameters in the scope of a call; those that are not given have their default or are undefined.
 * @param evaluate gives the value of a default, which may read the parameters before it
 */
export function bindParameters(
  { name, signature: { names, defaults }, special }: Parameters,
  args: readonly Value[],
  kwargs: Kwargs,
  scope: Scope,
  evaluate: (node: Expression) => Value,
): void {
  const named = new Map(kwargs);
  const take = (key: string) => {
    const value = named.get(key);
    named.delete(key);
    return value;
  };
  for (const [i, parameter] of names.entries()) {
    const fallback = defaults[i - (names.length - defaults.length)];
    const value = args[i] ?? take(parameter) ?? (fallback && evaluate(fallback));
    scope.set(parameter, value ?? undefinedValue(`parameter '${parameter}' was not provided`));
  }
  if (special('caller')) scope.set('caller', take('caller') ?? undefinedValue('No caller defined'));
  if (special('kwargs')) scope.set('kwargs', dict([...named].map(([key, value]) => [str(key), value] as const)));
  else if (named.size > 0) fail(`macro '${name}' takes no keyword argument '${[...named.keys()][0]}'`);
  if (special('varargs')) scope.set('varargs', tuple(args.slice(names.length)));
  else if (args.length > names.length) fail(`macro '${name}' takes not more than ${names.length} argument(s)`);
}
