import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tokenizerJson, withAllMerges } from '../../../test/samples/tokenizers.ts';
import { golden, temporary } from '../../../test/support.ts';
import type { MetadataValue } from '../../io/index.ts';
import { type GgufTokenizer, loadTokenizer, tokenizerFromGguf } from '../index.ts';

const corpus = readFileSync(golden('tokenizer', 'corpus.jsonl'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as string);

const valuesOf = ({ fields }: GgufTokenizer) =>
  new Map<string, MetadataValue>([...fields].map(([key, { value }]) => [key, value]));

const read = (tokenizer: GgufTokenizer) => tokenizerFromGguf(valuesOf(tokenizer));

interface Expected {
  readonly name: string;
  readonly pre: string;
  readonly bos: boolean;
  readonly notes: RegExp[];
  /** Texts whose ids differ, as a note says. */
  readonly differing?: (text: string) => boolean;
}

const cases: Expected[] = [
  { name: 'llama2', pre: 'default', bos: true, notes: [] },
  { name: 'llama3', pre: 'llama-bpe', bos: true, notes: [] },
  { name: 'qwen2', pre: 'qwen2', bos: false, notes: [/NFC/] },
  {
    name: 'mistral',
    pre: 'default',
    bos: true,
    notes: [/puts a space before a text that begins with one, and after special tokens/],
    differing: (text) => /^[ ▁]|<\/?s>|<unk>/.test(text),
  },
];

for (const { name, pre, bos, notes, differing = () => false } of cases) {
  test(`${name}: what is written to a GGUF file gives the same ids on the corpus`, (t) => {
    using dir = temporary();
    const file = join(dir.path, 'tokenizer.json');
    writeFileSync(file, JSON.stringify(pre === 'default' ? withAllMerges(name) : tokenizerJson(name)));
    const original = loadTokenizer(file);
    const written = original.gguf(original.vocabSize + 5);
    // tokenizer.json by itself names no special token.
    const all = [/names no token that ends a text, and llama\.cpp then takes id (2|11)/, ...notes];
    assert.equal(written.notes.length, all.length);
    for (const [i, note] of all.entries()) assert.match(written.notes[i]!, note);
    const values = valuesOf(written);
    assert.equal(values.get('tokenizer.ggml.pre'), pre);
    assert.equal(values.get('tokenizer.ggml.add_bos_token'), bos);
    assert.equal((values.get('tokenizer.ggml.tokens') as string[]).at(-1), `[PAD${original.vocabSize + 4}]`);
    const again = read(written);
    const texts = corpus.filter((text) => !differing(text));
    for (const text of texts) assert.deepEqual(again.encode(text), original.encode(text), JSON.stringify(text));
    t.diagnostic(`${texts.length} of ${corpus.length} texts`);
    assert.ok(texts.length > 350);
  });
}

test('special ids, ends of a generation and chat templates of a directory', () => {
  using dir = temporary();
  const put = (name: string, value: unknown) => writeFileSync(join(dir.path, name), JSON.stringify(value));
  put('tokenizer.json', tokenizerJson('llama3'));
  put('tokenizer_config.json', {
    bos_token: '<|begin_of_text|>',
    eos_token: '<|eot_id|>',
    chat_template: [
      { name: 'default', template: 'd' },
      { name: 'tool_use', template: 't' },
    ],
  });
  const tokenizer = loadTokenizer(dir.path);
  put('generation_config.json', {
    eos_token_id: [tokenizer.tokenToId('<|end_of_text|>'), tokenizer.tokenToId('<|eot_id|>')],
  });
  const values = valuesOf(loadTokenizer(dir.path).gguf(tokenizer.vocabSize));
  const id = (role: string) => values.get(`tokenizer.ggml.${role}_token_id`);
  assert.deepEqual(
    [id('bos'), id('eos'), id('eot')],
    ['<|begin_of_text|>', '<|eot_id|>', '<|end_of_text|>'].map((token) => tokenizer.tokenToId(token)),
  );
  const types = values.get('tokenizer.ggml.token_type') as Int32Array;
  assert.equal(types[tokenizer.tokenToId('<|eot_id|>')!], 3);
  assert.equal(values.get('tokenizer.chat_template'), 'd');
  assert.deepEqual(values.get('tokenizer.chat_templates'), ['tool_use']);
  assert.equal(values.get('tokenizer.chat_template.tool_use'), 't');
});

test('what llama.cpp has no name for is refused, never guessed', () => {
  using dir = temporary();
  const refused = (name: string, change: (json: Record<string, Record<string, unknown>>) => void, message: RegExp) => {
    const changed = tokenizerJson(name);
    change(changed);
    const file = join(dir.path, 'tokenizer.json');
    writeFileSync(file, JSON.stringify(changed));
    const tokenizer = loadTokenizer(file);
    assert.throws(() => tokenizer.gguf(tokenizer.vocabSize), message);
  };
  const before = /llama\.cpp cannot read this tokenizer: /.source;
  refused('bert', () => {}, new RegExp(`${before}its model is WordPiece`));
  refused('unigram', () => {}, new RegExp(`${before}its model is Unigram`));
  refused(
    'llama3',
    (changed) => {
      const [split] = changed.pre_tokenizer!.pretokenizers as { pattern: { Regex: string } }[];
      split!.pattern.Regex = split!.pattern.Regex.replace('{1,3}', '{1,2}');
    },
    new RegExp(`${before}it has no name for the pre-tokenizer .*\\{1,2\\}`),
  );
  refused(
    'llama3',
    (changed) => {
      changed.normalizer = { type: 'Lowercase' };
    },
    new RegExp(`${before}it has no name for the normalizer .*Lowercase`),
  );
  refused('llama2', () => {}, new RegExp(`${before}its merges are not those that SentencePiece makes`));
  refused(
    'llama2',
    (changed) => {
      changed.normalizer = { type: 'NFKC' };
    },
    new RegExp(`${before}it makes pieces of text by normalizer .*NFKC`),
  );
  const llama3 = loadTokenizer(golden('tokenizer', 'llama3.json'));
  assert.throws(() => llama3.gguf(20), /it has ids up to \d+, and the model has 20 rows of embeddings/);
});
