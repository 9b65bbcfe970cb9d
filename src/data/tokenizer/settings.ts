import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { readJsonObject } from '../../io/index.ts';
import { type JsonObject, tokenizerError } from './component.ts';
import { type Role, type RoleTokens, roles, tokenizerClassOf, tokensOf } from './tokenizer-class.ts';

/** What the files beside tokenizer.json say: special tokens, chat templates, limits. */
export interface TokenizerSettings {
  readonly bos?: string | undefined;
  readonly eos?: string | undefined;
  readonly pad?: string | undefined;
  readonly unk?: string | undefined;
  /** The id of the end token of the model, for a tokenizer without a known one. */
  readonly endId?: number | undefined;
  /** Every id that ends a generation. */
  readonly eosIds?: readonly number[] | undefined;
  /** Chat templates by name; `default` is used unless another is named. */
  readonly chatTemplates?: Readonly<Record<string, string>> | undefined;
  /** Tokens that are found in texts besides those of tokenizer.json, or with other flags than there. */
  readonly addedTokens?: readonly TokenSetting[] | undefined;
  /** The most tokens of a text (`model_max_length`). */
  readonly maxLength?: number | undefined;
  /** The end at which a text that is too long loses tokens. Default: right. */
  readonly truncationSide?: 'left' | 'right' | undefined;
  /** Whether decoded text loses the spaces before punctuation (`clean_up_tokenization_spaces`); not with BPE. */
  readonly cleanUp?: boolean | undefined;
}

/** A token that a file beside tokenizer.json names. */
export interface TokenSetting {
  readonly content: string;
  /** `lstrip`, `special` and so on, as in tokenizer.json; absent for a token that is only named, and is then special. */
  readonly flags?: JsonObject | undefined;
  /** Whether only a token of the vocabulary is meant: a default of the Python class. */
  readonly known?: boolean;
  /** Whether the flags are only for a new token: one that has a role keeps those of the list of tokens. */
  readonly keepFlags?: boolean;
}

/** The object in a JSON file; empty for a file that does not exist. */
export const optionalJson = (path: string): JsonObject => (existsSync(path) ? readJsonObject(path) : {});

/** The text of a token, which is written as a string or as an object with its `content`; undefined for null. */
const tokenText = (token: unknown): string | undefined =>
  typeof token === 'string' ? token : ((token as JsonObject | null | undefined)?.content as string | undefined);

const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Reads the settings of a Hugging Face directory. Source: `PreTrainedTokenizerBase._from_pretrained` and
 * `TokenizersBackend.__init__` of transformers 5.23.
 * @param json tokenizer.json, where there is one
 * @returns the settings, and the special token of each role, from the files or else of the Python class
 * @throws GraftError `input` for a setting that is not supported
 */
export function readSettings(
  dir: string,
  json?: JsonObject,
): { settings: TokenizerSettings; config: JsonObject; tokenizerClass: string | undefined; tokens: RoleTokens } {
  const place = join(dir, 'tokenizer_config.json');
  const config = optionalJson(place);
  if (config.split_special_tokens === true) throw tokenizerError(place, 'split_special_tokens is not supported');
  const modelConfig = optionalJson(join(dir, 'config.json'));
  const generation = optionalJson(join(dir, 'generation_config.json'));
  const tokenizerClass = tokenizerClassOf(config, modelConfig, json);

  // special_tokens_map.json and added_tokens.json are of older versions: a list of all tokens takes their place.
  const lists = isObject(config.added_tokens_decoder);
  const map = lists ? {} : optionalJson(join(dir, 'special_tokens_map.json'));
  const older = lists ? {} : optionalJson(join(dir, 'added_tokens.json'));
  const named: JsonObject = { ...config, ...map };
  const ofClass = tokensOf(tokenizerClass);
  const tokens = Object.fromEntries(
    roles.map((role) => [role, `${role}_token` in named ? tokenText(named[`${role}_token`]) : ofClass[role]]),
  ) as RoleTokens;
  const ids = (value: unknown) => [value].flat().filter((id): id is number => Number.isSafeInteger(id));
  const { model_max_length: maxLength, truncation_side: side } = config;
  return {
    tokenizerClass,
    tokens,
    config,
    settings: {
      bos: tokens.bos,
      eos: tokens.eos,
      pad: tokens.pad,
      unk: tokens.unk,
      endId: ids(modelConfig.eos_token_id ?? generation.eos_token_id)[0],
      eosIds: ids(generation.eos_token_id ?? modelConfig.eos_token_id),
      chatTemplates: readTemplates(dir, config),
      addedTokens: [
        ...listedTokens(config.added_tokens_decoder ?? {}),
        ...olderTokens(older as Record<string, number>, [
          ...Object.values(tokens),
          ...extraTokens(config, map).map(tokenText),
        ]),
        ...roles.flatMap((role) => roleToken(role, named, tokens)),
        ...extraTokens(config, map).flatMap((token) => namedToken(token)),
      ],
      maxLength: typeof maxLength === 'number' && maxLength < 2 ** 31 ? maxLength : undefined,
      truncationSide: side === 'left' ? 'left' : 'right',
      cleanUp: config.clean_up_tokenization_spaces === true,
    },
  };
}

/** A token that is named as a string, or as an object with its flags. */
function namedToken(token: unknown, known = false): TokenSetting[] {
  const content = tokenText(token);
  if (content === undefined) return [];
  return [{ content, known, keepFlags: true, ...(isObject(token) && { flags: { ...token, special: true } }) }];
}

const roleToken = (role: Role, named: JsonObject, tokens: RoleTokens): TokenSetting[] =>
  `${role}_token` in named ? namedToken(named[`${role}_token`]) : namedToken(tokens[role], true);

/** The tokens of `added_tokens_decoder` in the order of their ids: objects by id. */
const listedTokens = (decoder: object): TokenSetting[] =>
  Object.entries(decoder as Record<string, JsonObject>)
    .sort(([a], [b]) => Number(a) - Number(b))
    .map(([, token]) => ({ content: token.content as string, flags: token }));

/** The tokens of added_tokens.json, ids by content; those that have a role are special. */
const olderTokens = (idByContent: Readonly<Record<string, number>>, special: readonly unknown[]): TokenSetting[] =>
  Object.entries(idByContent)
    .sort(([, a], [, b]) => a - b)
    .map(([content]) => ({
      content,
      flags: { special: special.includes(content), normalized: !special.includes(content) },
    }));

/** Special tokens without one of the known roles: lists, and tokens by names of their own (`image_token`). */
function extraTokens(config: JsonObject, map: JsonObject): unknown[] {
  const isEmpty = (value: unknown) => !value || Object.keys(value).length === 0;
  const inConfig = isEmpty(config.extra_special_tokens)
    ? config.additional_special_tokens
    : config.extra_special_tokens;
  const listed = isEmpty(inConfig) ? map.additional_special_tokens : inConfig;
  const known = roles.map((role) => `${role}_token`);
  const ofOwnName = Object.entries({ ...config, ...map }).filter(
    ([key, value]) => key.endsWith('_token') && !known.includes(key) && typeof value === 'string',
  );
  return [
    ...ofOwnName.map(([, token]) => token),
    ...[listed, map.extra_special_tokens].flatMap((value) => (isObject(value) ? Object.values(value) : (value ?? []))),
  ];
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
