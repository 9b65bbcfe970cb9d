import { GraftError, nearest } from '../../base/index.ts';
import { type GgufMetadata, parseJson } from '../../io/index.ts';
import type { JsonObject } from './component.ts';
import {
  BYTE,
  CONTROL,
  GPT2,
  type PreTokenization,
  preTokenizations,
  sentencePieceMerges,
  UNKNOWN,
  USER_DEFINED,
} from './gguf-vocabulary.ts';
import { affixTemplate } from './post-processor.ts';
import type { TokenizerSettings } from './settings.ts';
import { Tokenizer } from './tokenizer.ts';

/**
 * The tokenizer inside a GGUF file, made from the tokenizer.json that is equivalent to its metadata. Supported are the kinds
 * `gpt2` (byte-level BPE, pre-tokenized as `tokenizer.ggml.pre` names it), `llama` (SentencePiece BPE) and `bert` (WordPiece).
 * @param metadata of the file, as `openGguf` gives it
 * @param place the file, for errors
 * @throws GraftError `input` when something is missing or not supported
 */
export function tokenizerFromGguf(metadata: GgufMetadata, place = 'the GGUF file'): Tokenizer {
  const get = (key: string): unknown => metadata.get(`tokenizer.${key}`);
  const fail = (problem: string) =>
    new GraftError('input', problem, {
      place,
      hint: 'Use the Hugging Face directory of the model, with its tokenizer.json',
    });
  const kind = get('ggml.model');
  if (kind === undefined || !isList(get('ggml.tokens'))) throw fail('The file has no tokenizer');
  const tokens = Array.from(get('ggml.tokens') as ArrayLike<unknown>, String);
  const embedded = get('huggingface.json');
  const types = isList(get('ggml.token_type')) ? Array.from(get('ggml.token_type') as ArrayLike<number>, Number) : [];
  const id = (name: string): number | undefined => {
    const value = get(`ggml.${name}_token_id`);
    return typeof value === 'number' && tokens[value] !== undefined ? value : undefined;
  };
  const token = (name: string) => (id(name) === undefined ? undefined : tokens[id(name)!]);

  const flag = (key: string) => get(`ggml.${key}`) as boolean | undefined;
  const affix = (add: boolean, name: 'bos' | 'eos') =>
    add && id(name) !== undefined ? { token: token(name)!, id: id(name)! } : undefined;
  /** tokenizer.json, with the BOS and EOS that the flags say, else `addBos`. */
  const complete = (parts: JsonObject, addBos: boolean): JsonObject => ({
    version: '1.0',
    truncation: null,
    padding: null,
    ...parts,
    post_processor: affixTemplate(
      affix(flag('add_bos_token') ?? addBos, 'bos'),
      affix(flag('add_eos_token') ?? false, 'eos'),
    ),
  });

  let json: JsonObject;
  if (typeof embedded === 'string') json = parseJson(embedded, place) as JsonObject;
  else if (kind === 'gpt2') {
    const name = String(get('ggml.pre') ?? 'default');
    const pre = Object.hasOwn(preTokenizations, name) ? preTokenizations[name]! : undefined;
    if (!pre) {
      const near = nearest(name, Object.keys(preTokenizations));
      throw fail(`The pre-tokenizer ${JSON.stringify(name)} is not supported${near ? ` (nearest: ${near})` : ''}`);
    }
    if (!isList(get('ggml.merges'))) throw fail('The file has no tokenizer.ggml.merges');
    const merges = Array.from(get('ggml.merges') as ArrayLike<unknown>, String);
    json = complete(byteLevelJson(tokens, types, merges, pre), pre.bos ?? false);
  } else if (kind === 'llama') {
    if (!isList(get('ggml.scores'))) throw fail('The file has no tokenizer.ggml.scores');
    const scores = Array.from(get('ggml.scores') as ArrayLike<number>, Number);
    const addSpace = get('ggml.add_space_prefix') !== false;
    json = complete(sentencePieceJson(tokens, types, scores, id('unknown') ?? 0, addSpace), true);
  } else if (kind === 'bert') {
    const tokenWithId = (name: string) => (id(name) === undefined ? undefined : { token: token(name)!, id: id(name)! });
    const [start, separator] = [
      tokenWithId('cls') ?? tokenWithId('bos'),
      tokenWithId('seperator') ?? tokenWithId('eos'),
    ];
    if (!start || !separator) throw fail('The file names no token for the start of a text, or none for its end');
    const normalizer = (name: string) => flag(`normalizer.${name}`);
    json = {
      ...wordPieceJson(tokens, types, token('unknown'), normalizer('lowercase') ?? true, normalizer('strip_accents')),
      post_processor: affixTemplate(start, separator),
    };
  } else throw fail(`Tokenizers of kind '${String(kind)}' are not supported`);

  const settings: TokenizerSettings = {
    bos: token('bos'),
    eos: token('eos'),
    pad: token('padding'),
    unk: token('unknown'),
    eosIds: generationEnds(tokens, types, [id('eos'), id('eot'), id('eom')]),
    chatTemplates: chatTemplates(metadata),
  };
  return new Tokenizer(json, settings, place);
}

