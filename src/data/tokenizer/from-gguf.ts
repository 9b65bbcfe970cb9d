import { GraftError, nearest } from '../../base/index.ts';
import { type GgufMetadata, parseJson } from '../../io/index.ts';
import type { JsonObject } from './component.ts';
import { affixTemplate } from './post-processor.ts';
import type { TokenizerSettings } from './settings.ts';
import { Tokenizer } from './tokenizer.ts';

/** Token types. Source: `enum llama_token_type` of llama.cpp. */
const [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE] = [1, 2, 3, 4, 6];

const split = (regex: string, behavior = 'Isolated'): JsonObject => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior,
  invert: false,
});
const DIGITS: JsonObject = { type: 'Digits', individual_digits: true };
const BYTES: JsonObject = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const GPT2: JsonObject = { ...BYTES, use_regex: true };
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
/** Words that begin with a capital letter are split from lower-case letters before it (GPT-4o). */
const caseSplit = (number: string, contractions: string): JsonObject =>
  split(
    `[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+${contractions}|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*${contractions}|${number}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  );
/** Words, numbers by `number`, punctuation, white space (GPT-4, Llama 3, Qwen 2). */
const wordSplit = (number: string): JsonObject =>
  split(
    `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${number}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  );
const CJK = '[一-龥ࠀ-一가-퟿]+';

interface PreTokenization {
  /** The `pre_tokenizer` steps that tokenizer.json of these models has. */
  readonly steps: readonly JsonObject[];
  /** Whether a piece that is a token is taken as it is, without merges. */
  readonly ignoreMerges?: boolean;
  /** Whether BOS is put before a text, where the metadata do not say. */
  readonly bos?: boolean;
  readonly normalizer?: JsonObject;
}

/** `tokenizer.ggml.pre` of byte-level BPE. Source: `llm_tokenizer_bpe` of llama.cpp `llama-vocab.cpp`. */
const preTokenizations: Readonly<Record<string, PreTokenization>> = (() => {
  const gpt2 = { steps: [GPT2] };
  const digits = { steps: [DIGITS, GPT2] };
  const llama3 = { steps: [wordSplit('\\p{N}{1,3}'), BYTES], ignoreMerges: true, bos: true };
  const qwen2 = { steps: [wordSplit('\\p{N}'), BYTES], normalizer: { type: 'NFC' } };
  const table: [string, PreTokenization][] = [
    // `default`, or no name, is in files older than the field, when only GPT-2's pre-tokenizer existed.
    ['default gpt-2 phi-2 mpt olmo jais trillion granite-docling roberta-bpe', gpt2],
    ['smollm starcoder refact command-r codeshell exaone minerva-7b mellum', digits],
    ['llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2', llama3],
    ['dbrx smaug-bpe chatglm-bpe glm4', { steps: llama3.steps }],
    ['qwen2 deepseek-r1-qwen megrez', qwen2],
    ['stablelm2 hunyuan grok-2', { steps: qwen2.steps }],
    ['tekken', { steps: [caseSplit('\\p{N}', ''), BYTES], ignoreMerges: true, bos: true }],
    ['gpt-4o llama4', { steps: [caseSplit('\\p{N}{1,3}', `${CONTRACTIONS}?`), BYTES] }],
    [
      'falcon',
      {
        steps: [
          { type: 'Punctuation', behavior: 'Contiguous' },
          GPT2,
          { type: 'Digits', individual_digits: false },
          split('[0-9][0-9][0-9]'),
        ],
      },
    ],
    ['bloom poro-chat gpt3-finnish', { steps: [split(' ?[^(\\s|.,!?…。，、।۔،)]+'), BYTES] }],
    ['viking', { steps: [split(' ?[^(\\s|.,!?…。，、।۔،)]+'), DIGITS, BYTES] }],
    [
      'deepseek-coder',
      { steps: [split('[\\r\\n]'), split('\\s?\\p{L}+'), split('\\s?\\p{P}+'), split(CJK), DIGITS, BYTES], bos: true },
    ],
    [
      'deepseek-v3',
      {
        steps: [
          split('\\p{N}{1,3}'),
          split('[一-龥぀-ゟ゠-ヿ]+'),
          split(
            '[!"#$%&\'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+',
          ),
          BYTES,
        ],
        bos: true,
      },
    ],
  ];
  return Object.fromEntries(table.flatMap(([names, pre]) => names.split(' ').map((name) => [name, pre])));
})();

/**
 * The tokenizer inside a GGUF file, made from the tokenizer.json that is equivalent to its metadata. Supported are the kinds
 * `gpt2` (byte-level BPE, pre-tokenized as `tokenizer.ggml.pre` names it) and `llama` (SentencePiece BPE).
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

/**
 * SentencePiece merges the adjacent pair whose union has the best score. The same in BPE: the merges are all splits of a token
 * into two others, for all tokens in the order of their scores. Source: `generate_merges` of transformers
 * `convert_slow_tokenizer.py`.
 */
function sentencePieceJson(
  tokens: readonly string[],
  types: readonly number[],
  scores: readonly number[],
  unknownId: number,
  addSpacePrefix: boolean,
): JsonObject {
  const ids = new Map<string, number>();
  for (const [id, token] of tokens.entries())
    if ((types[id] ?? NORMAL) === NORMAL || types[id] === USER_DEFINED) ids.set(token, id);
  const merges: { left: string; right: string; score: number; ids: [number, number] }[] = [];
  for (const [token, id] of ids) {
    const ofToken: typeof merges = [];
    for (let i = 1; i < token.length; i++) {
      const [left, right] = [token.slice(0, i), token.slice(i)];
      const [l, r] = [ids.get(left), ids.get(right)];
      if (l !== undefined && r !== undefined) ofToken.push({ left, right, score: scores[id] ?? 0, ids: [l, r] });
    }
    merges.push(...ofToken.sort((a, b) => a.ids[0] - b.ids[0] || a.ids[1] - b.ids[1]));
  }
  merges.sort((a, b) => b.score - a.score || b.left.length - a.left.length || b.right.length - a.right.length);
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
      byte_fallback: types.includes(BYTE) || ids.has('<0x00>'),
      vocab: vocabulary(tokens),
      merges: merges.map(({ left, right }) => [left, right]),
    },
  };
}
