import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import { tokenizerFromVocab } from './from-vocab.ts';
import { readSettings } from './settings.ts';
import { Tokenizer } from './tokenizer.ts';

/**
 * The tokenizer of a Hugging Face directory, or of a tokenizer.json by itself.
 *
 * In a directory these files are read: tokenizer.json (else vocab.txt, or vocab.json and merges.txt, of BERT, GPT-2 and
 * RoBERTa), and where they exist tokenizer_config.json and special_tokens_map.json (the roles of special tokens;
 * `add_bos_token` and `add_eos_token` there take precedence over the post-processor, as in transformers 5),
 * generation_config.json or config.json (the ids that end a generation), chat_template.jinja, chat_template.json and
 * additional_chat_templates/.
 * @throws GraftError `input` when a file is missing or damaged
 */
export function loadTokenizer(dirOrTokenizerJson: string): Tokenizer {
  if (!existsSync(dirOrTokenizerJson)) {
    throw new GraftError('input', 'The file or directory was not found', {
      place: dirOrTokenizerJson,
      hint: 'Check the path',
    });
  }
  if (!statSync(dirOrTokenizerJson).isDirectory())
    return new Tokenizer(readJsonObject(dirOrTokenizerJson), {}, dirOrTokenizerJson);
  const dir = dirOrTokenizerJson;
  const path = join(dir, 'tokenizer.json');
  if (existsSync(path)) return new Tokenizer(readJsonObject(path), readSettings(dir), path);
  const fromVocab = tokenizerFromVocab(dir);
  if (fromVocab) {
    const explicit = Object.entries(readSettings(dir)).filter(([, value]) => value !== undefined);
    return new Tokenizer(fromVocab.json, { ...fromVocab.settings, ...Object.fromEntries(explicit) }, dir);
  }
  const other = ['tokenizer.model', 'vocab.json', 'vocab.txt', 'tekken.json'].find((name) =>
    existsSync(join(dir, name)),
  );
  throw new GraftError('input', `The directory has no tokenizer.json${other ? `, only ${other}` : ''}`, {
    place: dir,
    hint: other
      ? 'Write it with AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers'
      : 'Copy it from the base model that this one was made from',
  });
}