const isList = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);

/** Control tokens that end a generation, in addition to those that the metadata name. Source: `special_eog_ids` of llama.cpp. */
const END_TOKENS = ['<|eot_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>', '<|eom_id|>', '<|endofturn|>'];

/** @param fromMetadata the ids that the metadata name */
function generationEnds(
  tokens: readonly string[],
  types: readonly number[],
  fromMetadata: readonly (number | undefined)[],
): number[] {
  const byName = END_TOKENS.map((token) => tokens.indexOf(token)).filter((id) => id >= 0 && types[id] === CONTROL);
  return [...new Set([...fromMetadata, ...byName])].filter((id) => id !== undefined);
}

function chatTemplates(metadata: GgufMetadata): Record<string, string> {
  const byName: Record<string, string> = {};
  for (const [key, value] of metadata) {
    const name = /^tokenizer\.chat_template(?:\.(.+))?$/.exec(key);
    if (name && typeof value === 'string') byName[name[1] ?? 'default'] = value;
  }
  return byName;
}

const addedTokens = (tokens: readonly string[], types: readonly number[]): JsonObject[] =>
  tokens.flatMap((content, id) =>
    types[id] === CONTROL || types[id] === USER_DEFINED || types[id] === UNKNOWN
      ? [
          {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: types[id] !== USER_DEFINED,
          },
        ]
      : [],
  );

const vocabulary = (tokens: readonly string[]): Record<string, number> =>
  Object.assign(Object.create(null), Object.fromEntries(tokens.map((token, id) => [token, id])));

function byteLevelJson(
  tokens: readonly string[],
  types: readonly number[],
  merges: readonly string[],
  pre: PreTokenization,
): JsonObject {
  return {
    added_tokens: addedTokens(tokens, types),
    normalizer: pre.normalizer ?? null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: pre.steps },
    decoder: GPT2,
    model: { type: 'BPE', ignore_merges: pre.ignoreMerges ?? false, vocab: vocabulary(tokens), merges },
  };
}

/** BERT's WordPiece: GGUF marks the tokens that begin a word, and tokenizer.json those that do not. Source: convert_hf_to_gguf.py. */
function wordPieceJson(
  tokens: readonly string[],
  types: readonly number[],
  unknown: string | undefined,
  lowercase: boolean,
  stripAccents: boolean | undefined,
): JsonObject {
  // Older converters leave every token in brackets as it is, such as [unused1].
  const isSpecial = (id: number) =>
    types[id] === CONTROL || types[id] === UNKNOWN || types[id] === USER_DEFINED || /^\[.+\]$/.test(tokens[id]!);
  const spelled = tokens.map((token, id) =>
    isSpecial(id) ? token : token.length > 1 && token.startsWith('▁') ? token.slice(1) : `##${token}`,
  );
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: addedTokens(tokens, types),
    normalizer: {
      type: 'BertNormalizer',
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: stripAccents ?? null,
      lowercase,
    },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: {
      type: 'WordPiece',
      unk_token: unknown ?? '[UNK]',
      continuing_subword_prefix: '##',
      max_input_chars_per_word: 100,
      vocab: vocabulary(spelled),
    },
  };
}

function sentencePieceJson(
  tokens: readonly string[],
  types: readonly number[],
  scores: readonly number[],
  unknownId: number,
  addSpacePrefix: boolean,
): JsonObject {
  const merges = sentencePieceMerges(tokens, types, scores);
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  return {
    added_tokens: addedTokens(tokens, types),
    normalizer: {
      type: 'Sequence',
      normalizers: addSpacePrefix ? [{ type: 'Prepend', prepend: '▁' }, replace] : [replace],
    },
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(addSpacePrefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      unk_token: tokens[unknownId],
      fuse_unk: true,
      byte_fallback: types.includes(BYTE) || tokens.includes('<0x00>'),
      vocab: vocabulary(tokens),
      merges,
    },
  };
}
