/**
 * Finds the messages in TypeScript sources: `new GraftError(…)`, other errors, functions that make errors of their
 * arguments, warnings, and the help texts of commands, options and recipe fields. What is left and reads as a sentence is
 * listed as `text`.
 *
 * The sources are parsed by the compiler's own API, which TypeScript 7 publishes under `unstable`: only its syntax tree
 * is used.
 */
import { join, relative } from 'node:path';
import * as ast from 'typescript/unstable/ast';
import { API } from 'typescript/unstable/sync';
import { errorKinds, packageRoot } from '../../src/base/index.ts';
import { type Bindings, bind, either, type FunctionNode, isFunction, TextReader, unknownText } from './message-text.ts';

export interface Message {
  /** From the root of the checkout. */
  readonly file: string;
  /** Where in the file, to sort by. */
  readonly position: number;
  readonly kind: string;
  /** What a help text explains: an option, a field. */
  readonly subject?: string;
  readonly text: string;
  readonly hint: string;
}

/** A message with gaps for the parameters of the function that makes it. */
interface Template {
  readonly kind: string;
  readonly subject?: string | undefined;
  readonly text: string;
  readonly hint: string;
}

interface Maker {
  readonly declaration: FunctionNode;
  readonly name: string;
  readonly isMethod: boolean;
  readonly isExported: boolean;
  readonly file: string;
  readonly node: ast.Node;
  readonly template: Template;
  /** Where the message was found first, and whether it is listed for any of the calls. */
  readonly origin: Origin;
  /** The makers that the message has come through, this one included. */
  readonly path: readonly FunctionNode[];
}

interface Origin {
  isListed: boolean;
  readonly push: () => void;
}

/** How many functions a text is followed through on its way into a message. */
const maxPath = 3;

const gap = (i: number) => `\u0001${i}\u0002`;
const gaps = /\u0001(\d+)\u0002/g;
const withoutGaps = (text: string) => text.replaceAll(gaps, unknownText);
const fill = (text: string, args: readonly string[]) => text.replaceAll(gaps, (_, i) => args[Number(i)] ?? '');
const hasWords = (text: string) => /\p{L}{2}/u.test(withoutGaps(text));
const grammar =
  /\b(an?|the|of|is|are|was|to|in|for|no|not|and|or|with|on|as|it|this|that|by|from|at|must|has|after|so)\b/;
/** Three words one after the other, one of which joins the others. */
const isSentence = (line: string) =>
  /[\p{L}’'()…]{2,}[,:;]? [\p{L}'(…]+[),:;]? [\p{L}'(…]+/u.test(line) && grammar.test(line);
/** The lines of a text that are sentences; those of a program or a style sheet are not. */
const sentencesOf = (text: string) =>
  text
    .split('\n')
    .map((line) =>
      line.startsWith('<')
        ? line
            .replaceAll(/<[^>]*>/g, ' ')
            .replaceAll(/ +/g, ' ')
            .trim()
        : line,
    )
    .filter((line) => isSentence(line) && !/\{[^}]*:[^}]*;|=>|\w\(\w*\);|^import /.test(line))
    .join(' ');

const plainErrors = new Set(['Error', 'RangeError', 'TypeError', 'SyntaxError', 'InvalidArgumentError']);
const isWarning = (name: string) => /^(warnings?|warn|advise|advice|notes?)$/.test(name);

const nameOf = (node: ast.Node | undefined): string =>
  node && (ast.isIdentifier(node) || ast.isPrivateIdentifier(node) || ast.isStringLiteral(node)) ? node.text : '';

/** The name by which a call or a construction says what it calls: `fail` of `reader.fail(…)`. */
function calleeName(expression: ast.Node): string {
  return ast.isPropertyAccessExpression(expression) ? nameOf(expression.name) : nameOf(expression);
}

function enclosingFunction(node: ast.Node): FunctionNode | undefined {
  for (let at: ast.Node | undefined = node.parent; at; at = at.parent) if (isFunction(at)) return at;
  return undefined;
}

/** The name of a function: its own, or that of the constant or the property that holds it. */
function functionName(node: FunctionNode): string {
  if ('name' in node && node.name) return nameOf(node.name as ast.Node);
  const { parent } = node;
  return ast.isVariableDeclaration(parent) || ast.isPropertyAssignment(parent) || ast.isPropertyDeclaration(parent)
    ? nameOf(parent.name)
    : '';
}

