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
