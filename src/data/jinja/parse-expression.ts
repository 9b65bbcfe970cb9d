import type { Arguments, Comparison, Expression, Filter, Slice, Test } from './ast.ts';
import { TemplateSyntaxError, type Token } from './lexer.ts';
import { bool, float, int, none, str } from './values.ts';

const comparisons = new Set(['==', '!=', '<', '<=', '>', '>=']);
const noArguments: Arguments = { args: [], kwargs: [], moreArgs: undefined, moreKwargs: undefined };

/** Reads expressions with Jinja's precedence: or, and, not, comparisons, + -, ~, * / // %, **, signs, filters and tests. */
export class ExpressionParser {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  get current(): Token {
    return this.#tokens[this.#at]!;
  }

  get following(): Token | undefined {
    return this.#tokens[this.#at + 1];
  }

  next(): Token {
    const token = this.current;
    if (token.type !== 'eof') this.#at++;
    return token;
  }

  is(type: Token['type'], value?: string): boolean {
    return this.current.type === type && (value === undefined || this.current.value === value);
  }

  isOperator = (value: string): boolean => this.is('operator', value);

  skip(type: Token['type'], value: string): boolean {
    const found = this.is(type, value);
    if (found) this.next();
    return found;
  }

  expect(type: Token['type'], value?: string): Token {
    if (!this.is(type, value)) this.fail(`expected ${value ?? type}, got ${this.#shown()}`);
    return this.next();
  }

  fail(message: string): never {
    throw new TemplateSyntaxError(message, this.current.line);
  }

  #shown = () => (this.is('eof') ? 'the end of the template' : JSON.stringify(this.current.value));

  /** One expression, or several separated by commas as a tuple. */
  tuple({ conditions = true, ends = [] as readonly string[], parenthesised = false } = {}): Expression {
    const items: Expression[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) this.expect('operator', ',');
      const isEnd = this.is('endprint') || this.is('end') || this.isOperator(')');
      if (isEnd || (this.is('name') && ends.includes(this.current.value))) break;
      items.push(conditions ? this.expression() : this.#or());
      if (!this.isOperator(',')) break;
      isTuple = true;
    }
    if (isTuple) return { type: 'tuple', items };
    if (items.length > 0) return items[0]!;
    if (!parenthesised) this.fail(`expected an expression, got ${this.#shown()}`);
    return { type: 'tuple', items };
  }

  expression(): Expression {
    let then = this.#or();
    while (this.skip('name', 'if')) {
      const test = this.#or();
      const otherwise = this.skip('name', 'else') ? this.expression() : undefined;
      then = { type: 'condition', test, then, otherwise };
    }
    return then;
  }

  #or(): Expression {
    let left = this.#and();
    while (this.skip('name', 'or')) left = { type: 'or', left, right: this.#and() };
    return left;
  }

  #and(): Expression {
    let left = this.#not();
    while (this.skip('name', 'and')) left = { type: 'and', left, right: this.#not() };
    return left;
  }

  #not(): Expression {
    return this.skip('name', 'not') ? { type: 'not', operand: this.#not() } : this.#comparison();
  }

  #comparison(): Expression {
    const first = this.#sum();
    const rest: Comparison[] = [];
    for (;;) {
      let operator: string | undefined;
      if (this.is('operator') && comparisons.has(this.current.value)) operator = this.next().value;
      else if (this.skip('name', 'in')) operator = 'in';
      else if (this.is('name', 'not') && this.following?.type === 'name' && this.following.value === 'in') {
        this.next();
        this.next();
        operator = 'not in';
      }
      if (operator === undefined) break;
      rest.push({ operator, operand: this.#sum() });
    }
    return rest.length === 0 ? first : { type: 'compare', first, rest };
  }

  #leftAssociative(operators: readonly string[], operand: () => Expression): Expression {
    let left = operand();
    while (this.is('operator') && operators.includes(this.current.value)) {
      const operator = this.next().value;
      left = { type: 'binary', operator, left, right: operand() };
    }
    return left;
  }

