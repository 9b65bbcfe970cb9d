import { GraftError } from '../../base/index.ts';
import type { GgufField } from '../../io/index.ts';
import type { AddedToken } from './added.ts';
import type { JsonObject } from './component.ts';
import {
  BYTE,
  CONTROL,
  NORMAL,
  preTokenizations,
  sentencePieceMerges,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
} from './gguf-vocabulary.ts';

/** What a tokenizer is made of, for writing. */
export interface TokenizerParts {
  readonly json: JsonObject;
  readonly addedTokens: readonly AddedToken[];
  /** Ids that are put before and after a text. */
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
  readonly chatTemplates: Readonly<Record<string, string>>;
  /** Ids by role, where the tokenizer has one. */
  readonly bos: number | undefined;
  readonly eos: number | undefined;
  readonly pad: number | undefined;
  readonly unk: number | undefined;
  /** Every id that ends a generation. */
  readonly eosIds: readonly number[];
}

/** A tokenizer as metadata of a GGUF file. */
export interface GgufTokenizer {
  /** Under `tokenizer.`. */
  readonly fields: ReadonlyMap<string, GgufField>;
  /** Where llama.cpp reads texts differently, a sentence each. */
  readonly notes: readonly string[];
}

/** Added tokens that llama.cpp takes as control tokens whatever their flags say. Source: convert_hf_to_gguf.py, does_token_look_special. */
const looksSpecial = /^(<\|.*\|>|<｜.*｜>|<pad>|<mask>|<unused\d+>)$/;

/**
 * Returns the metadata that llama.cpp reads the tokenizer from: kind, pre-tokenizer, tokens with their types, merges or scores,
 * special ids, chat templates. Source: llama.cpp `llama-vocab.cpp` (load), convert_hf_to_gguf.py.
 * @param rows of the table of embeddings; ids without a token are written as unused
 * @throws GraftError 'usage' for a tokenizer that llama.cpp has no name for
 */
export function tokenizerToGguf(parts: TokenizerParts, rows: number, place: string): GgufTokenizer {
  const model = parts.json.model as JsonObject;
  const cannot = (problem: string) =>
    new GraftError('usage', `llama.cpp cannot read this tokenizer: ${problem}`, {
      place,
      hint: 'Write a safetensors directory instead (--to int8, int4 …), which keeps the tokenizer as it is',
    });
  if (model.type !== 'BPE')
    throw cannot(`its model is ${String(model.type)}, and Graft writes BPE and SentencePiece’s BPE`);
  if (model.continuing_subword_prefix || model.end_of_word_suffix) throw cannot('its tokens mark the parts of words');
  const notes: string[] = [];
  const vocabulary = new Map(Object.entries(model.vocab as Record<string, number>));
  for (const { content, id } of parts.addedTokens) vocabulary.set(content, id);
  const count = Math.max(...vocabulary.values()) + 1;
  if (count > rows) throw cannot(`it has ids up to ${count - 1}, and the model has ${rows} rows of embeddings`);
  const tokens = Array.from({ length: rows }, (_, id) => `[PAD${id}]`);
  const types = new Int32Array(rows).fill(UNUSED);
  for (const [token, id] of vocabulary) [tokens[id], types[id]] = [token, NORMAL];
  const isSentencePiece = model.byte_fallback === true;
  if (parts.eos === undefined && parts.eosIds.length === 0 && parts.suffix.length === 0) {
    const end = isSentencePiece ? 2 : 11;
    notes.push(`the tokenizer names no token that ends a text, and llama.cpp then takes id ${end} (${tokens[end]})`);
  }
  if (isSentencePiece)
    for (const [id, token] of tokens.entries()) if (/^<0x[0-9A-F]{2}>$/.test(token)) types[id] = BYTE;
  for (const { id, content, special } of parts.addedTokens)
    types[id] = special || looksSpecial.test(content) ? CONTROL : USER_DEFINED;
  const stripping = parts.addedTokens.filter((token) => token.lstrip || token.rstrip || token.singleWord);
  if (stripping.length > 0) {
    const names = stripping.slice(0, 3).map(({ content }) => content);
    notes.push(`llama.cpp does not read lstrip, rstrip and single_word of added tokens (${names.join(', ')})`);
  }
  const ofKind = isSentencePiece
    ? sentencePieceFields(parts, tokens, types, cannot, notes)
    : byteLevelFields(parts.json, cannot, notes);
  const strings = (value: string[]): GgufField => ({ type: 'string', value });
  return {
    notes,
    fields: new Map<string, GgufField>([
      ['tokenizer.ggml.model', { type: 'string', value: isSentencePiece ? 'llama' : 'gpt2' }],
      ['tokenizer.ggml.pre', { type: 'string', value: ofKind.pre }],
      ['tokenizer.ggml.tokens', strings(tokens)],
      ...ofKind.fields(),
      ['tokenizer.ggml.token_type', { type: 'int32', value: types }],
      ...specialFields(parts, tokens, cannot),
      ...templateFields(parts.chatTemplates),
    ]),
  };
}

