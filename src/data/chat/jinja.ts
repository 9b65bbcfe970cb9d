import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';

export type Value = ReturnType<Environment['set']>;
export type Node = { readonly type: string } & Record<string, unknown>;
export type Program = ReturnType<typeof parse>;

/** The methods of the library's interpreter that are overridden or called; its type declarations make them private. */
interface InterpreterMethods {
  run(program: Program): Value;
  evaluate(node: Node, scope: Environment): Value;
  evaluateBlock(nodes: readonly Node[], scope: Environment): Value;
  evaluateBinaryExpression(node: Node, scope: Environment): Value;
  evaluateCallExpression(node: Node, scope: Environment): Value;
  evaluateMemberExpression(node: Node, scope: Environment): Value;
  evaluateFor(node: Node, scope: Environment): Value;
  bindMacroArguments(name: string, parameters: unknown, special: unknown, args: Value[], scope: Environment): void;
  applyFilter(operand: Value, filter: Node, scope: Environment): Value;
}
const LibraryInterpreter = Interpreter as unknown as new (scope: Environment) => InterpreterMethods;

/** A JavaScript value as a value of the interpreter. */
export const toValue = (value: unknown): Value => new Environment().set('value', value);
/** A node for an expression that is evaluated already. */
const evaluated = (value: Value): Node => ({ type: 'Evaluated', value });
const statementTypes = new Set(
  'Program If For Set Macro Comment Break Continue CallStatement FilterStatement StringLiteral'.split(' '),
);
const listTypes = new Set(['ArrayValue', 'TupleValue']);
const numericTypes = new Set(['IntegerValue', 'FloatValue', 'BooleanValue']);
const isNoneOrUndefined = ({ type }: Value) => type === 'NullValue' || type === 'UndefinedValue';

/** `break` or `continue`, with what the iteration printed before it. */
class LoopJump extends Error {
  printed: Value[] = [];
  readonly leavesLoop: boolean;

  constructor(leavesLoop: boolean) {
    super('break and continue belong in a loop');
    this.leavesLoop = leavesLoop;
  }
}

/** The library's interpreter with Python's equality, remainder, `~`, stripping and printing of values. */
export class PythonInterpreter extends LibraryInterpreter {
  override evaluate(node: Node, scope: Environment): Value {
    if (node?.type === 'Evaluated') return node.value as Value;
    if (node?.type === 'Break' || node?.type === 'Continue') throw new LoopJump(node.type === 'Break');
    return super.evaluate(node, scope) ?? toValue(undefined); // the library's `first` of an empty list is nothing at all
  }

  /** Joins texts that are printed, or concatenated, one after the other. */
  protected concatenate(parts: readonly Value[]): Value {
    return toValue(parts.map(pythonStr).join(''));
  }

  override evaluateBlock(nodes: readonly Node[], scope: Environment): Value {
    const parts: Value[] = [];
    for (const node of nodes) {
      try {
        const value = this.evaluate(node, scope);
        if (!statementTypes.has(node.type) || !isNoneOrUndefined(value)) parts.push(value);
      } catch (error) {
        if (error instanceof LoopJump) error.printed = [...parts, ...error.printed];
        throw error;
      }
    }
    return this.concatenate(parts);
  }

  /** A loop whose variables last for one iteration, and which keeps what is printed before `break` and `continue`. */
  override evaluateFor(node: Node, scope: Environment): Value {
    const { iterable, test } = loopParts(node);
    const values = this.itemsOf(this.evaluate(iterable, scope));
    const scopes = values.map((value) => {
      const inner = new Environment(scope);
      bindLoopVariable(node.loopvar as Node, value, inner);
      return inner;
    });
    const kept = scopes.flatMap((inner, i) => (!test || this.evaluate(test, inner).__bool__().value ? [i] : []));
    const parts: Value[] = [];
    for (const [n, i] of kept.entries()) {
      const items = { previtem: values[kept[n - 1]!], nextitem: values[kept[n + 1]!] };
      scopes[i]!.setVariable('loop', loopState(n, kept.length, items));
      try {
        parts.push(this.evaluateIteration(node.body as Node[], scopes[i]!, values[i]!));
      } catch (error) {
        if (!(error instanceof LoopJump)) throw error;
        parts.push(...error.printed);
        if (error.leavesLoop) break;
      }
    }
    if (kept.length === 0) parts.push(this.evaluateBlock(node.defaultBlock as Node[], scope));
    return this.concatenate(parts);
  }

