import type { Arguments, Call, Expression, Filter, For, Macro, Statement, Target } from './ast.ts';
import { getAttribute, getItem, textAccess } from './attributes.ts';
import { isConstant, namesRead } from './check.ts';
import { applyFilter, hasFilter } from './filters.ts';
import { formatParts, type Part } from './format.ts';
import { Loop } from './loop.ts';
import { bindParameters } from './macro.ts';
import { binary, compared, isSliceable, signed, sliced } from './operators.ts';
import { percentParts } from './percent.ts';
import { applyTest } from './tests.ts';
import { pythonRepr, pythonStr } from './text.ts';
import {
  bool,
  dict,
  fail,
  type Instance,
  isIterable,
  isTrue,
  iterate,
  type Kwargs,
  lengthOf,
  list,
  none,
  Scope,
  str,
  tuple,
  typeName,
  undefinedValue,
  type Value,
} from './values.ts';

/** `break` or `continue`, with what the iteration printed before it. */
class LoopJump extends Error {
  printed: Value[] = [];
  readonly leavesLoop: boolean;

  constructor(leavesLoop: boolean) {
    super('break and continue belong in a loop');
    this.leavesLoop = leavesLoop;
  }
}

/** Of all loops of a rendering together; no real template has so many. */
const MOST_ITERATIONS = 2_000_000;

/** Runs a template. What is overridden in it by an interpreter that traces texts is `protected`. */
export class Interpreter {
  readonly #root: Scope;
  readonly #marks: readonly [begin: string, end: string];
  /** Whether what is printed is a constant: jinja2 computes these beforehand, and parts of what has none are undefined then. */
  #printsConstant = false;
  #iterations = 0;
  readonly #blocks = new Map<string, readonly Statement[]>();

  /**
   * @param root the template's variables
   * @param marks what `{% generation %}` and `{% endgeneration %}` print
   */
  constructor(root: Scope, marks: readonly [begin: string, end: string]) {
    this.#root = root;
    this.#marks = marks;
  }

