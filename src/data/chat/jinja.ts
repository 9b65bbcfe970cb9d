import { Environment, parse, tokenize } from '@huggingface/jinja';
import { escapes, PythonInterpreter, type Value } from './interpreter.ts';

/** Comments, `raw` blocks, `{% %}` and `{{ }}`, with the signs at their edges. */
const SCAN =
  /\{#([-+]?)[\s\S]*?([-+]?)#\}|\{%([-+]?)\s*raw\s*(-?)%\}([\s\S]*?)\{%([-+]?)\s*endraw\s*([-+]?)%\}|\{%([-+]?)((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?)([-+]?)%\}|\{\{(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?\}\}/g;
/** A string literal of Jinja. */
const literal = (text: string) => `'${text.replaceAll(/[\\'\n\r\t]/g, (c) => escapes[c] ?? `\\${c}`)}'`;

/**
 * Rewrites a template for the library: white space is removed as `trim_blocks` and `lstrip_blocks` do unless there is a `+`
 * sign, `raw` blocks become literals, and `{% generation %}` and `{% endgeneration %}` print `begin` and `end`.
 */
function preprocess(source: string, begin: string, end: string): string {
  const template = source.replaceAll(/\r\n?/g, '\n').replace(/\n$/, '');
  let out = '';
  let last = 0;
  for (const match of template.matchAll(SCAN)) {
    let before = template.slice(last, match.index);
    const [tag, commentLeft, commentRight, rawLeft, rawInner, raw, rawBefore, rawRight, blockLeft, body, blockRight] =
      match;
    last = match.index + tag.length;
    const left = commentLeft ?? rawLeft ?? blockLeft;
    if (left === undefined) {
      out += before + tag;
      continue;
    }
    const right = commentRight ?? rawRight ?? blockRight;
    const lineStart = before.lastIndexOf('\n') + 1;
    const atLineStart =
      lineStart > 0 || match.index === before.length || template[match.index - before.length - 1] === '\n';
    if (left === '' && atLineStart && /^\s*$/.test(before.slice(lineStart))) before = before.slice(0, lineStart);
    if (right === '' && template[last] === '\n') last++;
    const [open, close] = [left === '-' ? '-' : '', right === '-' ? '-' : ''];
    const generation = /^\s*(end)?generation\s*$/.exec(body ?? '');
    out += before;
    if (raw !== undefined) {
      const content = rawInner === '-' ? raw.trimStart() : raw;
      out += `{{${open}${literal(rawBefore === '-' ? content.trimEnd() : content)}${close}}}`;
    } else if (generation) out += `{{${open} '${generation[1] ? end : begin}' ${close}}}`;
    else if (body !== undefined) out += `{%${open}${body}${close}%}`;
    else out += `{#${open}${close}#}`;
  }
  out += template.slice(last);
  // The library removes one line break at the end, and it has been removed already.
  return out.endsWith('\n') ? `${out}\n` : out;
}

const pad = (n: number, length = 2) => String(n).padStart(length, '0');
const dateName = (date: Date, options: Intl.DateTimeFormatOptions) =>
  new Intl.DateTimeFormat('en-US', options).format(date);
const dateParts: Readonly<Record<string, (d: Date) => string>> = {
  Y: (d) => String(d.getFullYear()),
  y: (d) => pad(d.getFullYear() % 100),
  m: (d) => pad(d.getMonth() + 1),
  B: (d) => dateName(d, { month: 'long' }),
  b: (d) => dateName(d, { month: 'short' }),
  d: (d) => pad(d.getDate()),
  e: (d) => String(d.getDate()).padStart(2),
  A: (d) => dateName(d, { weekday: 'long' }),
  a: (d) => dateName(d, { weekday: 'short' }),
  H: (d) => pad(d.getHours()),
  I: (d) => pad(d.getHours() % 12 || 12),
  p: (d) => (d.getHours() < 12 ? 'AM' : 'PM'),
  M: (d) => pad(d.getMinutes()),
  S: (d) => pad(d.getSeconds()),
  '%': () => '%',
};

/** Local time in the format of Python's `strftime`, in the C locale. */
export const strftime = (format: string, date = new Date()): string =>
  format.replaceAll(/%(-?)([a-zA-Z%])/g, (all, bare: string, part: string) => {
    const text = dateParts[part]?.(date) ?? all;
    return bare ? text.replace(/^[0 ]+(?=.)/, '') : text;
  });

function range(...args: number[]): number[] {
  const [start, stop, step] = args.length === 1 ? [0, args[0]!, 1] : [args[0]!, args[1]!, args[2] ?? 1];
  if (step === 0) throw new Error('the step of range() must not be 0');
  return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, i) => start + i * step);
}

/** Variables and functions that every template has. */
const globals = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  range,
  strftime_now: (format: string) => strftime(format),
  raise_exception: (message: string) => {
    throw new Error(message);
  },
};

/** A template that can be rendered; throws errors of the library, and those of the template's `raise_exception`. */
export interface CompiledTemplate {
  /** Its rendering with these variables. */
  readonly render: (variables: Record<string, unknown>) => string;
  /** Runs it in an interpreter that the caller makes. */
  readonly run: (variables: Record<string, unknown>, interpreter: (scope: Environment) => PythonInterpreter) => Value;
}

/**
 * Compiles a Jinja template with the settings of transformers' chat templates: `trim_blocks`, `lstrip_blocks`,
 * `raise_exception`, `strftime_now`, `{% generation %}`. Source: `utils/chat_template_utils.py` of huggingface/transformers.
 * @param marks the text that `{% generation %}` and `{% endgeneration %}` print
 * @throws an error of the library for a template that is not valid
 */
export function compile(source: string, marks: readonly [begin: string, end: string]): CompiledTemplate {
  const program = parse(tokenize(preprocess(source, ...marks)));
  const run: CompiledTemplate['run'] = (variables, interpreter) => {
    const scope = new Environment();
    for (const [key, value] of Object.entries({ ...globals, ...variables })) scope.set(key, value);
    return interpreter(scope).run(program);
  };
  return { run, render: (variables) => run(variables, (scope) => new PythonInterpreter(scope)).value as string };
}
