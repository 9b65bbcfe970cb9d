/** What a GGUF file says of a model's origin: `general.*`. Source: ggml docs/gguf.md; model cards: the Hub's documentation. */
import { existsSync, readFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { parse } from 'yaml';
import type { GgufField } from '../io/index.ts';

/** The fields of a model card that GGUF has, and their keys there. */
const cardFields: Readonly<Record<string, string>> = {
  license: 'general.license',
  license_name: 'general.license.name',
  license_link: 'general.license.link',
};

/** Returns name and licence of the model in a Hugging Face directory. */
export function generalFields(dir: string): [string, GgufField][] {
  const text = (value: string): GgufField => ({ type: 'string', value });
  const card = cardOf(dir);
  return [
    ['general.type', text('model')],
    ['general.name', text(basename(resolve(dir)))],
    ...Object.entries(cardFields).flatMap(([field, key]): [string, GgufField][] =>
      typeof card[field] === 'string' ? [[key, text(card[field])]] : [],
    ),
  ];
}

/** Returns the front matter of the model card; empty where there is none that can be read. */
function cardOf(dir: string): Readonly<Record<string, unknown>> {
  const file = join(dir, 'README.md');
  const [, matter] = (existsSync(file) && /^---\r?\n([\s\S]*?)\r?\n---/.exec(readFileSync(file, 'utf8'))) || [];
  try {
    return (matter ? (parse(matter) as Record<string, unknown> | null) : null) ?? {};
  } catch {
    return {}; // a card that is not YAML: nothing in it is needed
  }
}
