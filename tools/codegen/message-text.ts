/** Reads the text of an expression from its syntax; the parts that are known at run time only become `…`. */
import * as ast from 'typescript/unstable/ast';

export const unknownText = '…';

/** Texts by the names of parameters, for the body of a function whose arguments are known. */
export type Bindings = ReadonlyMap<string, string>;

export type FunctionNode =
  | ast.FunctionDeclaration
  | ast.FunctionExpression
  | ast.ArrowFunction
  | ast.MethodDeclaration
  | ast.ConstructorDeclaration;

export const isFunction = (node: ast.Node): node is FunctionNode =>
  ast.isFunctionDeclaration(node) ||
  ast.isFunctionExpression(node) ||
  ast.isArrowFunction(node) ||
  ast.isMethodDeclaration(node) ||
  ast.isConstructorDeclaration(node);

const none: Bindings = new Map();
const maxDepth = 4;

/** Returns `‹a / b›` for one of two texts, `‹a›` for one that may be absent. */
export function either(first: string, second: string): string {
  if (first === second) return first;
  if (first === '' || second === '') return first + second === unknownText ? unknownText : `‹${first}${second}›`;
  return `‹${first} / ${second}›`;
}

const unwrapped = (node: ast.Node): ast.Node =>
  ast.isParenthesizedExpression(node) ||
  ast.isAsExpression(node) ||
  ast.isSatisfiesExpression(node) ||
  ast.isNonNullExpression(node)
    ? unwrapped(node.expression)
    : node;

/** Methods of strings that keep the words. */
const transparent = new Set(['replace', 'replaceAll', 'trim', 'trimEnd', 'trimStart', 'toLowerCase', 'padEnd']);

/** Reads expressions, and remembers the literals that were part of a text. */
export class TextReader {
  readonly seen = new Set<ast.Node>();
  /** The literals of `seen` outside of the expression: in a constant or a function that it uses. */
  readonly inlined = new Set<ast.Node>();

  /** Returns the text of `expression`, `…` in the place of what is not known. */
  read(expression: ast.Node, bindings: Bindings = none, depth = 0): string {
    const node = unwrapped(expression);
    if (depth > 0) this.inlined.add(node);
    const part = (inner: ast.Node) => this.read(inner, bindings, depth);
    if (ast.isStringLiteral(node) || ast.isNoSubstitutionTemplateLiteral(node)) {
      this.seen.add(node);
      return node.text;
    }
    if (ast.isTemplateExpression(node)) {
      this.seen.add(node);
      return node.head.text + node.templateSpans.map((span) => part(span.expression) + span.literal.text).join('');
    }
    if (ast.isConditionalExpression(node)) return either(part(node.whenTrue), part(node.whenFalse));
    if (ast.isBinaryExpression(node)) return this.#binary(node, part);
    if (ast.isIdentifier(node)) return this.#identifier(node, bindings, depth);
    if (ast.isCallExpression(node)) return this.#call(node, bindings, depth);
    return unknownText;
  }

  #binary({ left, right, operatorToken: { kind } }: ast.BinaryExpression, part: (node: ast.Node) => string): string {
    if (kind === ast.SyntaxKind.PlusToken) {
      const sum = part(left) + part(right);
      return /^…+$/.test(sum) ? unknownText : sum;
    }
    if (kind === ast.SyntaxKind.QuestionQuestionToken || kind === ast.SyntaxKind.BarBarToken)
      return either(part(left), part(right));
    if (kind === ast.SyntaxKind.AmpersandAmpersandToken) return either(part(right), '');
    return unknownText;
  }

  #identifier(node: ast.Identifier, bindings: Bindings, depth: number): string {
    const { text: name } = node;
    if (name === 'undefined') return '';
    const bound = bindings.get(name);
    if (bound !== undefined) return bound;
    const value = depth < maxDepth ? constantOf(node) : undefined;
    return value && !isFunction(value) ? this.read(value, bindings, depth + 1) : unknownText;
  }

  #call(node: ast.CallExpression, bindings: Bindings, depth: number): string {
    const callee = unwrapped(node.expression);
    if (ast.isPropertyAccessExpression(callee)) {
      const { text: method } = callee.name;
      const object = unwrapped(callee.expression);
      if (method === 'join' && ast.isArrayLiteralExpression(object)) {
        const [separator] = node.arguments;
        const items = object.elements.map((element) => this.read(element, bindings, depth));
        return items.join(separator ? this.read(separator, bindings, depth) : ',');
      }
      return transparent.has(method) ? this.read(object, bindings, depth) : unknownText;
    }
    const declared = ast.isIdentifier(callee) && depth < maxDepth ? constantOf(callee) : undefined;
    if (!declared || !isFunction(declared)) return unknownText;
    const result = resultOf(declared);
    if (!result) return unknownText;
    const args = node.arguments.map((argument) => this.read(argument, bindings, depth));
    const text = this.read(result, bind(declared, args), depth + 1);
    return /[\p{L}\d]/u.test(text) ? text : unknownText;
  }
}

/** Returns the expression that a function returns if that is its only statement. */
function resultOf({ body }: FunctionNode): ast.Node | undefined {
  if (!body) return undefined;
  if (!ast.isBlock(body)) return body;
  const [only, ...others] = body.statements;
  return only && others.length === 0 && ast.isReturnStatement(only) ? only.expression : undefined;
}

/** Returns the texts of arguments by the names of the parameters; that of a missing argument is `…`. */
export function bind({ parameters }: FunctionNode, args: readonly string[]): Bindings {
  const names = parameters.map(({ name }) => (ast.isIdentifier(name) ? name.text : undefined));
  return new Map(names.flatMap((name, i) => (name === undefined ? [] : [[name, args[i] ?? unknownText] as const])));
}

/** Returns the value of a `const`, or the function, of this name in an enclosing block of the file. */
function constantOf(node: ast.Identifier): ast.Node | undefined {
  const { text: name } = node;
  for (let at: ast.Node | undefined = node.parent; at; at = at.parent) {
    if (isFunction(at) && at.parameters.some((parameter) => bindsName(parameter.name, name))) return undefined;
    if (!ast.isBlock(at) && !ast.isSourceFile(at)) continue;
    for (const statement of at.statements as Iterable<ast.Node>) {
      if (ast.isFunctionDeclaration(statement) && statement.name?.text === name) return statement;
      if (!ast.isVariableStatement(statement)) continue;
      for (const declaration of statement.declarationList.declarations) {
        if (!bindsName(declaration.name, name)) continue;
        const isConst = (statement.declarationList.flags & ast.NodeFlags.Const) !== 0;
        return isConst && ast.isIdentifier(declaration.name) ? declaration.initializer : undefined;
      }
    }
  }
  return undefined;
}

function bindsName(pattern: ast.Node, name: string): boolean {
  if (ast.isIdentifier(pattern)) return pattern.text === name;
  let found = false;
  pattern.forEachChild((child) => {
    found ||= ast.isBindingElement(child) && child.name !== undefined && bindsName(child.name, name);
  });
  return found;
}
