/**
 * Reads what an entry of the package exports: kinds, signatures and docstrings, for tools/codegen/api.ts.
 *
 * The compiler's own API is used, which TypeScript 7 publishes under `unstable`, as message-sites.ts does. It needs no dependency
 * and reads the sources as `tsc` does; TypeDoc and ts-morph would bring a second, older TypeScript. Signatures are the text of the
 * sources, and docstrings are read here, so that only the syntax tree, exports, aliases and inferred types come from the API.
 */
import { join, relative } from 'node:path';
import * as ast from 'typescript/unstable/ast';
import {
  API,
  type Checker,
  NodeBuilderFlags,
  type Symbol as Sym,
  SymbolFlags,
  type Type,
} from 'typescript/unstable/sync';
import { packageRoot } from '../../src/base/index.ts';

export interface Docstring {
  /** Paragraphs, without the tags. */
  readonly text: string;
  readonly params: readonly (readonly [name: string, text: string])[];
  readonly throws: readonly string[];
}

export interface Member {
  readonly name: string;
  readonly kind: 'constructor' | 'method' | 'property';
  /** A method: the whole signature. A property: its type. */
  readonly signature: string;
  /** Words before the name: static, readonly. */
  readonly modifiers: readonly string[];
  readonly isOptional: boolean;
  readonly doc: Docstring;
  /** Names of types of the project that the signature refers to, in order. */
  readonly types: readonly string[];
}

export interface Export {
  readonly name: string;
  readonly kind: 'class' | 'interface' | 'type' | 'function' | 'constant' | 'namespace';
  readonly signature: string;
  readonly doc: Docstring;
  readonly members: readonly Member[];
  /** Names of types of the project that the signatures refer to, in order. */
  readonly types: readonly string[];
  /** From the root of the checkout. */
  readonly file: string;
}

/** Lines of a signature are broken above this width. */
const maxWidth = 100;

const noDoc: Docstring = { text: '', params: [], throws: [] };

