import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';

type Value = ReturnType<Environment['set']>;
type Node = { readonly type: string } & Record<string, unknown>;
type Program = ReturnType<typeof parse>;

/** The methods of the library's interpreter that Python's semantics need; its types call them private. */
interface Core {
  run(program: Program): Value;
  evaluate(node: Node, scope: Environment): Value;
  evaluateBlock(nodes: readonly Node[], scope: Environment): Value;
  evaluateBinaryExpression(node: Node, scope: Environment): Value;
  evaluateCallExpression(node: Node, scope: Environment): Value;
  applyFilter(operand: Value, filter: Node, scope: Environment): Value;
}
const Library = Interpreter as unknown as new (scope: Environment) => Core;

/** A JavaScript value as one of the interpreter's. */
const wrapped = (value: unknown): Value => new Environment().set('value', value);
const done = (value: Value): Node => ({ type: 'Done', value });
const statements = new Set(
  'Program If For Set Macro Comment Break Continue CallStatement FilterStatement StringLiteral'.split(' '),
);
const listTypes = new Set(['ArrayValue', 'TupleValue']);
const numeric = new Set(['IntegerValue', 'FloatValue', 'BooleanValue']);
const isNothing = ({ type }: Value) => type === 'NullValue' || type === 'UndefinedValue';

/** What the library does otherwise than Jinja on Python: equality, remainders, `~`, stripping, and how values are printed. */
class Pythonic extends Library {
  override evaluate(node: Node, scope: Environment): Value {
    return node?.type === 'Done' ? (node.value as Value) : super.evaluate(node, scope);
  }

  override evaluateBlock(nodes: readonly Node[], scope: Environment): Value {
    let text = '';
    for (const node of nodes) {
      const value = this.evaluate(node, scope);
      if (!statements.has(node.type)) text += printed(value);
      else if (!isNothing(value)) text += value.toString();
    }
    return wrapped(text);
  }

  override evaluateBinaryExpression(node: Node, scope: Environment): Value {
    const operator = (node.operator as { value: string }).value;
    if (operator === 'and' || operator === 'or') return super.evaluateBinaryExpression(node, scope);
    const left = this.evaluate(node.left as Node, scope);
    const right = this.evaluate(node.right as Node, scope);
    const strings = Number(left.type === 'StringValue') + Number(right.type === 'StringValue');
    switch (operator) {
      case '==':
        return wrapped(equal(left, right));
      case '!=':
        return wrapped(!equal(left, right));
      case '~':
        return wrapped(printed(left) + printed(right));
      case '%':
        if (left.type !== 'IntegerValue' || right.type !== 'IntegerValue') break;
        return wrapped(
          (left.value as number) - (right.value as number) * Math.floor(Number(left.value) / Number(right.value)),
        );
      case '+':
        if (strings !== 1) break;
        throw new Error(`can only concatenate text to text, not ${printed(left)} and ${printed(right)}`);
    }
    return super.evaluateBinaryExpression({ ...node, left: done(left), right: done(right) }, scope);
  }

  override evaluateCallExpression(node: Node, scope: Environment): Value {
    const callee = node.callee as Node;
    const name = callee.computed ? '' : String((callee.property as { value?: unknown } | undefined)?.value);
    if (callee.type !== 'MemberExpression' || !['strip', 'lstrip', 'rstrip', 'capitalize'].includes(name)) {
      return super.evaluateCallExpression(node, scope);
    }
    const object = this.evaluate(callee.object as Node, scope);
    if (object.type !== 'StringValue') {
      return super.evaluateCallExpression({ ...node, callee: { ...callee, object: done(object) } }, scope);
    }
    const text = object.value as string;
    if (name === 'capitalize') return wrapped(capitalized(text));
    const [argument] = (node.args as Node[]).map((arg) => this.evaluate(arg, scope));
    const characters = argument === undefined || isNothing(argument) ? undefined : String(argument.value);
    return wrapped(stripped(text, characters, name !== 'rstrip', name !== 'lstrip'));
  }

  override applyFilter(operand: Value, filter: Node, scope: Environment): Value {
    const name = filter.type === 'Identifier' ? filter.value : undefined;
    if (operand.type === 'StringValue') {
      const text = operand.value as string;
      if (name === 'length' || name === 'count') return wrapped([...text].length);
      if (name === 'capitalize') return wrapped(capitalized(text));
      if (name === 'trim') return wrapped(stripped(text, undefined, true, true));
    }
    if (name === 'string') return wrapped(printed(operand));
    return super.applyFilter(operand, filter, scope);
  }
}

const capitalized = ([first = '', ...rest]: string) => first.toUpperCase() + rest.join('').toLowerCase();
const PYTHON_SPACE = /[\p{White_Space}\x1c-\x1f]/u;

/** `str.strip` and its one-sided forms. */
function stripped(text: string, characters: string | undefined, atStart: boolean, atEnd: boolean): string {
  const chars = [...text];
  const goes = (c: string) => (characters === undefined ? PYTHON_SPACE.test(c) : characters.includes(c));
  let [from, to] = [0, chars.length];
  if (atStart) while (from < to && goes(chars[from]!)) from++;
  if (atEnd) while (to > from && goes(chars[to - 1]!)) to--;
  return chars.slice(from, to).join('');
}

