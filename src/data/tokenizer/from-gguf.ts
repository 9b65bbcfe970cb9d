import { GraftError, nearest } from '../../base/index.ts';
import { type GgufMetadata, parseJson } from '../../io/index.ts';
import type { Part } from './component.ts';
import { Tokenizer, type TokenizerSettings } from './tokenizer.ts';

/** Token types. Source: `enum llama_token_type` of llama.cpp. */
const [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE] = [1, 2, 3, 4, 6];

const split = (regex: string, behavior = 'Isolated'): Part => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior,
  invert: false,
});
const DIGITS: Part = { type: 'Digits', individual_digits: true };
const BYTES: Part = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const GPT2: Part = { ...BYTES, use_regex: true };
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const cased = (number: string, contractions: string): Part =>
  split(
    `[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+${contractions}|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*${contractions}|${number}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  );
const words = (number: string): Part =>
  split(
    `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${number}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
  );
const CJK = '[一-龥ࠀ-一가-퟿]+';

interface Pre {
  /** How the text is cut, as tokenizer.json of these models has it. */
  readonly cut: readonly Part[];
  /** A piece that is a token needs no merges. */
  readonly whole?: boolean;
  readonly bos?: boolean;
  readonly normalizer?: Part;
}

/** `tokenizer.ggml.pre` of byte-level BPE. Source: `llm_tokenizer_bpe` of llama.cpp `llama-vocab.cpp`. */
const pres: Readonly<Record<string, Pre>> = (() => {
  const gpt2 = { cut: [GPT2] };
  const digits = { cut: [DIGITS, GPT2] };
  const llama3 = { cut: [words('\\p{N}{1,3}'), BYTES], whole: true, bos: true };
  const qwen2 = { cut: [words('\\p{N}'), BYTES], normalizer: { type: 'NFC' } };
  const table: [string, Pre][] = [
    // `default` and no name at all are files from before the name existed: GPT-2's cutting was all there was.
    ['default gpt-2 phi-2 mpt olmo jais trillion granite-docling roberta-bpe', gpt2],
    ['smollm starcoder refact command-r codeshell exaone minerva-7b mellum', digits],
    ['llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2', llama3],
    ['dbrx smaug-bpe chatglm-bpe glm4', { cut: llama3.cut }],
    ['qwen2 deepseek-r1-qwen megrez', qwen2],
    ['stablelm2 hunyuan grok-2', { cut: qwen2.cut }],
    ['tekken', { cut: [cased('\\p{N}', ''), BYTES], whole: true, bos: true }],
    ['gpt-4o llama4', { cut: [cased('\\p{N}{1,3}', `${CONTRACTIONS}?`), BYTES] }],
    [
      'falcon',
      {
        cut: [
          { type: 'Punctuation', behavior: 'Contiguous' },
          GPT2,
          { type: 'Digits', individual_digits: false },
          split('[0-9][0-9][0-9]'),
        ],
      },
    ],
    ['bloom poro-chat gpt3-finnish', { cut: [split(' ?[^(\\s|.,!?…。，、।۔،)]+'), BYTES] }],
    ['viking', { cut: [split(' ?[^(\\s|.,!?…。，、।۔،)]+'), DIGITS, BYTES] }],
    [
      'deepseek-coder',
      { cut: [split('[\\r\\n]'), split('\\s?\\p{L}+'), split('\\s?\\p{P}+'), split(CJK), DIGITS, BYTES], bos: true },
    ],
    [
      'deepseek-v3',
      {
        cut: [
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
 * The tokenizer inside a GGUF file: the equal tokenizer.json is made of its metadata, so that both go one way.
 * `gpt2` (byte-level BPE, cut as `tokenizer.ggml.pre` says) and `llama` (SentencePiece BPE) are known.
 * @param metadata the file's, as `openGguf` gives it
 * @param place the file, for errors
 * @throws GraftError `input` when something is missing or of a kind that is not known
 */
export function tokenizerFromGguf(metadata: GgufMetadata, place = 'the GGUF file'): Tokenizer {
  const get = (key: string): unknown => metadata.get(`tokenizer.${key}`);
  const fail = (problem: string, hint = 'Give the tokenizer.json of the model beside it') =>
    new GraftError('input', problem, { place, hint });
  const kind = get('ggml.model');
  const tokens = get('ggml.tokens');
  if (kind === undefined || !isList(tokens)) throw fail('The file has no tokenizer');
  const list = Array.from(tokens as ArrayLike<unknown>, String);
  const embedded = get('huggingface.json');
  const types = isList(get('ggml.token_type')) ? Array.from(get('ggml.token_type') as ArrayLike<number>, Number) : [];
  const id = (name: string): number | undefined => {
    const value = get(`ggml.${name}_token_id`);
    return typeof value === 'number' && list[value] !== undefined ? value : undefined;
  };
  const token = (name: string) => (id(name) === undefined ? undefined : list[id(name)!]);

  let json: Part;
  let addsBos = false;
  if (typeof embedded === 'string') json = parseJson(embedded, place) as Part;
  else if (kind === 'gpt2') {
    const name = String(get('ggml.pre') ?? 'default');
    const pre = Object.hasOwn(pres, name) ? pres[name]! : undefined;
    if (!pre) {
      const near = nearest(name, Object.keys(pres));
      throw fail(`The pre-tokenizer ${JSON.stringify(name)} is not known${near ? ` (nearest: ${near})` : ''}`);
    }
    if (!isList(get('ggml.merges'))) throw fail('The file has no tokenizer.ggml.merges');
    addsBos = pre.bos ?? false;
    json = byteLevelJson(list, types, Array.from(get('ggml.merges') as ArrayLike<unknown>, String), pre);
  } else if (kind === 'llama') {
    if (!isList(get('ggml.scores'))) throw fail('The file has no tokenizer.ggml.scores');
    addsBos = true;
    const scores = Array.from(get('ggml.scores') as ArrayLike<number>, Number);
    json = sentencePieceJson(list, types, scores, id('unknown') ?? 0, get('ggml.add_space_prefix') !== false);
  } else throw fail(`Tokenizers of kind '${String(kind)}' are not known`);

  const flag = (key: string) => get(`ggml.${key}`) as boolean | undefined;
  const settings: TokenizerSettings = {
    bos: token('bos'),
    eos: token('eos'),
    pad: token('padding'),
    unk: token('unknown'),
    ...(typeof embedded !== 'string' && {
      addBos: flag('add_bos_token') ?? addsBos,
      addEos: flag('add_eos_token') ?? false,
    }),
    eosIds: endings(list, types, [id('eos'), id('eot'), id('eom')]),
    chatTemplates: templates(metadata),
  };
  return new Tokenizer(json, settings, place);
}

const isList = (value: unknown): boolean => Array.isArray(value) || ArrayBuffer.isView(value);

/** Control tokens that end a turn whatever the metadata say. Source: `special_eog_ids` of llama.cpp. */
const TURN_ENDS = ['<|eot_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>', '<|eom_id|>', '<|endofturn|>'];

function endings(tokens: readonly string[], types: readonly number[], told: (number | undefined)[]): number[] {
  const known = TURN_ENDS.map((token) => tokens.indexOf(token)).filter((i) => i >= 0 && types[i] === CONTROL);
  return [...new Set([...told, ...known])].filter((i) => i !== undefined);
}

function templates(metadata: GgufMetadata): Record<string, string> {
  const out: Record<string, string> = {};
  for (const [key, value] of metadata) {
    const name = /^tokenizer\.chat_template(?:\.(.+))?$/.exec(key);
    if (name && typeof value === 'string') out[name[1] ?? 'default'] = value;
  }
  return out;
}

const addedTokens = (tokens: readonly string[], types: readonly number[]): Part[] =>
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

function byteLevelJson(tokens: readonly string[], types: readonly number[], merges: readonly string[], pre: Pre): Part {
  return {
    added_tokens: addedTokens(tokens, types),
    normalizer: pre.normalizer ?? null,
    pre_tokenizer: { type: 'Sequence', pretokenizers: pre.cut },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', ignore_merges: pre.whole ?? false, vocab: vocabulary(tokens), merges },
  };
}

/**
 * SentencePiece merges the two neighbours whose union has the best score; as BPE that is: for each token all the ways to
 * make it of two others, in the order of its score. Source: `generate_merges` of transformers
 * `convert_slow_tokenizer.py`.
 */
function sentencePieceJson(
  tokens: readonly string[],
  types: readonly number[],
  scores: readonly number[],
  unknown: number,
  spaceBefore: boolean,
): Part {
  const ids = new Map<string, number>();
  for (const [id, token] of tokens.entries())
    if ((types[id] ?? NORMAL) === NORMAL || types[id] === USER_DEFINED) ids.set(token, id);
  const merges: { left: string; right: string; score: number; ids: [number, number] }[] = [];
  for (const [token, id] of ids) {
    const local: typeof merges = [];
    for (let i = 1; i < token.length; i++) {
      const [left, right] = [token.slice(0, i), token.slice(i)];
      const [l, r] = [ids.get(left), ids.get(right)];
      if (l !== undefined && r !== undefined) local.push({ left, right, score: scores[id] ?? 0, ids: [l, r] });
    }
    merges.push(...local.sort((a, b) => a.ids[0] - b.ids[0] || a.ids[1] - b.ids[1]));
  }
  merges.sort((a, b) => b.score - a.score || b.left.length - a.left.length || b.right.length - a.right.length);
  const replace = { type: 'Replace', pattern: { String: ' ' }, content: '▁' };
  return {
    added_tokens: addedTokens(tokens, types),
    normalizer: {
      type: 'Sequence',
      normalizers: spaceBefore ? [{ type: 'Prepend', prepend: '▁' }, replace] : [replace],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(spaceBefore ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      unk_token: tokens[unknown],
      fuse_unk: true,
      byte_fallback: types.includes(BYTE) || ids.has('<0x00>'),
      vocab: vocabulary(tokens),
      merges: merges.map(({ left, right }) => [left, right]),
    },
  };
}
