/** Answers that follow a grammar: of each next token, whether it may come. */
import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import {
  type CompiledGrammar,
  type GrammarCompiler,
  type GrammarMatcher,
  type VocabularyTokens,
  XGrammar,
} from './xgrammar.ts';

/** Compiled grammars that are kept; each takes some megabytes for a large vocabulary. */
const kept = 32;

/**
 * The tokens of a model, as grammars need them. Special tokens stand for no text.
 * @param vocabSize V, which may be larger than the tokenizer's
 * @throws GraftError 'usage' for a tokenizer whose tokens are not bytes of the text
 */
export function vocabularyTokens(tokenizer: Tokenizer, vocabSize: number): VocabularyTokens {
  const spelling = tokenizer.byteSpelling;
  if (!spelling)
    throw new GraftError('usage', 'answers of a given form need a tokenizer whose tokens are bytes of the text', {
      place: 'grammar',
      hint: 'Leave the form out, or use a model with a byte-level tokenizer',
    });
  const ends = new Set(tokenizer.eosIds);
  const tokens = Array.from({ length: vocabSize }, (_, id) =>
    tokenizer.isSpecial(id) && !ends.has(id) ? '' : (tokenizer.idToToken(id) ?? ''),
  );
  return { tokens, spelling, stopIds: tokenizer.eosIds };
}

/** The grammars of a model. */
export class Grammars {
  readonly #tokens: () => VocabularyTokens;
  /** Compiled grammars by their text, the one used last at the end. */
  readonly #compiled = new Map<string, CompiledGrammar>();
  #compiler: Promise<GrammarCompiler> | undefined;

  constructor(tokens: () => VocabularyTokens) {
    this.#tokens = tokens;
  }

  /**
   * Begins an answer.
   * @param ebnf XGrammar's EBNF, whose first rule is `root`
   * @throws GraftError 'usage' for a grammar that cannot be used
   */
  async begin(ebnf: string): Promise<GrammarMatcher> {
    this.#compiler ??= new XGrammar().compiler(this.#tokens());
    const compiler = await this.#compiler;
    let grammar = this.#compiled.get(ebnf);
    if (!grammar) {
      try {
        grammar = await compiler.compile(ebnf);
      } catch (error) {
        // The instance is lost with everything that it has compiled.
        this.#compiler = undefined;
        this.#compiled.clear();
        throw error;
      }
    }
    this.#compiled.delete(ebnf);
    this.#compiled.set(ebnf, grammar);
    if (this.#compiled.size > kept) {
      const [[oldest, unused]] = this.#compiled as unknown as [[string, CompiledGrammar]];
      unused.dispose();
      this.#compiled.delete(oldest);
    }
    return compiler.matcher(grammar);
  }
}
