import { Environment, Interpreter, type parse } from '@huggingface/jinja';

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
  evaluateTestExpression(node: Node, scope: Environment): Value;
  evaluateArguments(args: unknown, scope: Environment): [Value[], Map<string, Value>];
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
    if (node?.type === 'ObjectLiteral') {
      const mapping = toValue({});
      for (const [key, value] of node.value as Map<Node, Node>) {
        (mapping.value as Map<unknown, Value>).set(this.evaluate(key, scope).value, this.evaluate(value, scope));
      }
      return mapping;
    }
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
    if (iterable.type === 'ObjectValue') return [...(iterable.value as Map<unknown, Value>).keys()].map(toValue);
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
    if (callee.type !== 'MemberExpression' || !ownMethods.has(name)) return super.evaluateCallExpression(node, scope);
    const object = this.evaluate(callee.object as Node, scope);
    if (object.type === 'ObjectValue' && dictMethods.has(name)) {
      // Methods come before keys of the same name.
      const [args] = this.evaluateArguments(node.args, scope);
      return dictMethod(object.value as Map<unknown, Value>, name, args);
    }
    if (object.type !== 'StringValue' || dictMethods.has(name)) {
      return super.evaluateCallExpression({ ...node, callee: { ...callee, object: evaluated(object) } }, scope);
    }
    const text = object.value as string;
    if (name === 'capitalize') return toValue(capitalize(text));
    if (name === 'format') return this.concatenate(formatParts(text, ...this.evaluateArguments(node.args, scope)));
    const [argument] = (node.args as Node[]).map((arg) => this.evaluate(arg, scope));
    const characters = argument === undefined || isNoneOrUndefined(argument) ? undefined : String(argument.value);
    return toValue(strip(text, characters, name !== 'rstrip', name !== 'lstrip'));
  }

  override evaluateMemberExpression(node: Node, scope: Environment): Value {
    const object = this.evaluate(node.object as Node, scope);
    if (object.type === 'UndefinedValue') throw new Error(`${nameOf(node.object as Node)} is undefined`);
    const property = node.property as Node;
    if (object.type === 'ObjectValue' && node.computed && property.type !== 'SliceExpression') {
      const key = this.evaluate(property, scope);
      const map = object.value as Map<unknown, Value>;
      return map.get(key.value) ?? toValue(undefined);
    }
    return super.evaluateMemberExpression({ ...node, object: evaluated(object) }, scope);
  }

  override evaluateTestExpression(node: Node, scope: Environment): Value {
    const operand = this.evaluate(node.operand as Node, scope);
    if ((node.test as Node).value === 'iterable') {
      return toValue((listTypes.has(operand.type) || /^(Object|String|Undefined)/.test(operand.type)) !== node.negate);
    }
    return super.evaluateTestExpression({ ...node, operand: evaluated(operand) }, scope);
  }

  override applyFilter(operand: Value, filter: Node, scope: Environment): Value {
    const isCall = filter.type === 'CallExpression';
    const name = String(isCall ? (filter.callee as Node).value : filter.value);
    if (operand.type !== 'StringValue' && textFilters.has(name)) {
      return this.applyFilter(toValue(pythonStr(operand)), filter, scope);
    }
    const args = () =>
      isCall ? this.evaluateArguments(filter.args, scope) : ([[], new Map()] as [Value[], Map<string, Value>]);
    if (name === 'format') return this.concatenate(percentParts(String(operand.value), args()[0]));
    if (listFilters.has(name)) {
      if (!operand.__bool__().value) return toValue([]);
      if (operand.type === 'StringValue') return toValue(name.startsWith('reject') ? [...String(operand.value)] : []);
    }
    if (operand.type === 'StringValue') {
      const text = operand.value as string;
      if (name === 'length' || name === 'count') return toValue([...text].length);
      if (name === 'capitalize') return toValue(capitalize(text));
      if (name === 'trim') return toValue(strip(text, args()[0][0]?.value as string | undefined, true, true));
    }
    if (operand.type === 'ObjectValue') {
      const map = operand.value as Map<unknown, Value>;
      if (name === 'items') return dictMethod(map, name, []);
      if (name === 'list') return dictMethod(map, 'keys', []);
      if (name === 'dictsort' && [...map.keys()].some((key) => typeof key !== 'string')) return sortedItems(map);
    }
    if (listTypes.has(operand.type) && (name === 'min' || name === 'max')) return extreme(operand, name);
    if (name === 'string') return toValue(pythonStr(operand));
    return super.applyFilter(operand, filter, scope);
  }
}

