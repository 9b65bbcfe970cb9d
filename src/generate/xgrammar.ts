/**
 * XGrammar (arXiv 2411.15100) as WebAssembly, from the package `@mlc-ai/web-xgrammar`. Its file is a script for browsers, so it is
 * evaluated as one. What it cannot do, it says on the console and aborts, which ends the whole instance: instances are cheap, and
 * one that has failed is never used again.
 */
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { compileFunction } from 'node:vm';
import { GraftError } from '../base/index.ts';
import { withJsonClasses } from './json-text.ts';
import type { TokenFilter } from './request.ts';

/** A vector of C++ that is read by position. */
interface Vector {
  size(): number;
  get(index: number): number;
  delete(): void;
}
interface Disposed {
  dispose(): void;
}
interface GrammarText extends Disposed {
  toString(): string;
}
interface Vocabulary extends Disposed {
  readonly handle: unknown;
}
/** A grammar with, for each of its states, the tokens that may come next. */
export interface CompiledGrammar extends Disposed {
  readonly handle: unknown;
}
interface Matcher extends Disposed {
  readonly handle: { GetNextTokenBitmask(vocabSize: number): Vector };
  acceptToken(id: number): boolean;
  isTerminated(): boolean;
}

/** The part of the library that is used. */
interface Library {
  readonly Grammar: {
    fromJSONSchema(
      schema: string,
      anyWhitespace: boolean,
      indent: number,
      separators: undefined,
      strict: boolean,
    ): Promise<GrammarText>;
    fromEBNF(text: string): Promise<GrammarText>;
  };
  readonly TokenizerInfo: {
    createTokenizerInfo(
      tokens: readonly string[],
      kind: TokenSpelling,
      prependSpace: boolean,
      vocabSize: number,
      stopIds: readonly number[],
    ): Promise<Vocabulary>;
  };
  readonly GrammarCompiler: { createGrammarCompiler(vocabulary: Vocabulary, cache: boolean): Promise<Compiler> };
  readonly GrammarMatcher: { createGrammarMatcher(grammar: CompiledGrammar): Promise<Matcher> };
}
interface Compiler extends Disposed {
  compileGrammar(text: string): Promise<CompiledGrammar>;
}

/** How a vocabulary spells bytes: as GPT-2's characters, as <0x0A> beside text with ▁ for spaces, or as they are. */
export type TokenSpelling = 'byte_level' | 'byte_fallback' | 'raw';

let source: string | undefined;

/** An instance of the library, and what it has printed. */
export class XGrammar {
  readonly library: Library;
  readonly #printed: string[] = [];

  constructor() {
    const require = createRequire(import.meta.url);
    const file = require.resolve('@mlc-ai/web-xgrammar');
    source ??= readFileSync(file, 'utf8');
    const module = { exports: {} };
    const print = (...parts: unknown[]) => void this.#printed.push(parts.join(' '));
    // Without `process` it takes no path of its own into Node, and needs nothing but WebAssembly.
    const names = ['exports', 'require', 'module', '__filename', '__dirname', 'process', 'console'];
    const values = [module.exports, createRequire(file), module, file, dirname(file), undefined];
    compileFunction(source, names, { filename: file })(...values, { log: print, warn: print, error: print });
    this.library = module.exports as Library;
  }

  /**
   * The grammar, as EBNF, of JSON that follows a schema. White space is one space after each comma and colon: small models go on with
   * white space for ever where they may.
   * @param strict whether properties and items that the schema does not name are excluded
   * @throws GraftError 'usage' with what the library says about the schema; the instance must not be used again
   */
  async fromJsonSchema(schema: string, strict = false): Promise<string> {
    const text = await this.#tried(() => this.library.Grammar.fromJSONSchema(schema, false, -1, undefined, strict));
    return withJsonClasses(text.toString());
  }

