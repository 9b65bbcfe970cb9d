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
  /** The position in the file, to sort by. */
  readonly position: number;
  readonly kind: string;
  /** The subject of a help text: an option, a field. */
  readonly subject?: string;
  readonly text: string;
  readonly hint: string;
}

/** A message that may have gaps for the parameters of the function that makes it. */
interface Template {
  readonly kind: string;
  readonly subject?: string | undefined;
  readonly text: string;
  readonly hint: string;
}

/** A function that makes a message of its arguments. */
interface Maker {
  readonly declaration: FunctionNode;
  readonly name: string;
  readonly isMethod: boolean;
  readonly isExported: boolean;
  readonly file: string;
  readonly node: ast.Node;
  readonly template: Template;
  readonly origin: Origin;
  /** The makers from the origin of the message to this one. */
  readonly path: readonly FunctionNode[];
}

/** The place where a message is first made. */
interface Origin {
  /** Whether the message is listed for any call. */
  isListed: boolean;
  readonly push: () => void;
}

/** How many functions a text is followed through on its way into a message. */
const maxPath = 3;

const gap = (i: number) => `\u0001${i}\u0002`;
const gaps = /\u0001(\d+)\u0002/g;
const withoutGaps = (text: string) => text.replaceAll(gaps, unknownText);
const fill = (text: string, args: readonly string[]) => text.replaceAll(gaps, (_, i) => args[Number(i)] ?? '');
const hasGaps = (text: string) => text !== withoutGaps(text);
const hasWords = (text: string) => /\p{L}{2}/u.test(withoutGaps(text));
const functionWord =
  /\b(an?|the|of|is|are|was|to|in|for|no|not|and|or|with|on|as|it|this|that|by|from|at|must|has|after|so)\b/;
/** Whether a line has three consecutive words, one of which is a function word. */
const isSentence = (line: string) =>
  /[\p{L}’'()…]{2,}[,:;]? [\p{L}'(…]+[),:;]? [\p{L}'(…]+/u.test(line) && functionWord.test(line);
/** Returns the lines of a text that are sentences; the tags of HTML, and lines of a program or a style sheet, are dropped. */
const sentencesOf = (text: string) =>
  text
    .split('\n')
    .map((line) => (line.startsWith('<') ? line.replaceAll(/(<[^>]*>| )+/g, ' ').trim() : line))
    .filter((line) => isSentence(line) && !/\{[^}]*:[^}]*;|=>|\w\(\w*\);|^import /.test(line))
    .join(' ');

const plainErrors = new Set(['Error', 'RangeError', 'TypeError', 'SyntaxError', 'InvalidArgumentError']);
/** Whether what has this name holds warnings. */
const isWarning = (name: string) => /^(warnings?|warn|advise|advice|notes?)$/.test(name);

const nameOf = (node: ast.Node | undefined): string =>
  node && (ast.isIdentifier(node) || ast.isPrivateIdentifier(node) || ast.isStringLiteral(node)) ? node.text : '';

/** Returns the name of the function that an expression calls: `fail` of `reader.fail(…)`. */
function calleeName(expression: ast.Node): string {
  return ast.isPropertyAccessExpression(expression) ? nameOf(expression.name) : nameOf(expression);
}

function enclosingFunction(node: ast.Node): FunctionNode | undefined {
  for (let at: ast.Node | undefined = node.parent; at; at = at.parent) if (isFunction(at)) return at;
  return undefined;
}

/** Returns the name of a function: its own, or that of its constant or property. */
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

/** Returns the names that a file imports, each with its name in the other file. */
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