const dictMethods = new Set(['items', 'keys', 'values', 'get']);
const ownMethods = new Set(['strip', 'lstrip', 'rstrip', 'capitalize', 'format', ...dictMethods]);
/** Filters that make a text of what they are given. */
const textFilters = new Set(['upper', 'lower', 'title', 'capitalize', 'trim', 'format', 'replace', 'indent']);
/** Filters of lists that give nothing for nothing, and for a text look at its characters. */
const listFilters = new Set(['selectattr', 'rejectattr']);
const nameOf = (node: Node): string => {
  const name = (node.property as Node | undefined)?.value ?? node.value;
  return name === undefined ? 'a value' : `'${String(name)}'`;
};

/** Values of the interpreter as a list or a tuple, whose class the library does not export. */
function listOf(items: readonly Value[], type: 'ArrayLiteral' | 'TupleLiteral' = 'ArrayLiteral'): Value {
  const list = new LibraryInterpreter(new Environment()).evaluate({ type, value: [] }, new Environment());
  (list.value as Value[]).push(...items);
  return list;
}

function dictMethod(map: Map<unknown, Value>, name: string, [key, otherwise]: readonly Value[]): Value {
  switch (name) {
    case 'get':
      return map.get(key?.value) ?? otherwise ?? toValue(null);
    case 'keys':
      return listOf([...map.keys()].map(toValue));
    case 'values':
      return listOf([...map.values()]);
    default:
      return listOf([...map].map(([k, value]) => listOf([toValue(k), value], 'TupleLiteral')));
  }
}

const sortedItems = (map: Map<unknown, Value>) =>
  dictMethod(new Map([...map].sort(([a], [b]) => Number(a) - Number(b))), 'items', []);

function extreme(list: Value, name: 'min' | 'max'): Value {
  const items = list.value as Value[];
  const isFirst = (a: Value, b: Value) => (name === 'min' ? a.value! < b.value! : a.value! > b.value!);
  return items.length === 0 ? toValue(undefined) : items.reduce((best, item) => (isFirst(item, best) ? item : best));
}

/** The parts of `text.format(…)`: `{}`, `{0}` and `{name}` without a format of their own. */
function formatParts(text: string, positional: readonly Value[], named: ReadonlyMap<string, Value>): Value[] {
  let next = 0;
  return text.split(/(\{\{|\}\}|\{\w*\})/).map((part) => {
    if (part === '{{' || part === '}}') return toValue(part[0]);
    if (!part.startsWith('{')) return toValue(part);
    const field = part.slice(1, -1);
    const value = /^\d*$/.test(field) ? positional[field === '' ? next++ : Number(field)] : named.get(field);
    if (value === undefined) throw new Error(`format() has no value for ${part}`);
    return value;
  });
}

/** The parts of `text % args` with `%s` and `%d`. */
function percentParts(text: string, args: readonly Value[]): Value[] {
  let next = 0;
  return text.split(/(%[sd%])/).map((part) => {
    if (part === '%%') return toValue('%');
    if (part !== '%s' && part !== '%d') return toValue(part);
    const value = args[next++];
    if (value === undefined) throw new Error('not enough arguments for format string');
    return value;
  });
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
      return `{${entries.map(([key, item]) => `${pythonRepr(toValue(key))}: ${pythonRepr(item)}`).join(', ')}}`;
    }
    default:
      return value.toString();
  }
}

export const escapes: Readonly<Record<string, string>> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };
function quote(text: string): string {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const inner = text.replaceAll(/[\\\n\r\t]/g, (c) => escapes[c]!);
  return mark + (mark === "'" ? inner.replaceAll("'", "\\'") : inner) + mark;
}
