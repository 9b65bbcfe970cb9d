/** Tokenizers of older checkpoints, whose vocabulary is in files of its own, as tokenizer.json would describe them. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import type { JsonObject } from './component.ts';
import { optionalJson, type TokenizerSettings, tokenizerConfig, tokenText } from './settings.ts';

type Kind = 'bert' | 'gpt2' | 'roberta';

/** Special tokens by role, where no file names others (transformers' tokenizer classes). */
const defaultTokens: Readonly<Record<Kind, Readonly<Record<string, string>>>> = {
  bert: { unk: '[UNK]', sep: '[SEP]', pad: '[PAD]', cls: '[CLS]', mask: '[MASK]' },
  gpt2: { bos: '<|endoftext|>', eos: '<|endoftext|>', unk: '<|endoftext|>' },
  roberta: { bos: '<s>', eos: '</s>', unk: '<unk>', sep: '</s>', pad: '<pad>', cls: '<s>', mask: '<mask>' },
};

const kinds: Readonly<Record<string, Kind>> = { bert: 'bert', distilbert: 'bert', gpt2: 'gpt2', roberta: 'roberta' };

/** The kind of tokenizer that the directory names; undefined for any other kind, and where it names none. */
function kindOf(dir: string, config: JsonObject): Kind | undefined {
  const className = String(config.tokenizer_class ?? '').replace(/Tokenizer(Fast)?$/, '');
  const type = className || String(optionalJson(join(dir, 'config.json')).model_type ?? '');
  return kinds[type.toLowerCase()];
}

/**
 * Converts vocab.txt (BERT's WordPiece), or vocab.json and merges.txt (byte-level BPE of GPT-2 and RoBERTa), to tokenizer.json.
 * @returns undefined where the directory has neither, or is of another kind of tokenizer
 */
export function tokenizerFromVocab(
  dir: string,
): { json: JsonObject; settings: Partial<TokenizerSettings> } | undefined {
  const config = tokenizerConfig(dir);
  const kind = kindOf(dir, config);
  if (!kind) return undefined;
  const token = (role: string): string => tokenText(config[`${role}_token`]) ?? defaultTokens[kind][role]!;
  const vocabulary = kind === 'bert' ? wordPiece(dir) : byteLevelBpe(dir, kind);
  if (!vocabulary) return undefined;
  const { vocab } = vocabulary;
  const special = [...new Set(Object.keys(defaultTokens[kind]).map(token))].filter((content) => content in vocab);
  const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const added = special.map((content) => ({ ...flags, id: vocab[content]!, content }));
  const json = { added_tokens: added.sort((a, b) => a.id - b.id), ...vocabulary.components(config, token) };
  return { json, settings: { bos: token('bos'), eos: token('eos'), pad: token('pad'), unk: token('unk') } };
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
      post_processor: {
        type: 'BertProcessing',
        sep: [token('sep'), vocab[token('sep')]],
        cls: [token('cls'), vocab[token('cls')]],
      },
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

function byteLevelBpe(dir: string, kind: Kind): Vocabulary | undefined {
  const [vocabFile, mergesFile] = [join(dir, 'vocab.json'), join(dir, 'merges.txt')];
  if (!existsSync(vocabFile) || !existsSync(mergesFile)) return undefined;
  const vocab = readJsonObject(vocabFile) as Record<string, number>;
  const lines = readFileSync(mergesFile, 'utf8').split('\n');
  const merges = lines.filter((line) => line !== '' && !line.startsWith('#version')).map((line) => line.trimEnd());
  return {
    vocab,
    components(config, token) {
      const addPrefixSpace = config.add_prefix_space ?? false;
      const clsAndSep = { sep: [token('sep'), vocab[token('sep')]], cls: [token('cls'), vocab[token('cls')]] };
      return {
        pre_tokenizer: { type: 'ByteLevel', add_prefix_space: addPrefixSpace, trim_offsets: true, use_regex: true },
        post_processor:
          kind === 'roberta'
            ? { type: 'RobertaProcessing', ...clsAndSep, trim_offsets: true, add_prefix_space: addPrefixSpace }
            : { type: 'ByteLevel', trim_offsets: true },
        decoder: { type: 'ByteLevel' },
        model: { type: 'BPE', continuing_subword_prefix: '', end_of_word_suffix: '', vocab, merges },
      };
    },
  };
}
