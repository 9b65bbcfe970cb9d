import type { Expression, Slice, Statement } from './ast.ts';
import { hasFilter } from './filters.ts';
import { TemplateSyntaxError } from './lexer.ts';
import { hasTest } from './tests.ts';
import { JinjaError } from './values.ts';

type Node = Expression | Statement | Slice;

const isNode = (value: unknown): value is Node => typeof value === 'object' && value !== null && 'type' in value;

/** All nodes that an object of the tree holds, at any depth within its own fields. */
function* childrenOf(node: object): Generator<Node> {
  for (const value of Object.values(node)) {
    if (isNode(value) && !isConstantValue(node, value)) yield value;
    else if (typeof value === 'object' && value !== null && !('type' in value)) yield* childrenOf(value);
  }
}
/** The value of a constant is no node. */
const isConstantValue = (node: object, value: unknown) =>
  'type' in node && node.type === 'constant' && value === (node as { value?: unknown }).value;

/** The names that nodes read, those in macros within included. */
export function namesRead(nodes: readonly Node[]): Set<string> {
  const names = new Set<string>();
  const visit = (node: Node) => {
    if (node.type === 'name') names.add(node.name);
    if (node.type !== 'block') for (const child of childrenOf(node)) visit(child);
  };
  nodes.forEach(visit);
  return names;
}

/** Whether an expression has the same value always. */
export const isConstant = (node: Node): boolean =>
  node.type !== 'name' &&
  node.type !== 'call' &&
  !(node.type === 'filter' && laterFilters.has(node.name)) &&
  [...childrenOf(node)].every(isConstant);
/** Filters that need the template's variables at hand. */
const laterFilters = new Set(['map', 'select', 'reject', 'selectattr', 'rejectattr', 'random']);

/** Statements that have variables of their own, where jinja2 looks filters up at once. */
const scoped = new Set(['for', 'with', 'macro', 'set block', 'filter block', 'call block', 'block', 'generation']);
const functions = new Set(['macro', 'call block', 'block', 'generation']);

/**
 * Refuses what jinja2 refuses when it compiles a template: filters and tests that are not there, unless a condition decides
 * whether they are reached, `break` and `continue` outside of loops, and blocks of the same name.
 */
export function checkTemplate(statements: readonly Statement[]): void {
  const blocks = new Set<string>();
  const visit = (node: Node, isConditional: boolean, inLoop: boolean): void => {
    if ((node.type === 'filter' || node.type === 'test') && !isConditional) {
      const has = node.type === 'filter' ? hasFilter : hasTest;
      if (!has(node.name)) throw new TemplateSyntaxError(`no ${node.type} named '${node.name}'`, node.line);
    }
    if ((node.type === 'break' || node.type === 'continue') && !inLoop) {
      throw new JinjaError(`{% ${node.type} %} outside of a loop`);
    }
    if (node.type === 'block') {
      if (blocks.has(node.name)) throw new JinjaError(`block '${node.name}' defined twice`);
      blocks.add(node.name);
    }
    const conditional = node.type === 'if' || node.type === 'condition' || (isConditional && !scoped.has(node.type));
    if (node.type === 'for') {
      visit(node.iterable, isConditional, inLoop);
      if (node.test) visit(node.test, false, inLoop);
      for (const child of node.body) visit(child, false, true);
      for (const child of node.otherwise) visit(child, false, inLoop);
      return;
    }
    const loop = functions.has(node.type) ? false : inLoop;
    for (const child of childrenOf(node)) visit(child, conditional, loop);
  };
  for (const statement of statements) visit(statement, false, false);
}
