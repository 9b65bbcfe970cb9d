import { checkTemplate } from './check.ts';
import { globals } from './globals.ts';
import { Interpreter } from './interpreter.ts';
import { parse } from './parser.ts';
import { pythonStr } from './text.ts';
import { Scope, toValue, type Value } from './values.ts';

export type { Expression, Statement } from './ast.ts';
export type { Part } from './format.ts';
export { Interpreter } from './interpreter.ts';
export { pythonStr, strip } from './text.ts';
export { strftime } from './time.ts';
export { type Kwargs, partsOf, Scope, str, type Value } from './values.ts';

/** A template that can be rendered; throws JinjaError for what Jinja refuses, and for the template's `raise_exception`. */
export interface CompiledTemplate {
  /** Its rendering with these variables. */
  readonly render: (variables: Readonly<Record<string, unknown>>) => string;
  /** Runs it in an interpreter that the caller makes of the variables. */
  readonly run: (variables: Readonly<Record<string, unknown>>, interpreter: InterpreterClass) => Value;
}
/** The interpreter, or one that tells more. */
export type InterpreterClass = (scope: Scope, marks: readonly [begin: string, end: string]) => Interpreter;

/**
 * Compiles a Jinja template as transformers does its chat templates: `trim_blocks`, `lstrip_blocks`, loop controls,
 * `raise_exception`, `strftime_now`, `{% generation %}`, in a sandbox that changes nothing. Sources: the documentation of
 * jinja2 3.1.6, and `utils/chat_template_utils.py` of transformers 5.23.
 * @param marks the text that `{% generation %}` and `{% endgeneration %}` print
 * @throws JinjaError for a template that is not valid
 */
export function compile(source: string, marks: readonly [begin: string, end: string]): CompiledTemplate {
  const statements = parse(source);
  checkTemplate(statements);
  const run: CompiledTemplate['run'] = (variables, interpreter) => {
    const outer = new Scope();
    for (const [name, value] of globals) outer.set(name, value);
    const scope = new Scope(outer);
    for (const [name, value] of Object.entries(variables)) if (value !== undefined) scope.set(name, toValue(value));
    return interpreter(scope, marks).run(statements);
  };
  return { run, render: (variables) => pythonStr(run(variables, (...made) => new Interpreter(...made))) };
}