  /** The values that Python's `for` gives: items of a list, keys of a dictionary, characters of a text. */
  protected itemsOf(iterable: Value): Value[] {
    if (listTypes.has(iterable.type)) return iterable.value as Value[];
    if (iterable.type === 'ObjectValue') return [...(iterable.value as Map<string, Value>).keys()].map(toValue);
    if (iterable.type === 'StringValue') return [...(iterable.value as string)].map(toValue);
    if (iterable.type === 'UndefinedValue') return [];
    throw new Error(`cannot loop over ${pythonRepr(iterable)}`);
  }

  /** What the body of a loop prints for one item. */
  protected evaluateIteration(body: readonly Node[], scope: Environment, _item: Value): Value {
    return this.evaluateBlock(body, scope);
  }

  override evaluateBinaryExpression(node: Node, scope: Environment): Value {
    const operator = (node.operator as { value: string }).value;
    if (operator === 'and' || operator === 'or') return super.evaluateBinaryExpression(node, scope);
    const left = this.evaluate(node.left as Node, scope);
    const right = this.evaluate(node.right as Node, scope);
    const strings = Number(left.type === 'StringValue') + Number(right.type === 'StringValue');
    switch (operator) {
      case '==':
        return toValue(pythonEquals(left, right));
      case '!=':
        return toValue(!pythonEquals(left, right));
      case '~':
        return this.concatenate([left, right]);
      case '%':
        if (left.type !== 'IntegerValue' || right.type !== 'IntegerValue') break;
        return toValue(
          (left.value as number) - (right.value as number) * Math.floor(Number(left.value) / Number(right.value)),
        );
      case '+':
        if (strings === 2) return this.concatenate([left, right]);
        if (strings === 0) break;
        throw new Error(`can only concatenate str to str, not ${pythonStr(left)} and ${pythonStr(right)}`);
    }
    return super.evaluateBinaryExpression({ ...node, left: evaluated(left), right: evaluated(right) }, scope);
  }

  override evaluateCallExpression(node: Node, scope: Environment): Value {
    const callee = node.callee as Node;
    const name = callee.computed ? '' : String((callee.property as { value?: unknown } | undefined)?.value);
    if (callee.type !== 'MemberExpression' || !['strip', 'lstrip', 'rstrip', 'capitalize'].includes(name)) {
      return super.evaluateCallExpression(node, scope);
    }
    const object = this.evaluate(callee.object as Node, scope);
    if (object.type !== 'StringValue') {
      return super.evaluateCallExpression({ ...node, callee: { ...callee, object: evaluated(object) } }, scope);
    }
    const text = object.value as string;
    if (name === 'capitalize') return toValue(capitalize(text));
    const [argument] = (node.args as Node[]).map((arg) => this.evaluate(arg, scope));
    const characters = argument === undefined || isNoneOrUndefined(argument) ? undefined : String(argument.value);
    return toValue(strip(text, characters, name !== 'rstrip', name !== 'lstrip'));
  }

  override applyFilter(operand: Value, filter: Node, scope: Environment): Value {
    const name = filter.type === 'Identifier' ? filter.value : undefined;
    if (operand.type === 'StringValue') {
      const text = operand.value as string;
      if (name === 'length' || name === 'count') return toValue([...text].length);
      if (name === 'capitalize') return toValue(capitalize(text));
      if (name === 'trim') return toValue(strip(text, undefined, true, true));
    }
    if (name === 'string') return toValue(pythonStr(operand));
    return super.applyFilter(operand, filter, scope);
  }
}