function isExported(node: FunctionNode): boolean {
  let at: ast.Node = node;
  while (!ast.isFunctionDeclaration(at) && !ast.isVariableStatement(at) && !ast.isSourceFile(at.parent)) at = at.parent;
  const { modifiers } = at as ast.FunctionDeclaration;
  return modifiers?.some(({ kind }) => kind === ast.SyntaxKind.ExportKeyword) ?? false;
}

function importedNames(source: ast.SourceFile): Map<string, string> {
  const names = new Map<string, string>();
  for (const statement of source.statements as Iterable<ast.Node>) {
    if (!ast.isImportDeclaration(statement)) continue;
    const named = statement.importClause?.namedBindings;
    if (named && ast.isNamedImports(named))
      for (const { name, propertyName } of named.elements) names.set(name.text, nameOf(propertyName ?? name));
  }
  return names;
}

/** Collects the messages of one file after another; makers of messages are followed to where they are called. */
class Collector {
  readonly #reader = new TextReader();
  readonly #messages: Message[] = [];
  readonly #makers: Maker[] = [];
  readonly #calls = new Map<string, { source: ast.SourceFile; file: string; node: ast.CallExpression }[]>();
  readonly #imports = new Map<ast.SourceFile, Map<string, string>>();
  readonly #leftovers: { file: string; node: ast.Node; isWarning: boolean }[] = [];

  add(source: ast.SourceFile, file: string): void {
    this.#imports.set(source, importedNames(source));
    const visit = (node: ast.Node, inWarning: boolean): void => {
      if (ast.isImportDeclaration(node) || ast.isExportDeclaration(node) || ast.isTypeNode(node)) return;
      this.#site(source, file, node);
      if (ast.isStringLiteral(node) || ast.isNoSubstitutionTemplateLiteral(node) || ast.isTemplateExpression(node))
        this.#leftovers.push({ file, node, isWarning: inWarning });
      node.forEachChild((child) => visit(child, inWarning || isWarning(holderName(node))));
    };
    visit(source, false);
  }

  finish(): Message[] {
    // A maker may be found at the call of another one: the list grows while it is read.
    for (const maker of this.#makers) this.#followCalls(maker);
    for (const { origin } of this.#makers) if (!origin.isListed) origin.push();
    const rest: [string, ast.Node, Template][] = [];
    for (const { file, node, isWarning } of this.#leftovers.sort((a, b) => a.node.pos - b.node.pos)) {
      if (this.#reader.seen.has(node)) continue;
      const text = sentencesOf(this.#reader.read(outermost(node)));
      if (text !== '') rest.push([file, node, { kind: isWarning ? 'warning' : 'text', text, hint: '' }]);
    }
    for (const [file, node, message] of rest) if (!this.#reader.inlined.has(node)) this.#push(file, node, message);
    return this.#messages;
  }

  /** Lists a message, `…` in its gaps. Returns whether it has words. */
  #push(file: string, node: ast.Node, { kind, subject, text, hint }: Template): boolean {
    const message = { text: tidy(text), hint: tidy(hint) };
    if (!hasWords(message.text + message.hint)) return false;
    this.#messages.push({
      file,
      position: node.pos,
      kind: withoutGaps(kind).replace(unknownText, '') || 'any',
      ...message,
      ...(subject && { subject: withoutGaps(subject) }),
    });
    return true;
  }

  #site(source: ast.SourceFile, file: string, node: ast.Node): void {
    if (ast.isNewExpression(node)) {
      const name = calleeName(node.expression);
      const args = [...(node.arguments ?? [])];
      if (name === 'GraftError') this.#error(source, file, node, args);
      else if (plainErrors.has(name) && args[0]) this.#plainError(source, file, node, name, args[0]);
      else if (file.startsWith('src/cli/') && (name === 'Option' || name === 'Argument'))
        this.#help(source, file, node, name.toLowerCase(), args);
    } else if (ast.isCallExpression(node)) {
      const name = calleeName(node.expression);
      this.#calls.set(name, [...(this.#calls.get(name) ?? []), { source, file, node }]);
      this.#helpCall(source, file, node, name, [...node.arguments]);
    } else if (ast.isArrayLiteralExpression(node)) this.#listedError(file, node);
  }

  /** Parameters of the function around `node`, each bound to a gap. */
  #gapsAt(node: ast.Node): { maker: FunctionNode | undefined; bindings: Bindings } {
    const maker = enclosingFunction(node);
    return {
      maker,
      bindings: maker
        ? bind(
            maker,
            maker.parameters.map((_, i) => gap(i)),
          )
        : new Map(),
    };
  }

