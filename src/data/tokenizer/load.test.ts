import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { GraftError, packageRoot } from '../../base/index.ts';
import { loadTokenizer, type Tokenizer, tokenizerFromGguf, tokenizerOf } from '../index.ts';

const golden = (...parts: string[]) => join(packageRoot, 'test', 'golden', ...parts);
const root = mkdtempSync(join(tmpdir(), 'graft-tokenizer-'));
after(() => rmSync(root, { recursive: true }));

function directory(name: string, files: Record<string, unknown>): string {
  const dir = join(root, name);
  mkdirSync(join(dir, 'additional_chat_templates'), { recursive: true });
  copyFileSync(golden('tokenizer', 'llama3.json'), join(dir, 'tokenizer.json'));
  for (const [file, content] of Object.entries(files))
    writeFileSync(join(dir, file), typeof content === 'string' ? content : JSON.stringify(content));
  return dir;
}

test('a directory: special tokens, ids that end a generation, templates', () => {
  const dir = directory('full', {
    'tokenizer_config.json': {
      bos_token: '<|begin_of_text|>',
      eos_token: { content: '<|eot_id|>', special: true },
      chat_template: [
        { name: 'default', template: 'from the configuration' },
        { name: 'tool_use', template: 'for tools' },
      ],
      added_tokens_decoder: { 900: { content: '<extra>', special: true, normalized: false } },
    },
    'generation_config.json': { eos_token_id: [595, 596] },
    'chat_template.jinja': 'from its own file',
    'additional_chat_templates/rag.jinja': 'for documents',
  });
  const t = loadTokenizer(dir);
  assert.equal(t.bosId, t.tokenToId('<|begin_of_text|>'));
  assert.equal(t.eosId, t.tokenToId('<|eot_id|>'));
  assert.deepEqual(
    t.eosIds,
    [t.eosId, 595, 596].filter((id, i, all) => all.indexOf(id) === i),
  );
  assert.deepEqual(
    { ...t.chatTemplates },
    { default: 'from its own file', tool_use: 'for tools', rag: 'for documents' },
  );
  // A token without an id in tokenizer.json has the next one, as in Python, whatever the other file says.
  assert.deepEqual([...t.encode('<extra>', { addSpecialTokens: false })], [600]);
  assert.equal(t.vocabSize, 601);
  assert.equal(t.encode('a')[0], t.bosId); // by the post-processor
});

/** Every component of tokenizer.json with its `type`. */
function componentsOf(value: unknown): Readonly<Record<string, unknown>>[] {
  if (typeof value !== 'object' || value === null) return [];
  const inner = Object.entries(value).flatMap(([key, v]) =>
    key === 'vocab' || key === 'merges' ? [] : componentsOf(v),
  );
  return 'type' in value ? [value as Readonly<Record<string, unknown>>, ...inner] : inner;
}

test('files() hold the tokenizer', () => {
  const t = tokenizerOf(golden('gguf', 'qwen2.gguf'));
  const dir = directory('written', t.files());
  const again = loadTokenizer(dir);
  assert.deepEqual(again.encode('Écrit: 12 \n x'), t.encode('Écrit: 12 \n x'));
  assert.deepEqual([again.chatTemplates, again.eosIds, again.padId], [t.chatTemplates, t.eosIds, t.padId]);
});