  #sum = () => this.#leftAssociative(['+', '-'], () => this.#concatenation());

  #concatenation(): Expression {
    const parts = [this.#product()];
    while (this.skip('operator', '~')) parts.push(this.#product());
    return parts.length === 1 ? parts[0]! : { type: 'concat', parts };
  }

  #product = () => this.#leftAssociative(['*', '/', '//', '%'], () => this.#power());
  /** Unlike Python's, Jinja's `**` goes from left to right. */
  #power = () => this.#leftAssociative(['**'], () => this.#signed(true));

  #signed(withFilters: boolean): Expression {
    let node: Expression;
    if (this.skip('operator', '-')) node = { type: 'negative', operand: this.#signed(false) };
    else if (this.skip('operator', '+')) node = { type: 'positive', operand: this.#signed(false) };
    else node = this.primary();
    node = this.#postfix(node);
    return withFilters ? this.#filtersAndTests(node) : node;
  }

  primary(): Expression {
    const token = this.next();
    switch (token.type) {
      case 'name':
        if (/^[Tt]rue$|^[Ff]alse$/.test(token.value)) {
          return { type: 'constant', value: bool(token.value.toLowerCase() === 'true') };
        }
        if (/^[Nn]one$/.test(token.value)) return { type: 'constant', value: none() };
        return { type: 'name', name: token.value };
      case 'string': {
        let text = token.value;
        while (this.is('string')) text += this.next().value;
        return { type: 'constant', value: str(text) };
      }
      case 'integer':
        return { type: 'constant', value: int(BigInt(token.value)) };
      case 'float':
        return { type: 'constant', value: float(Number(token.value)) };
    }
    if (token.type === 'operator' && token.value === '(') {
      const inner = this.tuple({ parenthesised: true });
      this.expect('operator', ')');
      return inner;
    }
    if (token.type === 'operator' && token.value === '[') {
      return { type: 'list', items: this.#separated(']', () => this.expression()) };
    }
    if (token.type === 'operator' && token.value === '{') {
      const entries = this.#separated('}', () => {
        const key = this.expression();
        this.expect('operator', ':');
        return [key, this.expression()] as const;
      });
      return { type: 'dict', entries };
    }
    throw new TemplateSyntaxError(
      token.type === 'eof' ? 'unexpected end of the template' : `unexpected ${JSON.stringify(token.value)}`,
      token.line,
    );
  }

  /** What commas separate, one at the end included, up to a bracket. */
  #separated<T>(end: string, item: () => T): T[] {
    const items: T[] = [];
    while (!this.isOperator(end)) {
      if (items.length > 0) this.expect('operator', ',');
      if (this.isOperator(end)) break;
      items.push(item());
    }
    this.expect('operator', end);
    return items;
  }