/** What a loop runs over, and the condition of `for … in … if …`. */
function loopParts({ iterable }: Node): { iterable: Node; test: Node | undefined } {
  const { type, lhs, test } = iterable as Node;
  return type === 'SelectExpression'
    ? { iterable: lhs as Node, test: test as Node }
    : { iterable: iterable as Node, test: undefined };
}

function bindLoopVariable(variable: Node, value: Value, scope: Environment): void {
  if (variable.type === 'Identifier') {
    scope.setVariable(variable.value as string, value);
    return;
  }
  const names = (variable.value as Node[]).map(({ value: name }) => name as string);
  if (!listTypes.has(value.type) || (value.value as Value[]).length !== names.length) {
    throw new Error(`cannot unpack ${pythonRepr(value)} into ${names.join(', ')}`);
  }
  for (const [i, name] of names.entries()) scope.setVariable(name, (value.value as Value[])[i]!);
}

/** Jinja's `loop`, at item n of `length`. */
function loopState(n: number, length: number, items: Record<'previtem' | 'nextitem', Value | undefined>): Value {
  const counts = { index: n + 1, index0: n, revindex: length - n, revindex0: length - n - 1 };
  const state = toValue({ ...counts, first: n === 0, last: n === length - 1, length });
  for (const [name, item] of Object.entries(items)) {
    (state.value as Map<string, Value>).set(name, item ?? toValue(undefined));
  }
  return state;
}

const capitalize = ([first = '', ...rest]: string) => first.toUpperCase() + rest.join('').toLowerCase();
const PYTHON_SPACE = /[\p{White_Space}\x1c-\x1f]/u;

/** `str.strip` and its one-sided forms. */
function strip(text: string, characters: string | undefined, atStart: boolean, atEnd: boolean): string {
  const chars = [...text];
  const isStripped = (c: string) => (characters === undefined ? PYTHON_SPACE.test(c) : characters.includes(c));
  let [from, to] = [0, chars.length];
  if (atStart) while (from < to && isStripped(chars[from]!)) from++;
  if (atEnd) while (to > from && isStripped(chars[to - 1]!)) to--;
  return chars.slice(from, to).join('');
}

/** Python's `==`. */
function pythonEquals(a: Value, b: Value): boolean {
  if (numericTypes.has(a.type) && numericTypes.has(b.type)) return Number(a.value) === Number(b.value);
  if (a.type !== b.type) return false;
  if (listTypes.has(a.type)) {
    const [x, y] = [a.value as Value[], b.value as Value[]];
    return x.length === y.length && x.every((item, i) => pythonEquals(item, y[i]!));
  }
  if (a.type === 'ObjectValue') {
    const [x, y] = [a.value as Map<string, Value>, b.value as Map<string, Value>];
    return x.size === y.size && [...x].every(([key, item]) => y.has(key) && pythonEquals(item, y.get(key)!));
  }
  return isNoneOrUndefined(a) || a.value === b.value;
}

/** Python's `str`. */
export const pythonStr = (value: Value): string =>
  value.type === 'StringValue' ? (value.value as string) : pythonRepr(value);

/** Python's `repr`. */
function pythonRepr(value: Value): string {
  switch (value.type) {
    case 'UndefinedValue':
      return '';
    case 'NullValue':
      return 'None';
    case 'BooleanValue':
      return value.value ? 'True' : 'False';
    case 'StringValue':
      return quote(value.value as string);
    case 'ArrayValue':
      return `[${(value.value as Value[]).map(pythonRepr).join(', ')}]`;
    case 'TupleValue':
      return `(${(value.value as Value[]).map(pythonRepr).join(', ')}${(value.value as Value[]).length === 1 ? ',' : ''})`;
    case 'ObjectValue': {
      const entries = [...(value.value as Map<string, Value>)];
      return `{${entries.map(([key, item]) => `${quote(key)}: ${pythonRepr(item)}`).join(', ')}}`;
    }
    default:
      return value.toString();
  }
}

const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };
function quote(text: string): string {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replaceAll(/[\\\n\r\t]/g, (c) => escapes[c]!);
  return mark + (mark === "'" ? inner.replaceAll("'", "\\'") : inner) + mark;
}

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