type Cannot = (problem: string) => GraftError;

interface KindFields {
  readonly pre: string;
  fields(): [string, GgufField][];
}

/** The fields of byte-level BPE, whose pre-tokenizer must be one that llama.cpp has by name. */
function byteLevelFields(json: JsonObject, cannot: Cannot, notes: string[]): KindFields {
  const model = json.model as JsonObject;
  const steps = stepsOf(json.pre_tokenizer);
  const ignoreMerges = model.ignore_merges === true;
  const normalizers = stepsOf(json.normalizer);
  const matching = Object.entries(preTokenizations).filter(
    ([, pre]) => stepsOf(pre.steps) === steps && (pre.ignoreMerges ?? false) === ignoreMerges,
  );
  const exact = matching.find(([, { normalizer }]) => stepsOf(normalizer) === normalizers);
  const isNfc = normalizers === stepsOf({ type: 'NFC' });
  const [name] = exact ?? (isNfc ? (matching[0] ?? []) : []);
  if (name === undefined) {
    const what = matching.length > 0 ? `normalizer ${normalizers}` : `pre-tokenizer ${steps}`;
    throw cannot(`it has no name for the ${what}`);
  }
  if (isNfc) notes.push('llama.cpp does not bring texts into the normal form NFC, as this tokenizer does');
  const merges = (model.merges as (string | readonly [string, string])[]).map((merge) => {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (pair.length !== 2 || pair.some((token) => token.includes(' ')))
      throw cannot(`the merge ${JSON.stringify(merge)} has a space in a token`);
    return pair.join(' ');
  });
  return { pre: name, fields: () => [['tokenizer.ggml.merges', { type: 'string', value: merges }]] };
}

/** Returns the steps of a component as text that is equal for equal steps: sequences are joined, defaults are filled in. */
function stepsOf(component: unknown): string {
  const list = (part: unknown): unknown[] => {
    if (part === null || part === undefined) return [];
    if (Array.isArray(part)) return part.flatMap(list);
    const { type, ...fields } = part as JsonObject;
    if (type === 'Sequence') return list(fields.pretokenizers ?? fields.normalizers);
    // trim_offsets does not change the ids.
    if (type === 'ByteLevel') {
      const { add_prefix_space: space = true, use_regex: regex = true } = fields;
      return [{ type, add_prefix_space: space, use_regex: regex }];
    }
    if (type === 'Split') {
      const { pattern, behavior, invert = false } = fields;
      return [{ type, pattern, behavior: behavior, invert }];
    }
    if (type === 'Digits') return [{ type, individual_digits: fields.individual_digits ?? false }];
    if (type === 'Punctuation') return [{ type, behavior: fields.behavior ?? 'Isolated' }];
    return [part];
  };
  return JSON.stringify(list(component));
}

const spaceToMark = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };

/**
 * Returns whether a space is put before a text, and the texts before which llama.cpp puts one that this tokenizer does not.
 * @throws the error of `cannot` for any other way to make ▁ of spaces
 */
function spacePrefix(json: JsonObject, cannot: Cannot): { add: boolean; excess?: string } {
  const [normalizers, steps] = [stepsOf(json.normalizer), stepsOf(json.pre_tokenizer)];
  if (steps === '[]') {
    if (normalizers === stepsOf([{ type: 'Prepend', prepend: '▁' }, spaceToMark])) return { add: true };
    if (normalizers === stepsOf(spaceToMark)) return { add: false };
  }
  const only = json.pre_tokenizer as JsonObject | null;
  if (normalizers === '[]' && only?.type === 'Metaspace' && only.replacement === '▁' && only.split === false) {
    const scheme = only.prepend_scheme ?? 'always';
    const excess = `before a text that begins with one${scheme === 'first' ? ', and after special tokens' : ''}`;
    return scheme === 'never' ? { add: false } : { add: true, excess };
  }
  throw cannot(`it makes pieces of text by normalizer ${normalizers} and pre-tokenizer ${steps}`);
}