  #error(source: ast.SourceFile, file: string, node: ast.Node, [kind, problem, details]: ast.Node[]): void {
    if (!kind || !problem) return;
    const { maker, bindings } = this.#gapsAt(node);
    const text = this.#reader.read(problem, bindings);
    const hint = details ? this.#hint(details, bindings) : '';
    this.#found(source, file, node, maker, { kind: this.#reader.read(kind, bindings), text, hint });
  }

  #plainError(source: ast.SourceFile, file: string, node: ast.Node, name: string, problem: ast.Node): void {
    const { maker, bindings } = this.#gapsAt(node);
    this.#found(source, file, node, maker, { kind: name, text: this.#reader.read(problem, bindings), hint: '' });
  }

  /** Lists a message, or keeps it for the calls of the function that makes it. */
  #found(
    source: ast.SourceFile,
    file: string,
    node: ast.Node,
    maker: FunctionNode | undefined,
    template: Template,
    origin: Origin = { isListed: false, push: () => void this.#push(file, node, template) },
    path: readonly FunctionNode[] = [],
  ): void {
    const name = maker && functionName(maker);
    const all = template.text + template.hint;
    if (maker && path.includes(maker)) return;
    if (!maker || !name || all === withoutGaps(all)) {
      if (this.#push(file, node, template)) origin.isListed = true;
      return;
    }
    const isMethod = !ast.isFunctionDeclaration(maker) && !ast.isVariableDeclaration(maker.parent);
    const isOuter = maker.parent === source || maker.parent.parent?.parent?.parent === source;
    const isShared = !isMethod && isOuter && isExported(maker);
    const seen = [...path, maker];
    this.#makers.push({
      declaration: maker,
      name,
      isMethod,
      isExported: isShared,
      file,
      node,
      template,
      origin,
      path: seen,
    });
  }

  #followCalls({ declaration, name, isMethod, isExported, file, template, origin, path }: Maker): void {
    if (path.length > maxPath) return;
    const folder = file.slice(0, file.lastIndexOf('/'));
    const used = [...(template.text + template.hint).matchAll(gaps)].map(([, i]) => Number(i));
    for (const call of this.#calls.get(name) ?? []) {
      const isImported = isExported && this.#imports.get(call.source)?.get(name) === name;
      if (!(call.file === file || isImported || (isMethod && call.file.startsWith(`${folder}/`)))) continue;
      if (isMethod !== ast.isPropertyAccessExpression(call.node.expression)) continue;
      const { maker, bindings } = this.#gapsAt(call.node);
      const args = declaration.parameters.map((parameter, i) => {
        const given = call.node.arguments[i] ?? parameter.initializer;
        return given ? this.#reader.read(given, bindings) : '';
      });
      const passed = used.map((i) => args[i] ?? '').join('');
      if (!/\p{L} +[\p{L}'’(…]/u.test(passed) && passed === withoutGaps(passed)) continue;
      const { kind, subject, text, hint } = template;
      const made = { kind: fill(kind, args), subject, text: fill(text, args), hint: fill(hint, args) };
      this.#found(call.source, call.file, call.node, maker, made, origin, path);
    }
  }

  /** The hint in the details of an error: `{ hint }`, `{ hint: … }`, `...(near && { hint: … })`. */
  #hint(details: ast.Node, bindings: Bindings): string {
    let node = details;
    while (ast.isParenthesizedExpression(node)) node = node.expression;
    if (ast.isBinaryExpression(node)) return either(this.#hint(node.right, bindings), '');
    if (ast.isConditionalExpression(node))
      return either(this.#hint(node.whenTrue, bindings), this.#hint(node.whenFalse, bindings));
    if (!ast.isObjectLiteralExpression(node)) return '';
    return (node.properties as readonly ast.Node[])
      .map((property) => {
        if (ast.isSpreadAssignment(property)) return this.#hint(property.expression, bindings);
        if (ast.isPropertyAssignment(property) && nameOf(property.name) === 'hint')
          return this.#reader.read(property.initializer, bindings);
        if (ast.isShorthandPropertyAssignment(property) && nameOf(property.name) === 'hint')
          return this.#reader.read(property.name, bindings);
        return '';
      })
      .join('');
  }

  /** `['input', 'There is no such file', 'Check the path']`: kind, problem and hint in a table. */
  #listedError(file: string, { elements }: ast.ArrayLiteralExpression): void {
    const [kind, problem, hint] = elements;
    if (!kind || !ast.isStringLiteral(kind) || !(kind.text in errorKinds) || !problem) return;
    const text = this.#reader.read(problem);
    this.#push(file, kind, { kind: kind.text, text, hint: hint ? this.#reader.read(hint) : '' });
  }

  #helpCall(source: ast.SourceFile, file: string, node: ast.CallExpression, name: string, args: ast.Node[]): void {
    if (name === 'describe' && ast.isPropertyAccessExpression(node.expression) && args[0]) {
      const field = { kind: 'field', subject: fieldName(node), text: this.#reader.read(args[0]), hint: '' };
      this.#push(file, node.expression.name, field);
    } else if (name === 'refine' && args[1])
      this.#push(file, args[1], { kind: 'usage', text: this.#reader.read(args[1]), hint: '' });
    if (!file.startsWith('src/cli/')) return;
    if (name === 'option' || name === 'requiredOption') this.#help(source, file, node, 'option', args);
    else if (name === 'argument') this.#help(source, file, node, 'argument', args);
    else if (name === 'description') this.#help(source, file, node, 'command', [undefined, ...args]);
    else if (name === 'addHelpText') this.#help(source, file, node, 'help', [undefined, ...args.slice(1)]);
  }

  #help(
    source: ast.SourceFile,
    file: string,
    node: ast.Node,
    kind: string,
    [flags, description]: readonly (ast.Node | undefined)[],
  ): void {
    if (!description) return;
    const { maker, bindings } = this.#gapsAt(node);
    const subject = flags && this.#reader.read(flags, bindings);
    // A chain of calls begins where its first one does: the name of this one tells them apart.
    const isChain = ast.isCallExpression(node) && ast.isPropertyAccessExpression(node.expression);
    const place = isChain ? node.expression.name : node;
    this.#found(source, file, place, maker, {
      kind,
      subject,
      text: this.#reader.read(description, bindings),
      hint: '',
    });
  }
}