  /** What the template prints. */
  run(statements: readonly Statement[]): Value {
    const get = (name: string) => {
      const body = this.#blocks.get(name);
      return body && this.#function(name, () => this.evaluateBlock(body, new Scope(this.#root)));
    };
    this.#findBlocks(statements);
    this.#root.set('self', {
      type: 'object',
      className: 'TemplateReference',
      repr: () => '<TemplateReference None>',
      get,
    });
    return this.evaluateBlock(statements, this.#root);
  }

  #findBlocks(statements: readonly Statement[]): void {
    for (const statement of statements) {
      if (statement.type === 'block') this.#blocks.set(statement.name, statement.body);
      if ('body' in statement) this.#findBlocks(statement.body);
      if ('otherwise' in statement) this.#findBlocks(statement.otherwise);
      if (statement.type === 'if') for (const { body } of statement.branches) this.#findBlocks(body);
    }
  }

  /** Joins texts that are printed, or concatenated, one after the other. */
  protected concatenate(parts: readonly Value[]): Value {
    return str(parts.map(pythonStr).join(''));
  }

  /** Joins the parts of a formatted text. */
  protected joinParts(parts: readonly Part[]): Value {
    return str(parts.map(({ text }) => text).join(''));
  }

  /** What statements print. */
  protected evaluateBlock(statements: readonly Statement[], scope: Scope): Value {
    const printed: Value[] = [];
    for (const statement of statements) {
      try {
        const value = this.#execute(statement, scope);
        if (value) printed.push(value);
      } catch (error) {
        if (error instanceof LoopJump) error.printed = [...printed, ...error.printed];
        throw error;
      }
    }
    return this.concatenate(printed);
  }

  #execute(node: Statement, scope: Scope): Value | undefined {
    switch (node.type) {
      case 'text':
        return str(node.value);
      case 'print':
        this.#printsConstant = isConstant(node.expression);
        return this.evaluate(node.expression, scope);
      case 'if': {
        const branch = node.branches.find(({ test }) => isTrue(this.evaluate(test, scope)));
        return this.evaluateBlock(branch?.body ?? node.otherwise, scope);
      }
      case 'for':
        return this.#runLoop(node, scope, this.evaluate(node.iterable, scope), 0);
      case 'set':
        this.#assign(node.target, this.evaluate(node.value, scope), scope);
        return undefined;
      case 'set block': {
        const text = this.#captured(node.body, scope);
        this.#assign(node.target, node.filter ? this.#filtered(node.filter, scope, text) : text, scope);
        return undefined;
      }
      case 'with': {
        const inner = new Scope(scope);
        const values = node.values.map((value) => this.evaluate(value, scope));
        for (const [i, target] of node.targets.entries()) this.#assign(target, values[i]!, inner);
        return this.evaluateBlock(node.body, inner);
      }
      case 'macro':
        scope.set(node.name, this.#macro(node, node.name, scope));
        return undefined;
      case 'call block': {
        const caller = this.#macro(node, 'caller', scope);
        return this.#call(node.call, scope, caller);
      }
      case 'filter block':
        return this.#filtered(node.filter, scope, this.#captured(node.body, scope));
      case 'block':
        return this.evaluateBlock(node.body, new Scope(node.scoped ? scope : this.#root));
      case 'generation': {
        const [begin, end] = this.#marks;
        return this.concatenate([str(begin), this.evaluateBlock(node.body, new Scope(scope)), str(end)]);
      }
      case 'break':
      case 'continue':
        throw new LoopJump(node.type === 'break');
    }
  }

  /** What a block prints that is kept; it is lost where the block is left by a `break`. */
  #captured(body: readonly Statement[], scope: Scope): Value {
    try {
      return this.evaluateBlock(body, new Scope(scope));
    } catch (error) {
      if (error instanceof LoopJump) error.printed = [];
      throw error;
    }
  }

  #runLoop(node: For, scope: Scope, iterable: Value, depth: number): Value {
    if (!isIterable(iterable)) fail(`'${typeName(iterable)}' object is not iterable`);
    const { test } = node;
    const items = test ? this.#kept(node.target, test, this.itemsOf(iterable), scope) : this.itemsOf(iterable);
    const recurse = node.recursive ? (inner: Value) => this.#runLoop(node, scope, inner, depth + 1) : undefined;
    const loop = new Loop(items, test ? undefined : lengthOf(iterable), depth, recurse);
    const { value: state } = loop;
    const printed: Value[] = [];
    let isEmpty = true;
    for (let item = loop.next(); item; item = loop.next()) {
      if (++this.#iterations > MOST_ITERATIONS) fail(`its loops have more than ${MOST_ITERATIONS} iterations`);
      isEmpty = false;
      const inner = new Scope(scope);
      inner.set('loop', state);
      this.#assign(node.target, item, inner);
      try {
        printed.push(this.evaluateIteration(node.body, inner, item));
      } catch (error) {
        if (!(error instanceof LoopJump)) throw error;
        printed.push(...error.printed);
        if (error.leavesLoop) break;
      }
    }
    if (isEmpty) printed.push(this.evaluateBlock(node.otherwise, new Scope(scope)));
    return this.concatenate(printed);
  }

  /** The items for which a loop's condition holds. */
  *#kept(target: Target, test: Expression, items: Iterable<Value>, scope: Scope): Generator<Value> {
    for (const item of items) {
      const inner = new Scope(scope);
      this.#assign(target, item, inner);
      if (isTrue(this.evaluate(test, inner))) yield item;
    }
  }

  /** The items that a loop runs over. */
  protected itemsOf(iterable: Value): Iterable<Value> {
    return iterate(iterable);
  }

  /** What the body of a loop prints for one item. */
  protected evaluateIteration(body: readonly Statement[], scope: Scope, _item: Value): Value {
    return this.evaluateBlock(body, scope);
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    switch (target.type) {
      case 'variable':
        scope.set(target.name, value);
        return;
      case 'namespace attribute': {
        const namespace = scope.lookup(target.namespace);
        if (namespace?.type !== 'object' || !namespace.set) {
          fail(`cannot assign attribute '${target.name}' on '${target.namespace}', which is no namespace`);
        } else namespace.set(target.name, value);
        return;
      }
      case 'targets': {
        const items = isIterable(value)
          ? [...this.itemsOf(value)]
          : fail(`cannot unpack non-iterable ${typeName(value)} object`);
        if (items.length !== target.items.length) {
          fail(`cannot unpack ${pythonRepr(value)} into ${target.items.length} values`);
        }
        for (const [i, part] of target.items.entries()) this.#assign(part, items[i]!, scope);
      }
    }
  }

  #function(name: string, call: NonNullable<Instance['call']>): Instance {
    return { type: 'object', className: 'Macro', repr: () => `<Macro '${name}'>`, call };
  }

  /** A macro as a value, which can be called, and tells its name and parameters. */
  #macro({ signature, body }: Pick<Macro, 'signature' | 'body'>, name: string, scope: Scope): Instance {
    const used = namesRead(body);
    const special = (word: string) => used.has(word) && !signature.names.includes(word);
    const members: Readonly<Record<string, Value>> = {
      name: str(name),
      arguments: tuple(signature.names.map((parameter) => str(parameter))),
      caller: bool(special('caller')),
      catch_kwargs: bool(special('kwargs')),
      catch_varargs: bool(special('varargs')),
    };
    const call = (args: readonly Value[], kwargs: Kwargs): Value => {
      const inner = new Scope(scope);
      bindParameters({ name, signature, special }, args, kwargs, inner, (node) => this.evaluate(node, inner));
      this.enterMacro(inner, args);
      return this.evaluateBlock(body, inner);
    };
    return {
      ...this.#function(name, call),
      get: (member) => (Object.hasOwn(members, member) ? members[member] : undefined),
    };
  }

  /** Called before the body of a macro runs. */
  protected enterMacro(_scope: Scope, _args: readonly Value[]): void {}

  /** The value of an expression. */
  protected evaluate(node: Expression, scope: Scope): Value {
    switch (node.type) {
      case 'constant':
        return node.value;
      case 'name':
        return scope.lookup(node.name) ?? undefinedValue(`'${node.name}' is undefined`);
      case 'list':
        return list(node.items.map((item) => this.evaluate(item, scope)));
      case 'tuple':
        return tuple(node.items.map((item) => this.evaluate(item, scope)));
      case 'dict':
        return dict(
          node.entries.map(([key, value]) => [this.evaluate(key, scope), this.evaluate(value, scope)] as const),
        );
      case 'attribute':
        return getAttribute(this.evaluate(node.object, scope), node.name);
      case 'item':
        return this.evaluateItem(node, scope);
      case 'call':
        return this.#call(node, scope);
      case 'filter':
        return this.#filtered(node, scope, undefined);
      case 'test': {
        const operand = this.evaluate(node.operand, scope);
        const { args, kwargs } = this.#arguments(node.arguments, scope);
        return bool(applyTest(node.name, operand, args, kwargs, hasFilter));
      }
      case 'not':
        return bool(!isTrue(this.evaluate(node.operand, scope)));
      case 'negative':
      case 'positive':
        return signed(this.evaluate(node.operand, scope), node.type === 'negative');
      case 'and':
      case 'or': {
        const left = this.evaluate(node.left, scope);
        return isTrue(left) === (node.type === 'or') ? left : this.evaluate(node.right, scope);
      }
      case 'binary':
        return this.#binary(node.operator, this.evaluate(node.left, scope), this.evaluate(node.right, scope));
      case 'concat':
        return this.concatenate(node.parts.map((part) => this.evaluate(part, scope)));
      case 'compare': {
        let left = this.evaluate(node.first, scope);
        for (const { operator, operand } of node.rest) {
          const right = this.evaluate(operand, scope);
          if (!compared(operator, left, right)) return bool(false);
          left = right;
        }
        return bool(true);
      }
      case 'condition': {
        const isMet = isTrue(this.evaluate(node.test, scope));
        const branch = isMet ? node.then : node.otherwise;
        return branch
          ? this.evaluate(branch, scope)
          : undefinedValue('the inline if-expression evaluated to false and no else section was defined.');
      }
    }
  }

  #binary(operator: string, left: Value, right: Value): Value {
    const isPlain = left.type === 'str' && !left.safe;
    if (operator === '+' && isPlain && right.type === 'str' && !right.safe) return this.concatenate([left, right]);
    if (operator === '%' && isPlain) return this.joinParts(percentParts(left.value, right, false));
    return binary(operator, left, right);
  }

  protected evaluateItem({ object, key }: Extract<Expression, { type: 'item' }>, scope: Scope): Value {
    const container = this.evaluate(object, scope);
    if (key.type !== 'slice') return getItem(container, this.evaluate(key, scope));
    const bounds = key.parts.map((part) => part && this.evaluate(part, scope));
    if (this.#printsConstant && !isSliceable(container, bounds)) return undefinedValue('the constant has no such part');
    return sliced(container, bounds);
  }

  #arguments(node: Arguments, scope: Scope): { args: Value[]; kwargs: Map<string, Value> } {
    const args = node.args.map((arg) => this.evaluate(arg, scope));
    const kwargs = new Map(node.kwargs.map(([name, value]) => [name, this.evaluate(value, scope)] as const));
    if (node.moreArgs) args.push(...this.itemsOf(this.evaluate(node.moreArgs, scope)));
    if (node.moreKwargs) {
      const more = this.evaluate(node.moreKwargs, scope);
      if (more.type !== 'dict') return fail('argument after ** must be a mapping');
      for (const [key, value] of more.map.entries()) {
        if (key.type !== 'str') return fail('keywords must be strings');
        if (kwargs.has(key.value)) fail(`got multiple values for keyword argument '${key.value}'`);
        kwargs.set(key.value, value);
      }
    }
    return { args, kwargs };
  }

  #call({ callee, arguments: given }: Call, scope: Scope, caller?: Value): Value {
    const isFormat = callee.type === 'attribute' && callee.name === 'format';
    const object = isFormat ? this.evaluate(callee.object, scope) : undefined;
    const called = object ? getAttribute(object, 'format') : this.evaluate(callee, scope);
    const { args, kwargs } = this.#arguments(given, scope);
    if (caller) kwargs.set('caller', caller);
    if (object?.type === 'str' && !object.safe)
      return this.joinParts(formatParts(object.value, args, kwargs, textAccess, false));
    if (called.type === 'undefined') return fail(called.message);
    if (called.type !== 'object' || !called.call) return fail(`'${typeName(called)}' object is not callable`);
    return called.call(args, kwargs);
  }

  #filtered(node: Filter, scope: Scope, blockText: Value | undefined): Value {
    let operand = blockText ?? none();
    if (node.operand) {
      const isChain = blockText !== undefined && node.operand.type === 'filter';
      operand = isChain ? this.#filtered(node.operand as Filter, scope, blockText) : this.evaluate(node.operand, scope);
    }
    const { args, kwargs } = this.#arguments(node.arguments, scope);
    return this.applyFilter(node.name, operand, args, kwargs);
  }

  protected applyFilter(name: string, operand: Value, args: readonly Value[], kwargs: Kwargs): Value {
    if (name === 'format' && kwargs.size === 0 && !(operand.type === 'str' && operand.safe)) {
      return this.joinParts(percentParts(pythonStr(operand), tuple(args), false));
    }
    return applyFilter(name, operand, args, kwargs, (...inner) => this.applyFilter(...inner));
  }
}