  /** Runs what may abort. A warning counts as a refusal: it says that a part of the grammar would be ignored. */
  async #tried<T>(act: () => Promise<T>): Promise<T> {
    this.#printed.length = 0;
    try {
      const result = await act();
      if (this.#printed.length > 0) throw new Error('warned');
      return result;
    } catch (cause) {
      throw new GraftError('usage', `the grammar cannot be used: ${this.#complaint()}`, { place: 'grammar', cause });
    }
  }

  /** What was printed first, without the place in the library's sources. */
  #complaint(): string {
    const [first = ''] = this.#printed.filter((line) => !line.startsWith('Aborted('));
    const text = first.replace(/^\[\w+\]\s+\S+?:\d+:\s*/, '').replace(/^Check failed: \(.*?\) is false:\s*/, '');
    return text.trim().slice(0, 200) || 'it is too large, or nested too deeply';
  }

  /** @throws GraftError 'usage' as `fromJsonSchema` */
  async compiler(vocabulary: VocabularyTokens): Promise<GrammarCompiler> {
    const { tokens, spelling, stopIds } = vocabulary;
    const { TokenizerInfo, GrammarCompiler: Compilers } = this.library;
    const info = await TokenizerInfo.createTokenizerInfo(tokens, spelling, false, tokens.length, stopIds);
    const compiler = await Compilers.createGrammarCompiler(info, false);
    return {
      compile: (ebnf) => this.#tried(() => compiler.compileGrammar(ebnf)),
      matcher: async (grammar) =>
        new GrammarMatcher(await this.library.GrammarMatcher.createGrammarMatcher(grammar), tokens.length, stopIds),
    };
  }
}

/** The tokens of a model. */
export interface VocabularyTokens {
  /** [V], by id, as the vocabulary spells them; '' for ids that no text has, such as special tokens. */
  readonly tokens: readonly string[];
  readonly spelling: TokenSpelling;
  /** Ids that end an answer. */
  readonly stopIds: readonly number[];
}

export interface GrammarCompiler {
  compile(ebnf: string): Promise<CompiledGrammar>;
  matcher(grammar: CompiledGrammar): Promise<GrammarMatcher>;
}

/** Where an answer is in its grammar. */
export class GrammarMatcher implements TokenFilter {
  readonly #matcher: Matcher;
  readonly #vocabSize: number;
  readonly #stopIds: readonly number[];
  #allowed: Int32Array | undefined;
  #isDisposed = false;

  constructor(matcher: Matcher, vocabSize: number, stopIds: readonly number[]) {
    this.#matcher = matcher;
    this.#vocabSize = vocabSize;
    this.#stopIds = stopIds;
  }

  allowed(): Int32Array {
    if (this.#allowed) return this.#allowed;
    // The library's own function for this answers later; a sampler needs the bits at once.
    const bits = this.#matcher.handle.GetNextTokenBitmask(this.#vocabSize);
    this.#allowed = Int32Array.from({ length: bits.size() }, (_, i) => bits.get(i));
    bits.delete();
    const last = this.#vocabSize & 31; // the bits behind the last token mean nothing
    if (last > 0) this.#allowed[this.#allowed.length - 1]! &= (1 << last) - 1;
    return this.#allowed;
  }

  /** @throws GraftError 'engine' for a token that may not come next */
  accept(id: number): void {
    this.#allowed = undefined;
    if (this.#matcher.acceptToken(id)) return;
    throw new GraftError('engine', `the grammar does not allow token ${id} here`);
  }

  /** Whether nothing may follow but an end token. */
  get ended(): boolean {
    if (this.#matcher.isTerminated()) return true;
    const others = this.allowed().slice();
    for (const id of this.#stopIds) others[id >> 5]! &= ~(1 << (id & 31));
    return others.every((bits) => bits === 0);
  }

  [Symbol.dispose](): void {
    if (!this.#isDisposed) this.#matcher.dispose();
    this.#isDisposed = true;
  }
}
