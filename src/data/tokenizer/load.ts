import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import type { Part } from './component.ts';
import { tokenizerFromVocab } from './from-vocab.ts';
import { Tokenizer, type TokenizerSettings } from './tokenizer.ts';

/**
 * The tokenizer of a Hugging Face directory, or of a tokenizer.json by itself.
 *
 * Of a directory it reads tokenizer.json (else vocab.txt, or vocab.json and merges.txt, of BERT, GPT-2 and RoBERTa), and where they exist tokenizer_config.json and special_tokens_map.json (which
 * tokens play which part; `add_bos_token` and `add_eos_token` there win over the post-processor, as in transformers 5),
 * generation_config.json or config.json (what ends a generation), chat_template.jinja, chat_template.json and
 * additional_chat_templates/.
 * @throws GraftError `input` when a file is missing or damaged
 */
export function loadTokenizer(dirOrTokenizerJson: string): Tokenizer {
  if (!existsSync(dirOrTokenizerJson))
    throw new GraftError('input', 'There is no such file or directory', { place: dirOrTokenizerJson });
  if (!statSync(dirOrTokenizerJson).isDirectory())
    return new Tokenizer(readJsonObject(dirOrTokenizerJson), {}, dirOrTokenizerJson);
  const dir = dirOrTokenizerJson;
  const path = join(dir, 'tokenizer.json');
  if (!existsSync(path)) {
    const old = tokenizerFromVocab(dir);
    if (old) {
      const said = Object.entries(readSettings(dir)).filter(([, value]) => value !== undefined);
      return new Tokenizer(old.json, { ...old.settings, ...Object.fromEntries(said) }, dir);
    }
    const other = ['tokenizer.model', 'vocab.json', 'vocab.txt', 'tekken.json'].find((name) =>
      existsSync(join(dir, name)),
    );
    throw new GraftError('input', `The directory has no tokenizer.json${other ? `, only ${other}` : ''}`, {
      place: dir,
      hint: other
        ? 'Write it with AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers'
        : 'Copy it there from the model that this one was made from',
    });
  }
  return new Tokenizer(readJsonObject(path), readSettings(dir), path);
}

const optional = (path: string): Part => (existsSync(path) ? readJsonObject(path) : {});

/** A token is written as text or as an object with its content. */
const content = (token: unknown): string | undefined =>
  typeof token === 'string' ? token : ((token as Part | null | undefined)?.content as string | undefined);

function readSettings(dir: string): TokenizerSettings {
  const config = { ...optional(join(dir, 'special_tokens_map.json')), ...optional(join(dir, 'tokenizer_config.json')) };
  const generation = existsSync(join(dir, 'generation_config.json'))
    ? readJsonObject(join(dir, 'generation_config.json'))
    : optional(join(dir, 'config.json'));
  const explicit = 'add_bos_token' in config || 'add_eos_token' in config;
  const decoder = (config.added_tokens_decoder ?? {}) as Record<string, Part>;
  return {
    bos: content(config.bos_token),
    eos: content(config.eos_token),
    pad: content(config.pad_token),
    unk: content(config.unk_token),
    addBos: explicit ? config.add_bos_token === true : undefined,
    addEos: explicit ? config.add_eos_token === true : undefined,
    eosIds: [generation.eos_token_id].flat().filter((id): id is number => Number.isSafeInteger(id)),
    chatTemplates: readTemplates(dir, config),
    addedTokens: Object.entries(decoder).map(([id, token]) => ({ ...token, id: Number(id) })),
  };
}

/** Files win over what stands in tokenizer_config.json. */
function readTemplates(dir: string, config: Part): Record<string, string> {
  const templates: Record<string, string> = {};
  const take = (value: unknown) => {
    if (typeof value === 'string') templates.default = value;
    else if (Array.isArray(value))
      for (const { name, template } of value as { name: string; template: string }[]) templates[name] = template;
  };
  take(config.chat_template);
  take(optional(join(dir, 'chat_template.json')).chat_template);
  const file = join(dir, 'chat_template.jinja');
  if (existsSync(file)) templates.default = readFileSync(file, 'utf8');
  const more = join(dir, 'additional_chat_templates');
  if (existsSync(more))
    for (const name of readdirSync(more).filter((n) => n.endsWith('.jinja')))
      templates[basename(name, '.jinja')] = readFileSync(join(more, name), 'utf8');
  return templates;
}