test('tokenizer.json made of a GGUF has what the Python package tokenizers requires, and puts BOS and EOS itself', () => {
  const tokens = ['a', 'b', 'Ġ', '<s>', '</s>'];
  const base = {
    'ggml.model': 'gpt2',
    'ggml.tokens': tokens,
    'ggml.merges': [],
    'ggml.token_type': [1, 1, 1, 3, 3],
    'ggml.bos_token_id': 3,
    'ggml.eos_token_id': 4,
    chat_template: 'x',
    'chat_template.tool_use': 'y',
  };
  // The fields that `from_str` of tokenizers 0.23 misses where they are not there.
  const required: Readonly<Record<string, readonly string[]>> = {
    ByteLevel: ['add_prefix_space', 'trim_offsets', 'use_regex'],
    Split: ['pattern', 'behavior', 'invert'],
    Digits: ['individual_digits'],
    Punctuation: ['behavior'],
    TemplateProcessing: ['single', 'pair', 'special_tokens'],
    Strip: ['content', 'start', 'stop'],
    Replace: ['pattern', 'content'],
    Prepend: ['prepend'],
  };
  const flags = [
    [undefined, undefined, false, false],
    [true, undefined, true, false],
    [false, true, false, true],
    [true, true, true, true],
  ] as const;
  let checked = 0;
  for (const pre of ['default', 'smollm', 'qwen2', 'tekken', 'falcon', 'bloom', 'viking', 'deepseek-v3', undefined]) {
    for (const [bos, eos, hasBos, hasEos] of flags) {
      const own = pre ? { ...base, 'ggml.pre': pre } : sentencePiece;
      const added = {
        ...(bos !== undefined && { 'ggml.add_bos_token': bos }),
        ...(eos && { 'ggml.add_eos_token': eos }),
      };
      const t = tokenizerFromGguf(metadata({ ...own, ...added }));
      const files = t.files();
      const { model: _, ...parts } = JSON.parse(files['tokenizer.json']!);
      for (const component of componentsOf(parts))
        for (const field of required[component.type as string] ?? []) {
          assert.ok(field in component, `${pre}: ${component.type} has no ${field}`);
          checked++;
        }
      assert.doesNotMatch(files['tokenizer_config.json']!, /add_(bos|eos)_token/);
      const again = loadTokenizer(directory(`made-${pre}-${bos}-${eos}`, files));
      const ids = [...again.encode('ab')];
      const byDefault = bos === undefined && (pre === 'tekken' || pre === 'deepseek-v3' || !pre);
      assert.deepEqual(
        [ids[0] === t.bosId, ids.at(-1) === t.eosId],
        [hasBos || byDefault, hasEos],
        `${pre} ${bos} ${eos}`,
      );
      assert.deepEqual([...t.encode('ab')], ids);
      if (pre) assert.deepEqual({ ...again.chatTemplates }, { default: 'x', tool_use: 'y' });
    }
  }
  assert.ok(checked > 300, `${checked} fields`);
});

test('an error says which file is missing', () => {
  const refused = (path: string, pattern: RegExp) =>
    assert.throws(
      () => loadTokenizer(path),
      (e) => e instanceof GraftError && pattern.test(e.message),
    );
  refused(join(root, 'nowhere'), /The file or directory was not found/);
  mkdirSync(join(root, 'empty'));
  refused(join(root, 'empty'), /has no tokenizer\.json\. Copy it/);
  writeFileSync(join(root, 'empty', 'tokenizer.model'), '');
  refused(join(root, 'empty'), /only tokenizer\.model\. Write it with AutoTokenizer/);
  refused(directory('broken', { 'tokenizer.json': '{"model": ' }), /tokenizer\.json:1:/);
});

type Metadata = Parameters<typeof tokenizerFromGguf>[0];
const metadata = (values: Record<string, unknown>) =>
  new Map(Object.entries(values).map(([key, value]) => [`tokenizer.${key}`, value])) as Metadata;