const tidy = (text: string) =>
  withoutGaps(text)
    .replaceAll(/\x1b\[\d*[A-Z]|\r/g, '')
    .replaceAll('‹›', '')
    .replaceAll(/…{2,}/g, unknownText)
    .trim();

/** The name of what holds the expressions below `node`: a property, a constant, a function, or the list that is added to. */
function holderName(node: ast.Node): string {
  if (ast.isPropertyAssignment(node) || ast.isVariableDeclaration(node)) return nameOf(node.name);
  if (ast.isFunctionDeclaration(node) || ast.isMethodDeclaration(node)) return nameOf(node.name);
  if (!ast.isCallExpression(node) || !ast.isPropertyAccessExpression(node.expression)) return '';
  return nameOf(node.expression.name) === 'push' ? calleeName(node.expression.expression) : '';
}

/** The sum that a literal is part of. */
function outermost(node: ast.Node): ast.Node {
  const { parent } = node;
  const isPart = ast.isBinaryExpression(parent) && parent.operatorToken.kind === ast.SyntaxKind.PlusToken;
  return isPart || ast.isParenthesizedExpression(parent) ? outermost(parent) : node;
}

/** The name of the field that a `.describe(…)` stands at. */
function fieldName(node: ast.Node): string | undefined {
  for (let at: ast.Node | undefined = node.parent; at; at = at.parent) {
    if (ast.isPropertyAssignment(at) || ast.isVariableDeclaration(at)) return nameOf(at.name);
    if (isFunction(at)) return undefined;
  }
  return undefined;
}

/** Every message in the sources of the package, in the order of files and of their lines. */
export function typescriptMessages(): Message[] {
  const config = join(packageRoot, 'tsconfig.json');
  const command = join(packageRoot, 'bin', 'graft.js');
  const api = new API({ cwd: packageRoot });
  try {
    const snapshot = api.updateSnapshot({ openProjects: [config], openFiles: [command] });
    const { program } = snapshot.getProject(config)!;
    const collector = new Collector();
    const add = (name: string, source: ast.SourceFile | undefined) =>
      source && collector.add(source, relative(packageRoot, name));
    for (const name of program.getSourceFileNames()) {
      const isOurs = relative(packageRoot, name).startsWith('src/') && !/\.(test|gen)\.ts$/.test(name);
      if (isOurs) add(name, program.getSourceFile(name));
    }
    add(command, snapshot.getDefaultProjectForFile(command)?.program.getSourceFile(command));
    return collector.finish().sort((a, b) => (a.file === b.file ? a.position - b.position : a.file < b.file ? -1 : 1));
  } finally {
    api.close();
  }
}