  #postfix(start: Expression): Expression {
    let node = start;
    for (;;) {
      if (this.skip('operator', '.')) node = this.#dotted(node);
      else if (this.skip('operator', '[')) node = this.#subscript(node);
      else if (this.isOperator('(')) node = { type: 'call', callee: node, arguments: this.callArguments() };
      else return node;
    }
  }

  #dotted(object: Expression): Expression {
    const token = this.next();
    if (token.type === 'name') return { type: 'attribute', object, name: token.value };
    if (token.type !== 'integer')
      throw new TemplateSyntaxError('expected a name or a number after the dot', token.line);
    return { type: 'item', object, key: { type: 'constant', value: int(BigInt(token.value)) } };
  }

  #subscript(object: Expression): Expression {
    const keys: (Expression | Slice)[] = [];
    while (!this.isOperator(']')) {
      if (keys.length > 0) this.expect('operator', ',');
      keys.push(this.#keyOrSlice());
    }
    this.expect('operator', ']');
    if (keys.length === 1) return { type: 'item', object, key: keys[0]! };
    if (keys.some(({ type }) => type === 'slice')) this.fail('several slices in one subscript are not supported');
    return { type: 'item', object, key: { type: 'tuple', items: keys as Expression[] } };
  }

  #keyOrSlice(): Expression | Slice {
    const bound = () =>
      this.isOperator(':') || this.isOperator(']') || this.isOperator(',') ? undefined : this.expression();
    const start = bound();
    if (start && !this.isOperator(':')) return start;
    if (!start && !this.isOperator(':')) this.fail('expected a subscript');
    this.expect('operator', ':');
    const stop = bound();
    const step = this.skip('operator', ':') ? bound() : undefined;
    return { type: 'slice', parts: [start, stop, step] };
  }

  callArguments(): Arguments {
    this.expect('operator', '(');
    const args: Expression[] = [];
    const kwargs: [string, Expression][] = [];
    let moreArgs: Expression | undefined;
    let moreKwargs: Expression | undefined;
    const ensure = (isValid: boolean) => isValid || this.fail('invalid syntax for function call expression');
    let isFirst = true;
    while (!this.isOperator(')')) {
      if (!isFirst) this.expect('operator', ',');
      if (!isFirst && this.isOperator(')')) break;
      isFirst = false;
      if (this.skip('operator', '*')) {
        ensure(!moreArgs && !moreKwargs);
        moreArgs = this.expression();
      } else if (this.skip('operator', '**')) {
        ensure(!moreKwargs);
        moreKwargs = this.expression();
      } else if (this.is('name') && this.following?.type === 'operator' && this.following.value === '=') {
        ensure(!moreKwargs);
        const { value: name } = this.next();
        this.next();
        ensure(!kwargs.some(([other]) => other === name));
        kwargs.push([name, this.expression()]);
      } else {
        ensure(!moreArgs && !moreKwargs && kwargs.length === 0);
        args.push(this.expression());
      }
    }
    this.expect('operator', ')');
    return { args, kwargs, moreArgs, moreKwargs };
  }

  #filtersAndTests(start: Expression): Expression {
    let node = start;
    for (;;) {
      if (this.isOperator('|')) node = this.filters(node)!;
      else if (this.is('name', 'is')) node = this.#test(node);
      else if (this.isOperator('(')) node = { type: 'call', callee: node, arguments: this.callArguments() };
      else return node;
    }
  }

  #dottedName(): string {
    let name = this.expect('name').value;
    while (this.skip('operator', '.')) name += `.${this.expect('name').value}`;
    return name;
  }

  /** A chain of filters; one without an operand begins a block, where `inline` says that its first filter has no `|`. */
  filters(operand: Expression | undefined, inline = false): Filter | undefined {
    let node: Filter | undefined;
    let isInline = inline;
    while (isInline || this.isOperator('|')) {
      if (!isInline) this.next();
      isInline = false;
      const { line } = this.current;
      const name = this.#dottedName();
      node = {
        type: 'filter',
        operand: node ?? operand,
        name,
        arguments: this.isOperator('(') ? this.callArguments() : noArguments,
        line,
      };
    }
    return node;
  }

  #test(operand: Expression): Expression {
    const { line } = this.next();
    const negated = this.skip('name', 'not');
    const name = this.#dottedName();
    let given = noArguments;
    if (this.isOperator('(')) given = this.callArguments();
    else if (this.#startsArgument()) {
      if (this.is('name', 'is')) this.fail('tests cannot be chained with is');
      given = { ...noArguments, args: [this.#postfix(this.primary())] };
    }
    const test: Test = { type: 'test', operand, name, arguments: given, line };
    return negated ? { type: 'not', operand: test } : test;
  }

  #startsArgument(): boolean {
    if (this.is('operator')) return '[{'.includes(this.current.value);
    return this.is('string') || this.is('integer') || this.is('float')
      ? true
      : this.is('name') && !['else', 'or', 'and'].includes(this.current.value);
  }
}
