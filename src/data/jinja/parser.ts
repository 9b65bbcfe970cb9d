import type { Branch, Call, Expression, Signature, Statement, Target } from './ast.ts';
import { TemplateSyntaxError, tokenize } from './lexer.ts';
import { ExpressionParser } from './parse-expression.ts';

const notSupported = new Set(['extends', 'include', 'import', 'from', 'autoescape']);

/** Reads the statements of a template. */
class Parser {
  readonly #tokens: ExpressionParser;

  constructor(source: string) {
    this.#tokens = new ExpressionParser(tokenize(source));
  }

  /** Statements up to a block with one of these names, whose name is the current token then; without names up to the end. */
  body(ends: readonly string[]): Statement[] {
    const tokens = this.#tokens;
    const statements: Statement[] = [];
    for (;;) {
      const token = tokens.next();
      switch (token.type) {
        case 'data':
          statements.push({ type: 'text', value: token.value });
          break;
        case 'print':
          statements.push({ type: 'print', expression: tokens.tuple() });
          tokens.expect('endprint');
          break;
        case 'begin':
          if (tokens.is('name') && ends.includes(tokens.current.value)) return statements;
          statements.push(...this.#statement());
          tokens.expect('end');
          break;
        default:
          if (ends.length === 0) return statements;
          throw new TemplateSyntaxError(`the template ends before {% ${ends.join(' %} or {% ')} %}`, token.line);
      }
    }
  }

  /** The body of a block, with the name of the block at which it ends. */
  #blockBody(...ends: string[]): { body: Statement[]; end: string } {
    this.#tokens.skip('operator', ':');
    this.#tokens.expect('end');
    const body = this.body(ends);
    return { body, end: this.#tokens.next().value };
  }

  #statement(): Statement[] {
    const tokens = this.#tokens;
    const { value: name, line } = tokens.expect('name');
    switch (name) {
      case 'for':
        return [this.#for()];
      case 'if':
        return [this.#if()];
      case 'set':
        return [this.#set()];
      case 'with':
        return [this.#with()];
      case 'macro': {
        const { value: macro } = tokens.expect('name');
        const signature = this.#signature();
        return [{ type: 'macro', name: macro, signature, body: this.#blockBody('endmacro').body }];
      }
      case 'call':
        return [this.#callBlock()];
      case 'filter': {
        const filter = tokens.filters(undefined, true)!;
        return [{ type: 'filter block', filter, body: this.#blockBody('endfilter').body }];
      }
      case 'block': {
        const { value: block } = tokens.expect('name');
        const scoped = tokens.skip('name', 'scoped');
        tokens.skip('name', 'required');
        const { body } = this.#blockBody('endblock');
        tokens.skip('name', block);
        return [{ type: 'block', name: block, scoped, body }];
      }
      case 'generation':
        return [{ type: 'generation', body: this.#blockBody('endgeneration').body }];
      case 'print': {
        const printed: Expression[] = [];
        while (!tokens.is('end')) {
          if (printed.length > 0) tokens.expect('operator', ',');
          printed.push(tokens.expression());
        }
        return printed.map((expression) => ({ type: 'print', expression }));
      }
      case 'break':
      case 'continue':
        return [{ type: name }];
    }
    throw new TemplateSyntaxError(
      notSupported.has(name) ? `{% ${name} %} is not supported in chat templates` : `unknown tag '${name}'`,
      line,
    );
  }

  #for(): Statement {
    const tokens = this.#tokens;
    const target = this.#target({ ends: ['in'] });
    tokens.expect('name', 'in');
    const iterable = tokens.tuple({ conditions: false, ends: ['recursive'] });
    const test = tokens.skip('name', 'if') ? tokens.expression() : undefined;
    const recursive = tokens.skip('name', 'recursive');
    const { body, end } = this.#blockBody('endfor', 'else');
    const otherwise = end === 'else' ? this.#blockBody('endfor').body : [];
    return { type: 'for', target, iterable, test, recursive, body, otherwise };
  }

  #if(): Statement {
    const branches: Branch[] = [];
    for (;;) {
      const test = this.#tokens.tuple({ conditions: false });
      const { body, end } = this.#blockBody('elif', 'else', 'endif');
      branches.push({ test, body });
      if (end === 'elif') continue;
      return { type: 'if', branches, otherwise: end === 'else' ? this.#blockBody('endif').body : [] };
    }
  }

  #set(): Statement {
    const target = this.#target({ namespaces: true });
    if (this.#tokens.skip('operator', '=')) return { type: 'set', target, value: this.#tokens.tuple() };
    const filter = this.#tokens.filters(undefined);
    return { type: 'set block', target, filter, body: this.#blockBody('endset').body };
  }

  #with(): Statement {
    const tokens = this.#tokens;
    const targets: Target[] = [];
    const values: Expression[] = [];
    while (!tokens.is('end')) {
      if (targets.length > 0) tokens.expect('operator', ',');
      targets.push(this.#target());
      tokens.expect('operator', '=');
      values.push(tokens.expression());
    }
    return { type: 'with', targets, values, body: this.#blockBody('endwith').body };
  }

  #callBlock(): Statement {
    const tokens = this.#tokens;
    const signature = tokens.isOperator('(') ? this.#signature() : { names: [], defaults: [] };
    const call = tokens.expression();
    if (call.type !== 'call') tokens.fail('expected a call');
    return { type: 'call block', call: call as Call, signature, body: this.#blockBody('endcall').body };
  }

  #signature(): Signature {
    const tokens = this.#tokens;
    const names: string[] = [];
    const defaults: Expression[] = [];
    tokens.expect('operator', '(');
    while (!tokens.isOperator(')')) {
      if (names.length > 0) tokens.expect('operator', ',');
      const { value: name } = tokens.expect('name');
      if (names.includes(name)) tokens.fail(`the parameter '${name}' is named twice`);
      names.push(name);
      if (tokens.skip('operator', '=')) defaults.push(tokens.expression());
      else if (defaults.length > 0) tokens.fail('a parameter without a default follows one that has a default');
    }
    tokens.expect('operator', ')');
    return { names, defaults };
  }

  #target({ namespaces = false, ends = [] as readonly string[] } = {}): Target {
    const tokens = this.#tokens;
    const items: Target[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) tokens.expect('operator', ',');
      const isEnd = tokens.is('end') || tokens.isOperator(')') || tokens.isOperator('=');
      if (isEnd || (tokens.is('name') && ends.includes(tokens.current.value))) break;
      items.push(this.#singleTarget(namespaces));
      if (!tokens.isOperator(',')) break;
      isTuple = true;
    }
    if (!isTuple && items.length === 1) return items[0]!;
    if (items.length === 0) tokens.fail('expected a name to assign to');
    return { type: 'targets', items };
  }

  #singleTarget(namespaces: boolean): Target {
    const tokens = this.#tokens;
    if (tokens.skip('operator', '(')) {
      const inner = this.#target({ namespaces });
      tokens.expect('operator', ')');
      return inner;
    }
    const { value: name } = tokens.expect('name');
    if (/^([Tt]rue|[Ff]alse|[Nn]one)$/.test(name)) tokens.fail(`cannot assign to ${name}`);
    if (namespaces && tokens.skip('operator', '.')) {
      return { type: 'namespace attribute', namespace: name, name: tokens.expect('name').value };
    }
    return { type: 'variable', name };
  }
}

/** The statements of a template. @throws TemplateSyntaxError */
export const parse = (source: string): Statement[] => new Parser(source).body([]);