/** Python's `==`. */
function equal(a: Value, b: Value): boolean {
  if (numeric.has(a.type) && numeric.has(b.type)) return Number(a.value) === Number(b.value);
  if (a.type !== b.type) return false;
  if (listTypes.has(a.type)) {
    const [x, y] = [a.value as Value[], b.value as Value[]];
    return x.length === y.length && x.every((item, i) => equal(item, y[i]!));
  }
  if (a.type === 'ObjectValue') {
    const [x, y] = [a.value as Map<string, Value>, b.value as Map<string, Value>];
    return x.size === y.size && [...x].every(([key, item]) => y.has(key) && equal(item, y.get(key)!));
  }
  return isNothing(a) || a.value === b.value;
}

/** Python's `str`. */
const printed = (value: Value): string => (value.type === 'StringValue' ? (value.value as string) : shown(value));

/** Python's `repr`. */
function shown(value: Value): string {
  switch (value.type) {
    case 'UndefinedValue':
      return '';
    case 'NullValue':
      return 'None';
    case 'BooleanValue':
      return value.value ? 'True' : 'False';
    case 'StringValue':
      return quoted(value.value as string);
    case 'ArrayValue':
      return `[${(value.value as Value[]).map(shown).join(', ')}]`;
    case 'TupleValue':
      return `(${(value.value as Value[]).map(shown).join(', ')}${(value.value as Value[]).length === 1 ? ',' : ''})`;
    case 'ObjectValue': {
      const entries = [...(value.value as Map<string, Value>)];
      return `{${entries.map(([key, item]) => `${quoted(key)}: ${shown(item)}`).join(', ')}}`;
    }
    default:
      return value.toString();
  }
}

const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };
function quoted(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replaceAll(/[\\\n\r\t]/g, (c) => escapes[c]!);
  return quote + (quote === "'" ? inner.replaceAll("'", "\\'") : inner) + quote;
}

const SCAN =
  /\{#([-+]?)[\s\S]*?([-+]?)#\}|\{%([-+]?)\s*raw\s*(-?)%\}([\s\S]*?)\{%([-+]?)\s*endraw\s*([-+]?)%\}|\{%([-+]?)((?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?)([-+]?)%\}|\{\{(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?\}\}/g;
const literal = (text: string) => `'${text.replaceAll(/[\\'\n\r\t]/g, (c) => escapes[c] ?? `\\${c}`)}'`;

/**
 * The template with white space as `trim_blocks` and `lstrip_blocks` leave it, `+` signs honoured, `raw` as a literal, and
 * `{% generation %}` as `begin` … `end` in the text.
 */
function prepared(source: string, begin: string, end: string): string {
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
    const mark = /^\s*(end)?generation\s*$/.exec(body ?? '');
    out += before;
    if (raw !== undefined) {
      const head = rawInner === '-' ? raw.trimStart() : raw;
      out += `{{${open}${literal(rawBefore === '-' ? head.trimEnd() : head)}${close}}}`;
    } else if (mark) out += `{{${open} '${mark[1] ? end : begin}' ${close}}}`;
    else if (body !== undefined) out += `{%${open}${body}${close}%}`;
    else out += `{#${open}${close}#}`;
  }
  out += template.slice(last);
  // The library takes away one line break at the end, which has been done.
  return out.endsWith('\n') ? `${out}\n` : out;
}

const pad = (n: number, length = 2) => String(n).padStart(length, '0');
const name = (date: Date, options: Intl.DateTimeFormatOptions) =>
  new Intl.DateTimeFormat('en-US', options).format(date);
const dateParts: Readonly<Record<string, (d: Date) => string>> = {
  Y: (d) => String(d.getFullYear()),
  y: (d) => pad(d.getFullYear() % 100),
  m: (d) => pad(d.getMonth() + 1),
  B: (d) => name(d, { month: 'long' }),
  b: (d) => name(d, { month: 'short' }),
  d: (d) => pad(d.getDate()),
  e: (d) => String(d.getDate()).padStart(2),
  A: (d) => name(d, { weekday: 'long' }),
  a: (d) => name(d, { weekday: 'short' }),
  H: (d) => pad(d.getHours()),
  I: (d) => pad(d.getHours() % 12 || 12),
  p: (d) => (d.getHours() < 12 ? 'AM' : 'PM'),
  M: (d) => pad(d.getMinutes()),
  S: (d) => pad(d.getSeconds()),
  '%': () => '%',
};

/** Local time as Python's `strftime` writes it in the C locale. */
export const strftime = (format: string, date = new Date()): string =>
  format.replaceAll(/%(-?)([a-zA-Z%])/g, (all, bare: string, part: string) => {
    const text = dateParts[part]?.(date) ?? all;
    return bare ? text.replace(/^[0 ]+(?=.)/, '') : text;
  });

function range(...args: number[]): number[] {
  const [start, stop, step] = args.length === 1 ? [0, args[0]!, 1] : [args[0]!, args[1]!, args[2] ?? 1];
  if (step === 0) throw new Error('range() needs a step other than 0');
  return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, i) => start + i * step);
}

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

/**
 * A Jinja template as transformers' chat templates are set up: `trim_blocks`, `lstrip_blocks`, `raise_exception`,
 * `strftime_now`, `{% generation %}`. Source: `utils/chat_template_utils.py` of huggingface/transformers.
 * @param marks what `{% generation %}` and `{% endgeneration %}` print
 * @returns text from variables; it throws plain errors, the template's own among them
 */
export function compile(
  source: string,
  marks: readonly [string, string],
): (variables: Record<string, unknown>) => string {
  const program = parse(tokenize(prepared(source, ...marks)));
  return (variables) => {
    const scope = new Environment();
    for (const [key, value] of Object.entries({ ...globals, ...variables })) scope.set(key, value);
    return new Pythonic(scope).run(program).value as string;
  };
}