/** Collects the messages of all files; functions that make messages of their arguments are followed to their calls. */
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
    // The call of one maker may be in another maker: the list grows during the loop.
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

  /** Lists a message, with `…` in its gaps, and returns true; a text without words is dropped. */
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

  /** Returns the function around `node` and its parameters, each bound to a gap. */
  #gapsAt(node: ast.Node): { maker: FunctionNode | undefined; bindings: Bindings } {
    const maker = enclosingFunction(node);
    const placeholders = maker?.parameters.map((_, i) => gap(i)) ?? [];
    return { maker, bindings: maker ? bind(maker, placeholders) : new Map() };
  }

  #error(source: ast.SourceFile, file: string, node: ast.Node, [kind, problem, details]: ast.Node[]): void {
    if (!kind || !problem) return;
    const { maker, bindings } = this.#gapsAt(node);
    const text = this.#reader.read(problem, bindings);
    const hint = details ? this.#hint(details, bindings) : '';
    this.#add(source, file, node, maker, { kind: this.#reader.read(kind, bindings), text, hint });
  }

  #plainError(source: ast.SourceFile, file: string, node: ast.Node, name: string, problem: ast.Node): void {
    const { maker, bindings } = this.#gapsAt(node);
    this.#add(source, file, node, maker, { kind: name, text: this.#reader.read(problem, bindings), hint: '' });
  }

  /** Lists a message; one with gaps is kept instead, for the calls of the function that makes it. */
  #add(
    source: ast.SourceFile,
    file: string,
    node: ast.Node,
    maker: FunctionNode | undefined,
    template: Template,
    origin: Origin = { isListed: false, push: () => void this.#push(file, node, template) },
    path: readonly FunctionNode[] = [],
  ): void {
    const name = maker && functionName(maker);
    if (maker && path.includes(maker)) return;
    if (!maker || !name || !hasGaps(template.text + template.hint)) {
      if (this.#push(file, node, template)) origin.isListed = true;
      return;
    }
    const isMethod = !ast.isFunctionDeclaration(maker) && !ast.isVariableDeclaration(maker.parent);
    const isOuter = maker.parent === source || maker.parent.parent?.parent?.parent === source;
    const isShared = !isMethod && isOuter && isExported(maker);
    const longerPath = [...path, maker];
    const details = { name, isMethod, isExported: isShared, file, node, template, origin, path: longerPath };
    this.#makers.push({ declaration: maker, ...details });
  }

  #followCalls({ declaration, name, isMethod, isExported, file, template, origin, path }: Maker): void {
    if (path.length > maxPath) return;
    const folder = file.slice(0, file.lastIndexOf('/'));
    const usedParameters = [...(template.text + template.hint).matchAll(gaps)].map(([, i]) => Number(i));
    for (const call of this.#calls.get(name) ?? []) {
      const isImported = isExported && this.#imports.get(call.source)?.get(name) === name;
      if (!(call.file === file || isImported || (isMethod && call.file.startsWith(`${folder}/`)))) continue;
      if (isMethod !== ast.isPropertyAccessExpression(call.node.expression)) continue;
      const { maker, bindings } = this.#gapsAt(call.node);
      const args = declaration.parameters.map((parameter, i) => {
        const argument = call.node.arguments[i] ?? parameter.initializer;
        return argument ? this.#reader.read(argument, bindings) : '';
      });
      // A call that passes only names or numbers would repeat the message of the maker.
      const passedText = usedParameters.map((i) => args[i] ?? '').join('');
      if (!/\p{L} +[\p{L}'’(…]/u.test(passedText) && !hasGaps(passedText)) continue;
      const { kind, subject, text, hint } = template;
      const message = { kind: fill(kind, args), subject, text: fill(text, args), hint: fill(hint, args) };
      this.#add(call.source, call.file, call.node, maker, message, origin, path);
    }
  }

  /** Returns the hint in the details of an error: `{ hint }`, `{ hint: … }`, `...(near && { hint: … })`. */
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

  /** Lists an array such as `['input', 'There is no such file', 'Check the path']`: kind, problem and hint in a table. */
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
    // All calls of a chain begin at the same position; their names do not.
    const isChain = ast.isCallExpression(node) && ast.isPropertyAccessExpression(node.expression);
    const place = isChain ? node.expression.name : node;
    this.#add(source, file, place, maker, {
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

/** Returns the name of the property, constant or function that `node` defines, or of the list to which it adds. */
function holderName(node: ast.Node): string {
  if (ast.isPropertyAssignment(node) || ast.isVariableDeclaration(node)) return nameOf(node.name);
  if (ast.isFunctionDeclaration(node) || ast.isMethodDeclaration(node)) return nameOf(node.name);
  if (!ast.isCallExpression(node) || !ast.isPropertyAccessExpression(node.expression)) return '';
  return nameOf(node.expression.name) === 'push' ? calleeName(node.expression.expression) : '';
}

/** Returns the sum that contains a literal, or the literal. */
function outermost(node: ast.Node): ast.Node {
  const { parent } = node;
  const isPart = ast.isBinaryExpression(parent) && parent.operatorToken.kind === ast.SyntaxKind.PlusToken;
  return isPart || ast.isParenthesizedExpression(parent) ? outermost(parent) : node;
}

/** Returns the name of the field that a `.describe(…)` describes. */
function fieldName(node: ast.Node): string | undefined {
  for (let at: ast.Node | undefined = node.parent; at; at = at.parent) {
    if (ast.isPropertyAssignment(at) || ast.isVariableDeclaration(at)) return nameOf(at.name);
    if (isFunction(at)) return undefined;
  }
  return undefined;
}

/** Returns every message in the TypeScript sources of the package and in bin/graft.js, in the order of files and lines. */
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
    for (const name of [...program.getSourceFileNames()].sort()) {
      const isOurs = relative(packageRoot, name).startsWith('src/') && !/\.(test|gen)\.ts$/.test(name);
      if (isOurs) add(name, program.getSourceFile(name));
    }
    add(command, snapshot.getDefaultProjectForFile(command)?.program.getSourceFile(command));
    return collector.finish().sort((a, b) => (a.file === b.file ? a.position - b.position : a.file < b.file ? -1 : 1));
  } finally {
    api.close();
  }
}
