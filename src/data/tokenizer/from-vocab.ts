/** Tokenizers of old checkpoints, which have their vocabulary in files of its own: what tokenizer.json would say. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import type { Part } from './component.ts';
import type { TokenizerSettings } from './tokenizer.ts';

type Kind = 'bert' | 'gpt2' | 'roberta';

/** Parts that tokens play where no file says otherwise (transformers' tokenizer classes). */
const roles: Readonly<Record<Kind, Readonly<Record<string, string>>>> = {
  bert: { unk: '[UNK]', sep: '[SEP]', pad: '[PAD]', cls: '[CLS]', mask: '[MASK]' },
  gpt2: { bos: '<|endoftext|>', eos: '<|endoftext|>', unk: '<|endoftext|>' },
  roberta: { bos: '<s>', eos: '</s>', unk: '<unk>', sep: '</s>', pad: '<pad>', cls: '<s>', mask: '<mask>' },
};

const kinds: Readonly<Record<string, Kind>> = { bert: 'bert', distilbert: 'bert', gpt2: 'gpt2', roberta: 'roberta' };

const optional = (path: string): Part => (existsSync(path) ? readJsonObject(path) : {});

/** The kind of tokenizer, as the directory names it; undefined where it names another or none. */
function kindOf(dir: string, config: Part): Kind | undefined {
  const named = String(config.tokenizer_class ?? '').replace(/Tokenizer(Fast)?$/, '');
  const type = named || String(optional(join(dir, 'config.json')).model_type ?? '');
  return kinds[type.toLowerCase()];
}

/**
 * vocab.txt (BERT's WordPiece) or vocab.json and merges.txt (GPT-2's and RoBERTa's byte-level BPE) as tokenizer.json.
 * @returns undefined where the directory has neither, or belongs to a tokenizer of another kind
 */
export function tokenizerFromVocab(dir: string): { json: Part; settings: Partial<TokenizerSettings> } | undefined {
  const config = { ...optional(join(dir, 'special_tokens_map.json')), ...optional(join(dir, 'tokenizer_config.json')) };
  const kind = kindOf(dir, config);
  if (!kind) return undefined;
  const given = (role: string): unknown => config[`${role}_token`];
  const token = (role: string): string => {
    const value = given(role);
    const text = typeof value === 'string' ? value : (value as Part | null | undefined)?.content;
    return (text as string | undefined) ?? roles[kind][role]!;
  };
  const words = kind === 'bert' ? wordPieces(dir) : byteLevel(dir, kind);
  if (!words) return undefined;
  const { vocab } = words;
  const special = [...new Set(Object.keys(roles[kind]).map(token))].filter((content) => content in vocab);
  const plain = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const added = special.map((content) => ({ ...plain, id: vocab[content]!, content }));
  const json = { added_tokens: added.sort((a, b) => a.id - b.id), ...words.parts(config, token) };
  return { json, settings: { bos: token('bos'), eos: token('eos'), pad: token('pad'), unk: token('unk') } };
}

interface Words {
  readonly vocab: Readonly<Record<string, number>>;
  parts(config: Part, token: (role: string) => string): Part;
}

function wordPieces(dir: string): Words | undefined {
  const file = join(dir, 'vocab.txt');
  if (!existsSync(file)) return undefined;
  const lines = readFileSync(file, 'utf8').replace(/\n$/, '').split('\n');
  const vocab = Object.fromEntries(lines.map((line, id) => [line.replace(/\r$/, ''), id]));
  return {
    vocab,
    parts: (config, token) => ({
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

function byteLevel(dir: string, kind: Kind): Words | undefined {
  const [table, merges] = [join(dir, 'vocab.json'), join(dir, 'merges.txt')];
  if (!existsSync(table) || !existsSync(merges)) return undefined;
  const vocab = readJsonObject(table) as Record<string, number>;
  const lines = readFileSync(merges, 'utf8').split('\n');
  const pairs = lines.filter((line) => line !== '' && !line.startsWith('#version')).map((line) => line.trimEnd());
  return {
    vocab,
    parts(config, token) {
      const space = config.add_prefix_space ?? false;
      const cls = { sep: [token('sep'), vocab[token('sep')]], cls: [token('cls'), vocab[token('cls')]] };
      return {
        pre_tokenizer: { type: 'ByteLevel', add_prefix_space: space, trim_offsets: true, use_regex: true },
        post_processor:
          kind === 'roberta'
            ? { type: 'RobertaProcessing', ...cls, trim_offsets: true, add_prefix_space: space }
            : { type: 'ByteLevel', trim_offsets: true },
        decoder: { type: 'ByteLevel' },
        model: { type: 'BPE', continuing_subword_prefix: '', end_of_word_suffix: '', vocab, merges: pairs },
      };
    },
  };
}