/** The fields of SentencePiece's BPE: scores in the order of the merges. */
function sentencePieceFields(
  { json, addedTokens, unk }: TokenizerParts,
  tokens: readonly string[],
  types: Int32Array,
  cannot: Cannot,
  notes: string[],
): KindFields {
  const { add, excess } = spacePrefix(json, cannot);
  if (excess) notes.push(`llama.cpp also puts a space ${excess}`);
  const merges = ((json.model as JsonObject).merges as (string | [string, string])[]).map((merge) =>
    typeof merge === 'string' ? (merge.split(' ') as [string, string]) : merge,
  );
  const order = [...new Set(merges.map(([left, right]) => left + right))];
  const idOf = new Map(tokens.map((token, id) => [token, id]));
  const ids = order.map((token) => idOf.get(token) ?? -1);
  const scores = new Float32Array(tokens.length);
  const normal = [...types.keys()].filter((id) => types[id] === NORMAL);
  // SentencePiece numbers tokens in the order of their scores; where a vocabulary does not, the order of the merges decides.
  const inOrder = ids.every((id, i) => id > (ids[i - 1] ?? -1));
  const ranked = inOrder ? normal : [...ids, ...normal.filter((id) => !ids.includes(id))];
  for (const [rank, id] of ranked.entries()) if (id >= 0) scores[id] = -rank;
  const added = new Set(addedTokens.map(({ id }) => id));
  const withoutAdded = Array.from(types, (type, id) => (added.has(id) ? CONTROL : type));
  const byToken = (list: readonly (readonly [string, string])[]) => {
    const map = new Map<string, string[]>();
    for (const [left, right] of list) map.set(left + right, [...(map.get(left + right) ?? []), left].sort());
    return JSON.stringify([...map]);
  };
  if (byToken(merges) !== byToken(sentencePieceMerges(tokens, withoutAdded, Array.from(scores)))) {
    throw cannot('its merges are not those that SentencePiece makes from scores of tokens');
  }
  if (unk !== undefined && types[unk] === CONTROL) types[unk] = UNKNOWN;
  return {
    pre: 'default',
    fields: () => [
      ['tokenizer.ggml.scores', { type: 'float32', value: scores }],
      ['tokenizer.ggml.add_space_prefix', { type: 'bool', value: add }],
    ],
  };
}

/** The ids of special tokens, and what is put around a text: BOS before it, EOS after it, or nothing. */
function specialFields(parts: TokenizerParts, tokens: readonly string[], cannot: Cannot): [string, GgufField][] {
  const { bos, eos, pad, unk, prefix, suffix, eosIds } = parts;
  const affix = (ids: readonly number[], id: number | undefined, where: string) => {
    if (ids.length === 0) return false;
    if (ids.length === 1 && (id === undefined || ids[0] === id)) return true;
    throw cannot(`it puts ${ids.map((other) => tokens[other]).join(' ')} ${where} a text`);
  };
  const [addBos, addEos] = [affix(prefix, bos, 'before'), affix(suffix, eos, 'after')];
  // llama.cpp has two places for tokens that end a generation besides EOS, and finds those of known names by itself.
  const [eot, eom] = eosIds.filter((id) => id !== (eos ?? eosIds[0]));
  const ids = { bos: bos ?? prefix[0], eos: eos ?? eosIds[0] ?? suffix[0], eot, eom, unknown: unk, padding: pad };
  return [
    ...Object.entries(ids).flatMap(([role, id]): [string, GgufField][] =>
      id === undefined ? [] : [[`tokenizer.ggml.${role}_token_id`, { type: 'uint32', value: id }]],
    ),
    ['tokenizer.ggml.add_bos_token', { type: 'bool', value: addBos }],
    ['tokenizer.ggml.add_eos_token', { type: 'bool', value: addEos }],
  ];
}

function templateFields({ default: standard, ...named }: Readonly<Record<string, string>>): [string, GgufField][] {
  const names = Object.keys(named);
  const field = (value: string): GgufField => ({ type: 'string', value });
  return [
    ...(standard === undefined ? [] : ([['tokenizer.chat_template', field(standard)]] as [string, GgufField][])),
    ...(names.length > 0
      ? ([['tokenizer.chat_templates', { type: 'string', value: names }]] as [string, GgufField][])
      : []),
    ...names.map((name): [string, GgufField] => [`tokenizer.chat_template.${name}`, field(named[name]!)]),
  ];
}