// Pieces, scores and types as SentencePiece numbers them: ids in the order of the merges, score −id.
const pieces = [
  '<unk>',
  '<s>',
  '</s>',
  ...Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, '0')}>`),
];
const learned = ['▁a', 'bc', '▁abc', '▁', 'a', 'b', 'c', '<user>'];
const sentencePiece = {
  'ggml.model': 'llama',
  'ggml.tokens': [...pieces, ...learned],
  'ggml.scores': Float32Array.from([...pieces, ...learned], (_, i) => (i < pieces.length ? 0 : pieces.length - 1 - i)),
  'ggml.token_type': Int32Array.from([...pieces, ...learned], (t, i) =>
    i === 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : t === '<user>' ? 4 : 1,
  ),
  'ggml.bos_token_id': 1,
  'ggml.eos_token_id': 2,
  'ggml.unknown_token_id': 0,
};
const tokensOf = (t: Tokenizer, text: string) => [...t.encode(text)].map((id) => t.idToToken(id));

test('SentencePiece inside a GGUF: BOS, the space before, byte tokens, control and user-defined tokens', () => {
  const t = tokenizerFromGguf(metadata(sentencePiece));
  assert.deepEqual(tokensOf(t, 'abc a é'), ['<s>', '▁abc', '▁a', '▁', '<0xC3>', '<0xA9>']);
  assert.deepEqual(tokensOf(t, '</s>bc<user>'), ['<s>', '</s>', '▁', 'bc', '<user>']);
  assert.equal(t.decode(t.encode('abc a é'), { skipSpecialTokens: true }), 'abc a é');
  assert.ok(t.isSpecial(2) && !t.isSpecial(pieces.length + 7) && !t.isSpecial(5));
  assert.deepEqual([t.bosId, t.eosId, t.unkId, t.eosIds], [1, 2, 0, [2]]);
  const bare = tokenizerFromGguf(
    metadata({
      ...sentencePiece,
      'ggml.add_space_prefix': false,
      'ggml.add_bos_token': false,
      'ggml.add_eos_token': true,
    }),
  );
  assert.deepEqual(tokensOf(bare, 'bc a'), ['bc', '▁a', '</s>']);
  assert.equal(bare.decode([pieces.length, pieces.length]), ' a a');
});

test('byte-level BPE inside a GGUF is pre-tokenized as its `pre` names it', () => {
  const byte = (text: string) => [...text].map((c) => c.replace(' ', 'Ġ'));
  const tokens = [...byte(" 0123456789abt'ABT"), '12', 'ab', 'Ġab', "'t", '123', '<|end|>', '<|im_end|>', '<tool>'];
  const merges = ['1 2', 'a b', 'Ġ ab', "' t", '12 3'];
  const types = Int32Array.from(tokens, (t) => (t === '<tool>' ? 4 : t.startsWith('<|') ? 3 : 1));
  const base = { 'ggml.model': 'gpt2', 'ggml.tokens': tokens, 'ggml.merges': merges, 'ggml.token_type': types };
  const fromPre = (pre: string | undefined, more: object = {}) =>
    tokenizerFromGguf(metadata({ ...base, ...(pre && { 'ggml.pre': pre }), ...more }));
  assert.deepEqual(tokensOf(fromPre('gpt-2'), "ab't 1234"), ['ab', "'t", 'Ġ', '123', '4']);
  assert.deepEqual(tokensOf(fromPre(undefined), '1234'), tokensOf(fromPre('default'), '1234'));
  assert.deepEqual(tokensOf(fromPre('smollm'), 'ab 123'), ['ab', 'Ġ', '1', '2', '3']);
  assert.deepEqual(tokensOf(fromPre('qwen2'), '123 ab'), ['1', '2', '3', 'Ġab']);
  assert.deepEqual(tokensOf(fromPre('llama-bpe', { 'ggml.bos_token_id': 21 }), '1234ab'), ["'t", '123', '4', 'ab']);
  const t = fromPre('gpt-2', { 'ggml.eos_token_id': 24, chat_template: 'x', 'chat_template.tool_use': 'y' });
  assert.deepEqual(tokensOf(t, 'ab<|im_end|><tool>'), ['ab', '<|im_end|>', '<tool>']);
  assert.equal(t.decode(t.encode('ab<|im_end|><tool>'), { skipSpecialTokens: true }), 'ab<tool>');
  assert.deepEqual(t.eosIds, [24, 23]); // the other end-of-turn token too
  assert.deepEqual({ ...t.chatTemplates }, { default: 'x', tool_use: 'y' });
  const embedded = fromPre('gpt-2', {
    'huggingface.json': JSON.stringify({ model: { type: 'WordLevel', vocab: { hi: 0 }, unk_token: 'hi' } }),
  });
  assert.deepEqual(tokensOf(embedded, 'hi'), ['hi']);
});

test("DeepSeek LLM's pre-tokenizer inside a GGUF cuts letters that have cases, punctuation and digits apart", () => {
  const tokens = ['Ġab', 'ab', '1', '2', '12', 'Ġ(', '(', 'Ġ', 'Ċ', 'a', 'b', 'ĊĊ', '<s>'];
  const merges = ['a b', 'Ġ ab', '1 2', 'Ġ (', 'Ċ Ċ'];
  const t = tokenizerFromGguf(
    metadata({
      'ggml.model': 'gpt2',
      'ggml.pre': 'deepseek-llm',
      'ggml.tokens': tokens,
      'ggml.merges': merges,
      'ggml.token_type': Int32Array.from(tokens, (token) => (token === '<s>' ? 3 : 1)),
      'ggml.bos_token_id': 12,
    }),
  );
  assert.deepEqual(tokensOf(t, 'ab ab12 ((\n\n'), ['<s>', 'ab', 'Ġab', '1', '2', 'Ġ(', '(', 'Ċ', 'Ċ']);
});

test("BERT's WordPiece inside a GGUF gives the ids of its vocab.txt", () => {
  const files = join(packageRoot, 'test', 'golden', 'tokenizer', 'files');
  const vocab = readFileSync(join(files, 'bert', 'vocab.txt'), 'utf8')
    .trimEnd()
    .split('\n');
  const special = new Set(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']);
  const tokens = vocab.map((t) => (special.has(t) ? t : t.startsWith('##') ? t.slice(2) : `▁${t}`));
  const ids = Object.fromEntries(
    Object.entries({ cls: '[CLS]', seperator: '[SEP]', padding: '[PAD]', unknown: '[UNK]', mask: '[MASK]' }).map(
      ([role, token]) => [`ggml.${role}_token_id`, vocab.indexOf(token)],
    ),
  );
  const types = Int32Array.from(tokens, (t) => (special.has(t) ? 3 : 1));
  const t = tokenizerFromGguf(
    metadata({
      'ggml.model': 'bert',
      'ggml.tokens': tokens,
      'ggml.token_type': types,
      ...ids,
      'ggml.normalizer.lowercase': false,
    }),
  );
  const fromFiles = loadTokenizer(join(files, 'bert'));
  let compared = 0;
  for (const line of readFileSync(join(files, '..', 'corpus.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')) {
    const text = JSON.parse(line) as string;
    assert.deepEqual(t.encode(text), fromFiles.encode(text), line);
    compared++;
  }
  assert.ok(compared > 100, `${compared} texts`);
});

test('an error says what a GGUF file lacks', () => {
  const refused = (values: Record<string, unknown>, pattern: RegExp) =>
    assert.throws(
      () => tokenizerFromGguf(metadata(values), 'x.gguf'),
      (e) => e instanceof GraftError && e.message.startsWith('x.gguf') && pattern.test(e.message),
    );
  refused({}, /no tokenizer/);
  refused({ ...sentencePiece, 'ggml.model': 'rwkv' }, /Tokenizers of kind 'rwkv' are not supported/);
  refused({ ...sentencePiece, 'ggml.scores': undefined }, /no tokenizer\.ggml\.scores/);
  refused({ ...sentencePiece, 'ggml.model': 'gpt2' }, /no tokenizer\.ggml\.merges/);
  refused(
    { ...sentencePiece, 'ggml.model': 'gpt2', 'ggml.pre': 'qwen3' },
    /"qwen3" is not supported \(nearest: qwen2\)/,
  );
  refused({ ...sentencePiece, 'huggingface.json': '{' }, /JSON ends/);
});

test('a stream gives complete characters as soon as they are complete, and spaces as decode does', () => {
  const spm = tokenizerFromGguf(metadata(sentencePiece));
  const streamed = (ids: number[]) => {
    const stream = spm.stream();
    return [...ids.map((id) => stream.push(id)), stream.end()];
  };
  const byte = (b: number) => 3 + b;
  const [a, bc] = [pieces.length, pieces.length + 1];
  assert.deepEqual(streamed([a, bc, a]), ['a', 'bc', ' a', '']);
  assert.deepEqual(streamed([a, byte(0xf0), byte(0x9f), byte(0x91), byte(0x8d), bc]), [
    'a',
    '',
    '',
    '',
    '👍',
    'bc',
    '',
  ]);
  assert.deepEqual(streamed([a, byte(0xc3)]), ['a', '', '\ufffd']);
  const stream = spm.stream({ skipSpecialTokens: true });
  assert.deepEqual([stream.push(1), stream.push(a), stream.push(2), stream.end()], ['', 'a', '', '']);
  assert.equal(stream.push(a), 'a'); // reset by end()
});