/** Returns the docstring just before a node. */
function docstringOf(node: ast.Node): Docstring {
  const before = node.getSourceFile().text.slice(node.pos, node.getStart());
  const comment = [...before.matchAll(/\/\*\*(.*?)\*\//gs)].at(-1)?.[1];
  if (comment === undefined) return noDoc;
  const lines = comment.replaceAll(/^[ \t]*\*[ \t]?/gm, '').trim();
  const [text = '', ...tags] = lines.split(/(?:^|\s)@(?=(?:param|throws|returns|internal)\b)/);
  const joined = (part: string) =>
    part
      .split(/\n{2,}|\n(?=- )/)
      .map((paragraph) => paragraph.replaceAll(/\s*\n\s*/g, ' ').trim())
      .filter(Boolean)
      .reduce((all, one) => all + (all === '' ? '' : one.startsWith('- ') && all !== '' ? '\n' : '\n\n') + one, '');
  const tagged = (name: string) =>
    tags.filter((tag) => tag.startsWith(name)).map((tag) => joined(tag.slice(name.length)));
  return {
    text: [joined(text), ...tagged('returns').map((returned) => `Returns ${returned}`)].filter(Boolean).join('\n\n'),
    params: tagged('param').map((param) => {
      const [, name, about] = /^(\S+)\s+(.*)$/s.exec(param)!;
      return [name!, about!] as const;
    }),
    throws: tagged('throws'),
  };
}

const isInternal = (node: ast.Node) => /@internal\b/.test(node.getSourceFile().text.slice(node.pos, node.getStart()));

/** Returns the text of a node without the indentation that it has in its file. */
function textOf(node: ast.Node): string {
  const { text } = node.getSourceFile();
  const start = node.getStart();
  const indent = /^[ \t]*/.exec(text.slice(text.lastIndexOf('\n', start - 1) + 1))![0];
  return node.getText().replaceAll(`\n${indent}`, '\n');
}

const withoutComments = (text: string) => text.replaceAll(/\s*\/\*.*?\*\/\s*|\s*\/\/.*$/gms, ' ');
const oneLine = (text: string) => withoutComments(text).replaceAll(/\s+/g, ' ').trim();

/** A node that has parameters and a result. */
type Callable =
  | ast.FunctionDeclaration
  | ast.MethodDeclaration
  | ast.MethodSignatureDeclaration
  | ast.ConstructorDeclaration
  | ast.ArrowFunction
  | ast.FunctionTypeNode;

const modifiersOf = (node: ast.Node) =>
  ('modifiers' in node ? [...((node.modifiers ?? []) as Iterable<ast.Node>)] : []).map((modifier) =>
    modifier.getText(),
  );

/** Returns the name of a type that is declared in the project. */
type IsOurs = (symbol: Sym) => string | undefined;

class Reader {
  readonly #checker: Checker;

  constructor(checker: Checker) {
    this.#checker = checker;
  }

  resolve(symbol: Sym): Sym {
    return symbol.flags & SymbolFlags.Alias ? this.#checker.getAliasedSymbol(symbol) : symbol;
  }

  #typeToString(type: Type, node: ast.Node, flags: NodeBuilderFlags = NodeBuilderFlags.None): string {
    const always = NodeBuilderFlags.NoTruncation | NodeBuilderFlags.UseSingleQuotesForStringLiteralType;
    return this.#checker
      .typeToString(type, node, always | flags)
      .replaceAll(/\bimport\('[^']*'\)\./g, '')
      .replaceAll(/^( {4})+/gm, (indent) => indent.slice(indent.length / 2));
  }

  /** Returns the type of a node, as its annotation says, or as the compiler infers it. */
  #typeText(node: ast.Node, annotation: ast.Node | undefined, flags?: NodeBuilderFlags): string {
    if (annotation) return oneLine(annotation.getText());
    return this.#typeToString(this.#checker.getTypeAtLocation(node)!, node, flags);
  }

  #parameter(node: ast.ParameterDeclaration): string {
    // A parameter that is taken apart has no name of its own.
    const name = ast.isIdentifier(node.name) ? node.name.text : 'options';
    const isOptional = node.questionToken || node.initializer;
    const type = this.#typeText(node, node.type);
    return `${node.dotDotDotToken ? '...' : ''}${name}${isOptional ? '?' : ''}: ${type}`;
  }

  /** @param arrow what stands before the type of the result */
  #callText(prefix: string, node: Callable, arrow = ':'): string {
    const typeParameters = 'typeParameters' in node ? [...(node.typeParameters ?? [])] : [];
    const generic =
      typeParameters.length > 0 ? `<${typeParameters.map((one) => oneLine(one.getText())).join(', ')}>` : '';
    const parameters = [...(node.parameters as Iterable<ast.ParameterDeclaration>)].map((one) => this.#parameter(one));
    const result = ast.isConstructorDeclaration(node) ? '' : `${arrow} ${this.#resultText(node)}`;
    const line = `${prefix}${generic}(${parameters.join(', ')})${result}`;
    if (line.length <= maxWidth) return line;
    return `${prefix}${generic}(\n${parameters.map((one) => `  ${one},\n`).join('')})${result}`;
  }

  #resultText(node: Exclude<Callable, ast.ConstructorDeclaration>): string {
    if (node.type) return oneLine(node.type.getText());
    const signature = this.#checker.getSignatureFromDeclaration(node)!;
    return this.#typeToString(this.#checker.getReturnTypeOfSignature(signature)!, node);
  }

  #members(node: ast.ClassDeclaration | ast.InterfaceDeclaration, isOurs: IsOurs): Member[] {
    const found: Member[] = [];
    for (const member of node.members as Iterable<ast.ClassElement | ast.TypeElement>) {
      const words = modifiersOf(member);
      if (words.includes('private') || words.includes('protected') || isInternal(member)) continue;
      const base = {
        modifiers: words.filter((word) => word === 'static'),
        isOptional: false,
        doc: docstringOf(member),
        types: this.#types(member, isOurs),
      };
      if (ast.isConstructorDeclaration(member)) {
        const signature = this.#callText(`new ${node.name!.text}`, member);
        found.push({ ...base, name: 'constructor', kind: 'constructor', signature });
        continue;
      }
      if (ast.isIndexSignatureDeclaration(member)) {
        const name = `[${oneLine([...member.parameters][0]!.getText())}]`;
        found.push({ ...base, name, kind: 'property', signature: this.#typeText(member, member.type) });
        continue;
      }
      const named = 'name' in member ? (member.name as ast.Node | undefined) : undefined;
      if (!named || ast.isPrivateIdentifier(named)) continue;
      const name = named.getText();
      // What a global interface asks for is told by `implements`, unless there is more to say.
      const isKnown = name.startsWith('[Symbol.') || ['then', 'catch', 'finally'].includes(name);
      if (isKnown && base.doc === noDoc) continue;
      const postfix = 'postfixToken' in member ? (member.postfixToken as ast.Node | undefined) : undefined;
      const isOptional = postfix?.kind === ast.SyntaxKind.QuestionToken;
      if (ast.isMethodDeclaration(member) || ast.isMethodSignatureDeclaration(member)) {
        const prefix = `${base.modifiers.map((word) => `${word} `).join('')}${name}${isOptional ? '?' : ''}`;
        found.push({ ...base, name, kind: 'method', signature: this.#callText(prefix, member), isOptional });
      } else if (ast.isSetAccessorDeclaration(member)) {
        const i = found.findIndex((one) => one.name === name);
        found[i] = { ...found[i]!, modifiers: found[i]!.modifiers.filter((word) => word !== 'readonly') };
      } else {
        const isReadonly = words.includes('readonly') || ast.isGetAccessorDeclaration(member);
        const modifiers = [...base.modifiers, ...(isReadonly ? ['readonly'] : [])];
        const type = 'type' in member ? (member.type as ast.Node | undefined) : undefined;
        const signature = this.#typeText(member, type);
        found.push({ ...base, name, kind: 'property', signature, modifiers, isOptional });
      }
    }
    return found;
  }

  /** Returns the names of the project's types that the public part of a declaration refers to. */
  #types(node: ast.Node, isOurs: IsOurs): string[] {
    const names = new Set<string>();
    const visit = (at: ast.Node): void => {
      const isHidden =
        ast.isBlock(at) ||
        ('name' in at && at.name && ast.isPrivateIdentifier(at.name as ast.Node)) ||
        modifiersOf(at).some((word) => word === 'private' || word === 'protected') ||
        (at !== node && isInternal(at)) ||
        (ast.isArrowFunction(at.parent) && at === at.parent.body) ||
        ((ast.isParameterDeclaration(at.parent) || ast.isPropertyDeclaration(at.parent)) &&
          at === at.parent.initializer);
      if (isHidden) return;
      if (ast.isTypeReferenceNode(at) || ast.isExpressionWithTypeArguments(at)) {
        const symbol = this.#checker.getSymbolAtLocation(ast.isTypeReferenceNode(at) ? at.typeName : at.expression);
        const name = symbol && isOurs(this.resolve(symbol));
        if (name) names.add(name);
      }
      at.forEachChild(visit);
    };
    visit(node);
    return [...names];
  }

  #heritage(node: ast.ClassDeclaration | ast.InterfaceDeclaration): string {
    const parameters = [...(node.typeParameters ?? [])].map((one) => oneLine(one.getText()));
    const clauses = [...(node.heritageClauses ?? [])].map((clause) => ` ${oneLine(clause.getText())}`);
    return `${parameters.length > 0 ? `<${parameters.join(', ')}>` : ''}${clauses.join('')}`;
  }

  read(name: string, exported: Sym, isOurs: IsOurs): Export {
    const declaration = exported.declarations[0]!;
    const node = declaration.resolve()!;
    const file = relative(packageRoot, node.getSourceFile().fileName);
    // The docstring of `const a = …` stands before the statement.
    const documented = ast.isVariableDeclaration(node) ? node.parent.parent : node;
    const types = ast.isSourceFile(node) ? [] : this.#types(node, isOurs).filter((one) => one !== name);
    const common = { name, doc: docstringOf(documented), members: [], types, file };
    if (ast.isClassDeclaration(node) || ast.isInterfaceDeclaration(node)) {
      const kind = ast.isClassDeclaration(node) ? 'class' : 'interface';
      const signature = `${kind} ${name}${this.#heritage(node)}`;
      return { ...common, kind, signature, members: this.#members(node, isOurs) };
    }
    if (ast.isTypeAliasDeclaration(node)) return { ...common, kind: 'type', signature: this.#alias(name, node) };
    if (ast.isFunctionDeclaration(node))
      return { ...common, kind: 'function', signature: this.#callText(`function ${name}`, node) };
    if (ast.isVariableDeclaration(node)) {
      const callable = node.type && ast.isFunctionTypeNode(node.type) ? node.type : node.initializer;
      if (callable && (ast.isFunctionTypeNode(callable) || ast.isArrowFunction(callable)))
        return { ...common, kind: 'function', signature: this.#callText(`function ${name}`, callable) };
      const type = this.#typeText(node, node.type, NodeBuilderFlags.MultilineObjectLiterals);
      // The fields of methods are those of their types, such as LoraInput.
      const short = type.replaceAll(/<\{\n(?: {4}.*\n)+ {2}\}>/g, '<{ … }>');
      return { ...common, kind: 'constant', signature: `const ${name}: ${short}` };
    }
    if (ast.isSourceFile(node)) return { ...common, kind: 'namespace', signature: this.#functions(node) };
    throw new Error(`api-reader.ts cannot describe the export ${name} of ${file}`);
  }

  /** A type in the words of the source, spelled out where these are not TypeScript's own. */
  #alias(name: string, node: ast.TypeAliasDeclaration): string {
    if (!/\btypeof\b|\bz\.\w+</.test(node.type.getText())) {
      const parameters = [...(node.typeParameters ?? [])].map((one) => one.getText());
      const generic = parameters.length > 0 ? `<${parameters.join(', ')}>` : '';
      const text = textOf(node);
      return `type ${name}${generic} =${text.slice(text.indexOf('=') + 1).replace(/;$/, '')}`;
    }
    const type = this.#checker.getTypeAtLocation(node)!;
    if (type.isUnionType()) {
      const text = this.#typeToString(type, node, NodeBuilderFlags.InTypeAlias);
      const line = `type ${name} = ${text}`;
      return line.length <= maxWidth ? line : `type ${name} =\n${text.replaceAll(/(?:^| \| )/g, '\n  | ').slice(1)}`;
    }
    const fields = this.#checker.getPropertiesOfType(type).map((field) => {
      const text = this.#typeToString(
        this.#checker.getTypeOfSymbol(field)!,
        node,
        NodeBuilderFlags.MultilineObjectLiterals,
      );
      const isOptional = (field.flags & SymbolFlags.Optional) !== 0;
      const shown = isOptional ? text.replace(/ \| undefined$/, '') : text;
      return `  ${field.name}${isOptional ? '?' : ''}: ${shown.replaceAll('\n', '\n  ')};\n`;
    });
    return `type ${name} = {\n${fields.join('')}}`;
  }

  /** The exported functions of a file, one after another. */
  #functions(source: ast.SourceFile): string {
    const functions = [...(source.statements as Iterable<ast.Node>)].filter(ast.isFunctionDeclaration);
    return functions.map((one) => this.#callText(one.name!.text, one)).join('\n');
  }
}

/** Returns the exports of each entry, in the order of their names; an entry's file is given from the root of the checkout. */
export function readEntries(entries: readonly string[]): Export[][] {
  const config = join(packageRoot, 'tsconfig.json');
  const api = new API({ cwd: packageRoot });
  try {
    const snapshot = api.updateSnapshot({ openProjects: [config] });
    const { program, checker } = snapshot.getProject(config)!;
    const reader = new Reader(checker);
    const symbols = entries.map((entry) => {
      const module = checker.getSymbolAtLocation(program.getSourceFile(join(packageRoot, entry))!)!;
      return checker.getExportsOfModule(module).map((symbol) => [symbol.name, reader.resolve(symbol)] as const);
    });
    const names = new Map(symbols.flat().map(([name, symbol]) => [symbol.id, name]));
    const isOurs: IsOurs = (symbol) => {
      const path = symbol.declarations[0]?.path ?? '';
      const isType = !(symbol.flags & SymbolFlags.TypeParameter);
      return relative(packageRoot, path).startsWith('src/') && isType
        ? (names.get(symbol.id) ?? symbol.name)
        : undefined;
    };
    return symbols.map((list) =>
      list.map(([name, symbol]) => reader.read(name, symbol, isOurs)).sort((a, b) => (a.name < b.name ? -1 : 1)),
    );
  } finally {
    api.close();
  }
}
