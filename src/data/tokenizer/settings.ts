import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import type { JsonObject } from './component.ts';

/** What the files beside tokenizer.json say: the roles of special tokens, and the chat templates. */
export interface TokenizerSettings {
  readonly bos?: string | undefined;
  readonly eos?: string | undefined;
  readonly pad?: string | undefined;
  readonly unk?: string | undefined;
  /** Whether `encode` puts BOS before (EOS after) the text. Where one is set, the post-processor is not used. */
  readonly addBos?: boolean | undefined;
  readonly addEos?: boolean | undefined;
  /** Every id that ends a generation. */
  readonly eosIds?: readonly number[] | undefined;
  /** Chat templates by name; `default` is used unless another is named. */
  readonly chatTemplates?: Readonly<Record<string, string>> | undefined;
  /** Tokens that tokenizer.json does not have. */
  readonly addedTokens?: readonly JsonObject[] | undefined;
}

/** The object in a JSON file; empty for a file that does not exist. */
export const optionalJson = (path: string): JsonObject => (existsSync(path) ? readJsonObject(path) : {});

/** The fields of special_tokens_map.json and tokenizer_config.json; the second file takes precedence. */
export const tokenizerConfig = (dir: string): JsonObject => ({
  ...optionalJson(join(dir, 'special_tokens_map.json')),
  ...optionalJson(join(dir, 'tokenizer_config.json')),
});

/** The text of a token, which is written as a string or as an object with its `content`. */
export const tokenText = (token: unknown): string | undefined =>
  typeof token === 'string' ? token : ((token as JsonObject | null | undefined)?.content as string | undefined);

/** Reads the settings of a Hugging Face directory. */
export function readSettings(dir: string): TokenizerSettings {
  const config = tokenizerConfig(dir);
  const generation = existsSync(join(dir, 'generation_config.json'))
    ? readJsonObject(join(dir, 'generation_config.json'))
    : optionalJson(join(dir, 'config.json'));
  const explicit = 'add_bos_token' in config || 'add_eos_token' in config;
  const addedTokens = (config.added_tokens_decoder ?? {}) as Record<string, JsonObject>;
  return {
    bos: tokenText(config.bos_token),
    eos: tokenText(config.eos_token),
    pad: tokenText(config.pad_token),
    unk: tokenText(config.unk_token),
    addBos: explicit ? config.add_bos_token === true : undefined,
    addEos: explicit ? config.add_eos_token === true : undefined,
    eosIds: [generation.eos_token_id].flat().filter((id): id is number => Number.isSafeInteger(id)),
    chatTemplates: readTemplates(dir, config),
    addedTokens: Object.entries(addedTokens).map(([id, token]) => ({ ...token, id: Number(id) })),
  };
}

/** The chat templates by name; template files take precedence over tokenizer_config.json. */
function readTemplates(dir: string, config: JsonObject): Record<string, string> {
  const templates: Record<string, string> = {};
  const add = (value: unknown) => {
    if (typeof value === 'string') templates.default = value;
    else if (Array.isArray(value))
      for (const { name, template } of value as { name: string; template: string }[]) templates[name] = template;
  };
  add(config.chat_template);
  add(optionalJson(join(dir, 'chat_template.json')).chat_template);
  const file = join(dir, 'chat_template.jinja');
  if (existsSync(file)) templates.default = readFileSync(file, 'utf8');
  const additional = join(dir, 'additional_chat_templates');
  if (existsSync(additional))
    for (const name of readdirSync(additional).filter((n) => n.endsWith('.jinja')))
      templates[basename(name, '.jinja')] = readFileSync(join(additional, name), 'utf8');
  return templates;
}
