/** What GGUF says of tokenizers, for reading and writing: token types, names of pre-tokenizers, SentencePiece's merges. */
import type { JsonObject } from './component.ts';

/** Token types. Source: `enum llama_token_type` of llama.cpp. */
export const [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE] = [1, 2, 3, 4, 5, 6] as const;

const split = (regex: string, behavior = 'Isolated'): JsonObject => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior,
  invert: false,
});
const DIGITS: JsonObject = { type: 'Digits', individual_digits: true };
const BYTES: JsonObject = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
export const GPT2: JsonObject = { ...BYTES, use_regex: true };
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
/** Characters from ranges of code points, for a class of a regular expression. */
const characters = (ranges: string): string =>
  ranges
    .split(' ')
    .map((range) =>
      range
        .split('-')
        .map((code) => String.fromCodePoint(Number.parseInt(code, 16)))
        .join('-'),
    )
    .join('');
/** Letters that have cases, and punctuation, as DeepSeek LLM's tokenizer.json lists them. */
const CASED = characters(
  '41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5 ' +
    '3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 ' +
    '1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 ' +
    '1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 ' +
    '213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 ' +
    'a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 ' +
    '118a0-118df 1e900-1e943',
);
const PUNCTUATION = characters('21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3000-3002');
const CJK = '[一-龥ࠀ-一가-퟿]+';

export interface PreTokenization {
  /** The `pre_tokenizer` steps that tokenizer.json of these models has. */
  readonly steps: readonly JsonObject[];
  /** Whether a piece that is a token is taken as it is, without merges. */
  readonly ignoreMerges?: boolean;
  /** Whether BOS is put before a text, where the metadata do not say. */
  readonly bos?: boolean;
  readonly normalizer?: JsonObject;
}

/** `tokenizer.ggml.pre` of byte-level BPE; of those with the same steps, the first is written. Source: `llm_tokenizer_bpe` of llama.cpp `llama-vocab.cpp`. */
export const preTokenizations: Readonly<Record<string, PreTokenization>> = (() => {
  const gpt2 = { steps: [GPT2] };
  const digits = { steps: [DIGITS, GPT2] };
  const llama3 = { steps: [wordSplit('\\p{N}{1,3}'), BYTES], ignoreMerges: true, bos: true };
  const qwen2 = { steps: [wordSplit('\\p{N}'), BYTES], normalizer: { type: 'NFC' } };
  const table: [string, PreTokenization][] = [
    // `default`, or no name, is in files older than the field, when only GPT-2's pre-tokenizer existed.
    ['gpt-2 default phi-2 mpt olmo jais trillion granite-docling roberta-bpe', gpt2],
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
      'deepseek-llm',
      {
        steps: [
          split('[\\r\\n]'),
          split(`\\s?[${CASED}]+`),
          split(`\\s?[${PUNCTUATION}]+`),
          split('\\s+$'),
          split(CJK),
          DIGITS,
          BYTES,
        ],
        bos: true,
      },
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
 * SentencePiece merges the adjacent pair whose union has the best score. The same in BPE: the merges are all splits of a token
 * into two others, for all tokens in the order of their scores. Source: `generate_merges` of transformers
 * `convert_slow_tokenizer.py`.
 */
export function sentencePieceMerges(
  tokens: readonly string[],
  types: readonly number[],
  scores: readonly number[],
): (readonly [left: string, right: string])[] {
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
  return merges.map(({ left, right }) => [left, right] as const);
}
