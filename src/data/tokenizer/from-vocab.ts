/** Tokenizers of older checkpoints, whose vocabulary is in files of its own, as tokenizer.json would describe them. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import type { JsonObject } from './component.ts';
import { affixTemplate } from './post-processor.ts';
import { asClassReads, type RoleTokens } from './tokenizer-class.ts';

type Kind = 'bert' | 'gpt2' | 'roberta';

const kinds: Readonly<Record<string, Kind>> = { Bert: 'bert', DistilBert: 'bert', GPT2: 'gpt2', Roberta: 'roberta' };

/**
 * Converts vocab.txt (BERT's WordPiece), or vocab.json and merges.txt (byte-level BPE of GPT-2 and RoBERTa), to tokenizer.json.
 * @param settings tokenizer_config.json, the Python class, and the special tokens by role
 * @returns undefined where the directory has neither, or is of another kind of tokenizer
 */
export function tokenizerFromVocab(
  dir: string,
  settings: { config: JsonObject; tokenizerClass: string | undefined; tokens: RoleTokens },
): JsonObject | undefined {
  const kind = kinds[settings.tokenizerClass ?? ''];
  if (!kind) return undefined;
  const token = (role: string): string => settings.tokens[role as keyof RoleTokens]!;
  const vocabulary = kind === 'bert' ? wordPiece(dir) : byteLevelBpe(dir);
  const json = vocabulary && { added_tokens: [], ...vocabulary.components(settings.config, token) };
  return json && asClassReads(json, settings.tokenizerClass, settings.tokens);
}

interface Vocabulary {
  readonly vocab: Readonly<Record<string, number>>;
  /** The components of tokenizer.json that go with it. */
  components(config: JsonObject, token: (role: string) => string): JsonObject;
}

function wordPiece(dir: string): Vocabulary | undefined {
  const file = join(dir, 'vocab.txt');
  if (!existsSync(file)) return undefined;
  const lines = readFileSync(file, 'utf8').replace(/\n$/, '').split('\n');
  const vocab = Object.fromEntries(lines.map((line, id) => [line.replace(/\r$/, ''), id]));
  return {
    vocab,
    components: (config, token) => ({
      normalizer: {
        type: 'BertNormalizer',
        clean_text: true,
        handle_chinese_chars: config.tokenize_chinese_chars ?? true,
        strip_accents: config.strip_accents ?? null,
        lowercase: config.do_lower_case ?? true,
      },
      pre_tokenizer: { type: 'BertPreTokenizer' },
      decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
      model: {
        type: 'WordPiece',
        unk_token: token('unk'),
        continuing_subword_prefix: '##',
        max_input_chars_per_word: 100,
        vocab,
      },
    }),
  };
}

function byteLevelBpe(dir: string): Vocabulary | undefined {
  const [vocabFile, mergesFile] = [join(dir, 'vocab.json'), join(dir, 'merges.txt')];
  if (!existsSync(vocabFile) || !existsSync(mergesFile)) return undefined;
  const vocab = readJsonObject(vocabFile) as Record<string, number>;
  const lines = readFileSync(mergesFile, 'utf8').split('\n');
  const merges = lines.filter((line) => line !== '' && !line.startsWith('#version')).map((line) => line.trimEnd());
  return {
    vocab,
    components(config, token) {
      const affix = (role: string) =>
        config[`add_${role}_token`] === true ? { token: token(role), id: vocab[token(role)]! } : undefined;
      const addPrefixSpace = config.add_prefix_space ?? false;
      return {
        pre_tokenizer: { type: 'ByteLevel', add_prefix_space: addPrefixSpace, trim_offsets: true, use_regex: true },
        post_processor: affixTemplate(affix('bos'), affix('eos')),
        decoder: { type: 'ByteLevel' },
        model: { type: 'BPE', continuing_subword_prefix: '', end_of_word_suffix: '', vocab, merges },
      };
    },
  };
}
