import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { golden, temporary } from '../../../test/support.ts';
import {
  answerIds,
  ChatTemplate,
  loadTokenizer,
  makePrompt,
  promptSourceOf,
  type Tokenizer,
  toRows,
} from '../index.ts';

const tokenizer = loadTokenizer(golden('tokenizer', 'llama3.json'));
const chat = new ChatTemplate(
  '{% for tool in tools or [] %}{{ tool }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}',
);
const options = { tokenizer, chat, place: 'rows.jsonl:3', hint: 'Use text' };
const question = { role: 'user', content: 'spam or ham?' };
const answer = { role: 'assistant', content: 'spam' };

test('text is encoded with special tokens, a conversation as its template renders it', () => {
  const text = 'Win a prize now';
  assert.deepEqual(makePrompt({ text }, options), { ids: tokenizer.encode(text), cutTokens: 0 });
  const rendered = '1[user]spam or ham?[assistant]';
  assert.deepEqual(makePrompt({ messages: [question], tools: [1] }, options), {
    ids: tokenizer.encode(rendered, { addSpecialTokens: false }),
    cutTokens: 0,
  });
  assert.throws(() => makePrompt({ messages: [question] }, { ...options, chat: undefined }), {
    kind: 'usage',
    place: 'rows.jsonl:3',
    message: /no chat template.*Use text/,
  });
});

test('a prompt that is too long keeps its beginning and its end', () => {
  const text = 'one two three four five six seven eight nine ten';
  const all = [...tokenizer.encode(text)];
  assert.deepEqual([...makePrompt({ text }, { ...options, maxLength: all.length }).ids], all);
  const { ids, cutTokens } = makePrompt({ text }, { ...options, maxLength: 8 });
  assert.deepEqual([...ids], [...all.slice(0, 6), ...all.slice(-2)]);
  assert.equal(cutTokens, all.length - 8);
});

test('the prompt of a row is what comes before its last answer', () => {
  assert.deepEqual(promptSourceOf({ kind: 'completion', prompt: 'a', completion: 'b' }), { text: 'a' });
  const messages = [question, answer, question, answer];
  const nothing = { tools: undefined, documents: undefined, variables: undefined };
  assert.deepEqual(promptSourceOf({ kind: 'chat', messages, from: 0 }), { messages: messages.slice(0, 3), ...nothing });
  const unanswered = messages.slice(0, 3);
  assert.deepEqual(promptSourceOf({ kind: 'chat', messages: unanswered, from: 0 }), {
    messages: unanswered,
    ...nothing,
  });
  assert.equal(promptSourceOf({ kind: 'text', text: 'a' }), undefined);
});

/** The golden tokenizer with these tokens around a text. */
function around(single: readonly string[]): Tokenizer {
  using dir = temporary();
  const json = JSON.parse(readFileSync(golden('tokenizer', 'llama3.json'), 'utf8'));
  const items = single.map((id) =>
    id === 'A' ? { Sequence: { id, type_id: 0 } } : { SpecialToken: { id, type_id: 0 } },
  );
  const tokens = ['<|begin_of_text|>', '<|end_of_text|>'].map((id) => [
    id,
    { id, ids: [tokenizer.tokenToId(id)], tokens: [id] },
  ]);
  json.post_processor = {
    type: 'TemplateProcessing',
    single: items,
    pair: items,
    special_tokens: Object.fromEntries(tokens),
  };
  writeFileSync(join(dir.path, 'tokenizer.json'), JSON.stringify(json));
  const names = { bos_token: '<|begin_of_text|>', eos_token: '<|end_of_text|>' };
  writeFileSync(join(dir.path, 'tokenizer_config.json'), JSON.stringify(names));
  return loadTokenizer(dir.path);
}

test('a prompt has the special tokens before a text and none after it, in training as in use; a row ends with one', () => {
  const plain = (text: string) => [...tokenizer.encode(text, { addSpecialTokens: false })];
  let compared = 0;
  for (const single of [
    ['A'],
    ['<|begin_of_text|>', 'A'],
    ['A', '<|end_of_text|>'],
    ['<|begin_of_text|>', 'A', '<|end_of_text|>'],
  ]) {
    const t = around(single);
    const bos = single[0] === 'A' ? [] : [t.bosId!];
    const own = { tokenizer: t, chat: undefined, place: '', hint: '' };
    assert.deepEqual([...makePrompt({ text: 'Is it spam?' }, own).ids], [...bos, ...plain('Is it spam?')]);
    const closed = makePrompt({ text: 'Is it spam?' }, { ...own, closed: true });
    assert.deepEqual([...closed.ids], [...t.encode('Is it spam?')]);
    assert.deepEqual([...answerIds({ text: 'Is it spam?' }, ' no', own)], plain(' no'));
    const rows = toRows(
      [
        { example: { kind: 'completion', prompt: 'Is it spam?', completion: ' no' }, place: 'a' },
        { example: { kind: 'text', text: 'It is' }, place: 'b' },
      ],
      { tokenizer: t, chat: undefined, vocabSize: t.vocabSize, maxLength: 99, trainOn: 'completion' },
    ).rows.map(({ ids }) => [...ids]);
    assert.deepEqual(rows, [
      [...bos, ...plain('Is it spam?'), ...plain(' no'), t.eosId!],
      [...bos, ...plain('It is'), t.eosId!],
    ]);
    compared++;
  }
  assert.equal(compared, 4);
});

test('an answer is scored as it follows its prompt: encoded together, apart, or as the template prints it', () => {
  const own = { ...options, place: '', hint: '' };
  const plain = (text: string) => [...tokenizer.encode(text, { addSpecialTokens: false })];
  const ids = (text: string, answer: string) => [...answerIds({ text }, answer, own)];
  assert.deepEqual(ids('one:', ' two'), plain(' two'));
  assert.deepEqual(ids('one: ', 'two'), plain('two')); // together, ' two' would change the prompt
  const spaced = new ChatTemplate(
    "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}[/U]{% else %} {{ m.content.strip() }} [E]{% endif %}{% endfor %}",
  );
  const inChat = (answer: string) => [...answerIds({ messages: [question] }, answer, { ...own, chat: spaced })];
  assert.deepEqual([inChat('spam'), inChat(' spam')], [plain(' spam'), plain(' spam')]);
  assert.deepEqual([...answerIds({ messages: [question] }, 'spam', own)], plain('spam'));
});

test("rows of a tokenizer that names no end token take the model's, and are counted where it has none either", () => {
  using dir = temporary();
  copyFileSync(golden('tokenizer', 'llama3.json'), join(dir.path, 'tokenizer.json'));
  const rowsWith = (config: object | undefined) => {
    if (config) writeFileSync(join(dir.path, 'config.json'), JSON.stringify(config));
    const own = loadTokenizer(dir.path);
    const example = { kind: 'completion', prompt: 'one:', completion: ' two' } as const;
    return toRows([{ example, place: 'a' }], {
      tokenizer: own,
      chat: undefined,
      vocabSize: own.vocabSize,
      maxLength: 99,
      trainOn: 'completion',
    });
  };
  assert.equal(rowsWith(undefined).report.endlessRows, 1);
  const { rows, report } = rowsWith({ model_type: 'llama', eos_token_id: [596, 597] });
  assert.deepEqual([rows[0]!.ids.at(-1), report.endlessRows], [596, 0]);
});
