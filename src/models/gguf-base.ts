import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { type GgufField, openGguf, readJsonObject } from '../io/index.ts';
import type { GgufNames } from './family.ts';
import { families } from './registry.ts';

/** What an adapter's file says of its base in llama.cpp. */
export interface GgufBase {
  readonly architecture: string;
  readonly names: GgufNames;
  /** Whether the output layer is the table of embeddings. */
  readonly isTied: boolean;
}

/**
 * Returns how GGUF names the tensors of a model, from its config alone: a directory needs no weights.
 * @param model a Hugging Face directory or a GGUF file
 * @throws GraftError 'input' for a path that is not there; 'usage' for a model that llama.cpp does not have
 */
export function ggufBaseOf(model: string): GgufBase {
  if (!existsSync(model))
    throw new GraftError('input', 'the base model was not found: there is no such file or directory', { place: model });
  if (statSync(model).isDirectory()) return ggufBaseFor(readJsonObject(join(model, 'config.json')), model);
  using source = openGguf(model);
  return baseFrom(source.fields, !source.entries.has('output.weight'), model);
}

/** As `ggufBaseOf`, of the fields of a `config.json`. */
export function ggufBaseFor(config: Readonly<Record<string, unknown>>, place: string): GgufBase {
  const type = String(config.model_type);
  const family = families.find(({ types }) => types.includes(type));
  if (family?.gguf) return baseFrom(family.gguf.metadata(config).fields, config.tie_word_embeddings === true, place);
  throw noArchitecture(type, place);
}

function baseFrom(fields: ReadonlyMap<string, GgufField>, isTied: boolean, place: string): GgufBase {
  const metadata = new Map([...fields].map(([key, { value }]) => [key, value]));
  const architecture = String(metadata.get('general.architecture'));
  const family = families.find(({ gguf }) => gguf?.architectures.includes(architecture));
  if (!family?.gguf) throw noArchitecture(architecture, place);
  return { architecture, names: family.gguf.names(metadata), isTied };
}

/** As `ggufBaseOf`, of an architecture alone: without the order of rows, which depends on the number of heads. */
export const ggufNamesOf = (architecture: string, place: string): GgufNames =>
  baseFrom(new Map([['general.architecture', { type: 'string', value: architecture }]]), false, place).names;

const noArchitecture = (type: string, place: string) =>
  new GraftError('usage', `GGUF has no architecture for models of the type ${type}`, {
    place,
    hint: `It has ${families.flatMap((family) => (family.gguf ? family.types : [])).join(', ')}`,
  });
