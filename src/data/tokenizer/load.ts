import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import { tokenizerFromVocab } from './from-vocab.ts';
import { readSettings } from './settings.ts';
import { Tokenizer } from './tokenizer.ts';
import { asClassReads } from './tokenizer-class.ts';

/**
 * The tokenizer of a Hugging Face directory, or of a tokenizer.json by itself.
 *
 * In a directory these files are read: tokenizer.json (else vocab.txt, or vocab.json and merges.txt, of BERT, GPT-2 and
 * RoBERTa), and where they exist tokenizer_config.json, special_tokens_map.json and added_tokens.json (special and added
 * tokens; a role that none of them names has the token of transformers' class), generation_config.json and config.json (the
 * ids that end a generation; the end token, where the tokenizer has none), chat_template.jinja, chat_template.json and
 * additional_chat_templates/. What is put around a text is the post-processor's; as in transformers 5, `add_bos_token` and
 * `add_eos_token` are read only where there is no tokenizer.json.
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
  if (existsSync(path)) {
    const json = readJsonObject(path);
    const { settings, tokenizerClass, tokens } = readSettings(dir, json);
    return new Tokenizer(asClassReads(json, tokenizerClass, tokens), settings, path);
  }
  const fromFiles = readSettings(dir);
  const fromVocab = tokenizerFromVocab(dir, fromFiles);
  if (fromVocab) return new Tokenizer(fromVocab, fromFiles.settings, dir);
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
