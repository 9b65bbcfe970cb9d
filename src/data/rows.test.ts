import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { GraftError, packageRoot } from '../base/index.ts';
import {
  ChatTemplate,
  type Example,
  makePrompt,
  promptSourceOf,
  type Row,
  type RowOptions,
  rowNotes,
  Tokenizer,
  toRows,
} from './index.ts';

const path = join(packageRoot, 'test', 'golden', 'tokenizer', 'llama2.json');
const tokenizer = new Tokenizer(JSON.parse(readFileSync(path, 'utf8')), { bos: '<s>', eos: '</s>' }, path);
const { bosId, eosId } = tokenizer as { bosId: number; eosId: number };
const template = `{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}`;
const options: RowOptions = {
  tokenizer,
  chat: new ChatTemplate(template, { bos_token: '<s>', eos_token: '</s>' }),
  vocabSize: tokenizer.vocabSize,
  maxLength: 256,
  trainOn: 'completion',
};
const rows = (examples: Example[], more: Partial<RowOptions> = {}) =>
  toRows(
    examples.map((example, i) => ({ example, place: `f:${i + 1}` })),
    { ...options, ...more },
  );
const one = (example: Example, more: Partial<RowOptions> = {}) => rows([example], more).rows[0]!;
/** The learned tokens as text, special tokens included. */
const learned = ({ labels }: Row) => tokenizer.decode([...labels].filter((l) => l !== -100));
const decoded = ({ ids }: Row) => tokenizer.decode(ids);
const tokens = (ids: number[], labels?: number[]): Example => ({ kind: 'tokens', ids, labels });
const talk: Example = {
  kind: 'chat',
  messages: [
    { role: 'user', content: 'one' },
    { role: 'assistant', content: 'two' },
    { role: 'user', content: 'three' },
    { role: 'assistant', content: 'four' },
  ],
  from: 0,
};
const last = (row: Row) => row.labels.at(-1);

test('a conversation: only the assistant turns with their end tokens are learned; one BOS', () => {
  const row = one(talk);
  assert.equal(learned(row).replaceAll(' ', ''), 'two</s>four</s>');
  assert.equal(row.ids.filter((id) => id === bosId).length, 1);
  assert.equal(row.labels.filter((l) => l === eosId).length, 2);
  assert.ok(row.labels.every((label, i) => label === -100 || label === row.ids[i]));
});

test('turns before `from` are not learned', () => {
  assert.equal(learned(one({ ...talk, from: 3 })).trim(), 'four</s>');
});

test('turns that the row marks as not learned are context, in a row that is learned whole too', () => {
  const marked: Example = { ...talk, notLearned: [1] };
  assert.equal(learned(one(marked)).trim(), 'four</s>');
  const all = one(marked, { trainOn: 'all' });
  assert.match(learned(all), /one.*three.*four/s);
  assert.doesNotMatch(learned(all), /two/);
});

test('the template tool_use is chosen where a row has tools, for rows and for prompts', () => {
  const chatTemplates = { default: template, tool_use: `[tools]${template}` };
  const both = new Tokenizer(JSON.parse(readFileSync(path, 'utf8')), { bos: '<s>', eos: '</s>', chatTemplates }, path);
  const chat = ChatTemplate.of(both);
  const withTools: Example = { ...(talk as Extract<Example, { kind: 'chat' }>), tools: [] };
  for (const [example, expected] of [
    [talk, false],
    [withTools, true],
  ] as const) {
    assert.equal(decoded(one(example, { tokenizer: both, chat })).includes('[tools]'), expected);
    const prompt = makePrompt(promptSourceOf(example)!, { tokenizer: both, chat, place: 'f:1', hint: '' });
    assert.equal(both.decode(prompt.ids).includes('[tools]'), expected);
  }
});

test('what the chat template leaves out is counted', () => {
  const fn = { name: 'weather', arguments: { place: 'here' } };
  const calling: Example = {
    kind: 'chat',
    messages: [talk.messages[0]!, { role: 'assistant', tool_calls: [{ type: 'function', function: fn }] }],
    tools: [{ type: 'function', function: { name: 'weather' } }],
    from: 0,
  };
  const blank = new ChatTemplate(
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{{ m.content }}{% else %}.{% endif %}{% endfor %}",
  );
  const { report } = rows([calling, talk], { chat: blank });
  assert.deepEqual(report.notPrinted, { tools: 1, 'calls of functions': 1, answers: 1 });
  assert.equal(rows([talk]).report.notPrinted, undefined);
});

test('fields of messages, documents and variables that the template does not name are counted', () => {
  const [question, answer] = (talk as Extract<Example, { kind: 'chat' }>).messages;
  const rich: Example = {
    kind: 'chat',
    messages: [
      { ...question!, mood: 'glad' },
      { ...answer!, reasoning_content: 'because', trainable: false, note: null, tool_calls: [], annotations: [] },
    ],
    documents: [{ text: 'd' }],
    variables: { enable_thinking: false },
    from: 0,
  };
  for (const trainOn of ['completion', 'all'] as const) {
    assert.deepEqual(rows([rich, rich, talk], { trainOn }).report.notPrinted, {
      "the field 'mood' of messages": 2,
      "the field 'reasoning_content' of messages": 2,
      "the field 'trainable' of messages": 2,
      documents: 2,
      "the variable 'enable_thinking'": 2,
    });
  }
  const reading = new ChatTemplate(
    `{{ documents }}{{ enable_thinking }}{% for m in messages %}[{{ m.role }}]{{ m.mood }}{{ m.thinking }}{% if m.trainable %}!{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}`,
  );
  assert.equal(rows([rich], { chat: reading }).report.notPrinted, undefined);
});

test('train on all: every token, and the template needs no marks', () => {
  const row = one(talk, { trainOn: 'all' });
  assert.deepEqual(row.ids, row.labels);
  const odd = new ChatTemplate("{{ messages | map(attribute='content') | join(' ') }}");
  assert.ok(one(talk, { trainOn: 'all', chat: odd }).ids.length > 0);
  assert.throws(() => one(talk, { chat: odd }), /f:1: what the model learns of the conversation is not clear/);
});

test('prompt and completion: the completion and the EOS after it are learned', () => {
  const example: Example = { kind: 'completion', prompt: 'The quick brown', completion: ' fox jumps' };
  const row = one(example);
  assert.deepEqual([row.ids[0], last(row)], [bosId, eosId]);
  assert.equal(learned(row).trim(), 'fox jumps</s>');
  assert.match(decoded(row), /The quick brown fox jumps<\/s>$/);
  assert.deepEqual(one(example, { trainOn: 'all' }).labels, row.ids);
});

test('a prompt has at inference the tokens that it was learned with, wherever the completion begins', () => {
  for (const [prompt, completion] of [
    ['a b', 'c d'],
    ['quick bro', 'wn fox'],
    ['x ', ' y'],
    ['', 'z'],
    ['é', '\u0301'],
  ] as const) {
    const row = one({ kind: 'completion', prompt, completion });
    const promptIds = tokenizer.encode(prompt);
    assert.deepEqual(row.ids.slice(0, promptIds.length), promptIds);
    assert.ok(row.labels.subarray(0, promptIds.length).every((l) => l === -100));
    assert.equal(last(row), eosId);
  }
});

test('an EOS that the tokenizer puts after every text does not cut the prompt from its completion', () => {
  const settings = { bos: '<s>', eos: '</s>', addBos: true, addEos: true };
  const ending = new Tokenizer(JSON.parse(readFileSync(path, 'utf8')), settings, path);
  const row = one({ kind: 'completion', prompt: 'The quick', completion: ' fox' }, { tokenizer: ending });
  assert.equal(row.ids.filter((id) => id === eosId).length, 1);
  assert.equal(last(row), eosId);
});

test('text: all tokens, BOS before and EOS after', () => {
  const row = one({ kind: 'text', text: 'plain words' });
  assert.deepEqual(row.ids, row.labels);
  assert.deepEqual([row.ids[0], row.ids.at(-1)], [bosId, eosId]);
});

test('rows that are too long are truncated and counted; rows that lose every label are left out and counted', () => {
  const { rows: got, report } = rows(
    [tokens([1, 2, 3, 4, 5, 6]), tokens([1, 2, 3]), tokens([1, 2, 3, 4, 5, 6], [-100, -100, -100, -100, 5, 6])],
    { maxLength: 4 },
  );
  assert.deepEqual(
    got.map(({ ids, place }) => [[...ids], place]),
    [
      [[1, 2, 3, 4], 'f:1'],
      [[1, 2, 3], 'f:2'],
    ],
  );
  const { rows: made, cutRows, cutTokens, lostRows, emptyRows } = report;
  assert.deepEqual([made, cutRows, cutTokens, lostRows, emptyRows], [2, 2, 4, 1, 0]);
  assert.deepEqual(report.places, {
    cut: ['f:1', 'f:3'],
    lost: ['f:3'],
    empty: [],
    emptyAnswers: [],
    splitAnswers: [],
    severalAnswers: [],
  });
});

test('rows without content are left out, and answers without content are counted; five places are kept', () => {
  const empty: Example[] = [
    { kind: 'text', text: '' },
    { kind: 'completion', prompt: '', completion: '' },
    { kind: 'chat', messages: [], from: 0 },
    tokens([]),
    tokens([1, 2], [-100, -100]),
    { kind: 'text', text: '' },
  ];
  const silent: Example[] = [
    { kind: 'completion', prompt: 'a', completion: '' },
    { kind: 'chat', messages: [talk.messages[0]!, { role: 'assistant', content: ' ' }], from: 0 },
  ];
  const called = { role: 'assistant', tool_calls: [{ function: { name: 'f' } }] };
  const others: Example[] = [talk, { kind: 'chat', messages: [...talk.messages, called], from: 0 }];
  const { rows: made, report } = rows([...empty, ...silent, ...others]);
  assert.equal(made.length, 4);
  assert.deepEqual([report.emptyRows, report.emptyAnswers], [6, 2]);
  assert.deepEqual(report.places.empty, ['f:1', 'f:2', 'f:3', 'f:4', 'f:5']);
  assert.deepEqual(report.places.emptyAnswers, ['f:7', 'f:8']);
  const notes = rowNotes(report, [], 'rows.jsonl', 'causal-lm');
  assert.match(notes[0]!, /rows\.jsonl: 6 rows have nothing to learn and are left out \(f:1, f:2, f:3, f:4, f:5 …\)/);
  assert.match(notes[1]!, /2 rows have empty answers, of which only the end is learned \(f:7, f:8\)/);
});

test('truncate: the end, the start, or the middle of what is not learned is cut', () => {
  const ids = [1, 2, 3, 4, 5, 6, 7, 8];
  const answer = tokens(ids, [-100, -100, -100, -100, -100, -100, 7, 8]);
  const cut = (example: Example, truncate: RowOptions['truncate'], maxLength: number) => [
    ...one(example, { truncate, maxLength, tokenizer: undefined }).ids,
  ];
  assert.deepEqual(cut(tokens(ids), undefined, 5), [1, 2, 3, 4, 5]);
  assert.deepEqual(cut(tokens(ids), 'start', 5), [4, 5, 6, 7, 8]);
  assert.deepEqual(cut(tokens(ids), 'middle', 5), [1, 2, 6, 7, 8]);
  assert.deepEqual(cut(answer, 'start', 4), [5, 6, 7, 8]);
  assert.deepEqual(cut(answer, 'middle', 5), [1, 5, 6, 7, 8]);
  // Two turns: the longer context is cut first, then the other, and answers last.
  const turns = tokens(ids, [-100, -100, -100, 4, -100, -100, 7, 8]);
  assert.deepEqual(cut(turns, 'middle', 6), [3, 4, 5, 6, 7, 8]);
  assert.deepEqual(cut(turns, 'middle', 4), [4, 6, 7, 8]);
  assert.deepEqual(cut(turns, 'middle', 2), [4, 7]);
  assert.throws(() => one(answer, { maxLength: 4 }), /set data\.truncate to middle/);
  // The token that begins a text stays.
  const long: Example = { kind: 'text', text: 'plain words and more of them' };
  assert.equal(one(long, { truncate: 'start', maxLength: 4 }).ids[0], bosId);
  const { report } = rows([{ kind: 'completion', prompt: 'a', completion: 'plain words' }], { maxLength: 5 });
  assert.match(
    rowNotes(report, [], 'r', 'causal-lm')[0]!,
    /of one answer too \(data\.truncate: middle keeps answers\) \(f:1\)/,
  );
});

test('a prompt without a completion cannot be learned', () => {
  assert.throws(
    () =>
      rows([{ kind: 'completion', prompt: 'a', completion: undefined, unused: ["the column 'answer' is not used"] }]),
    /f:1: the row has a prompt and no completion; the column 'answer' is not used\. Add a completion, or name its column: data\.columns/,
  );
});

test('answers in a column of another name are not taken for rows that only ask', () => {
  const unused = ["the column 'response' is not used"];
  assert.throws(
    () => rows([{ kind: 'chat', messages: [{ role: 'user', content: 'a' }], from: 0, unused }]),
    /none of the 1 rows has.*turns of 'user'.*; the column 'response' is not used\. Say with data\.columns which column/,
  );
});

test('rows in which nobody speaks as the assistant are refused with their roles', () => {
  const turn = (role: string) => ({ role, content: 'a' });
  assert.throws(
    () => rows([{ kind: 'chat', messages: [turn('user'), turn('bot')], from: 0 }]),
    /turns of 'user', 'bot', and those of 'assistant' are learned\. Call the role .* roles that are read are system, developer/,
  );
});

test('of several bad rows each is named', () => {
  assert.throws(
    () => rows([tokens([1, 2000]), tokens([1, 2]), tokens([1, -5])]),
    /f:1: .*\n.*f:3: .*-5.*\n2 rows cannot be used/,
  );
});

test('no row left is an error that says why', () => {
  const nothing = tokens([1, 2], [-100, -100]);
  assert.throws(() => rows([nothing, nothing]), /none of the 2 rows has a token to learn/);
  assert.throws(() => rows([tokens([1, 2, 3], [-100, -100, 3])], { maxLength: 2 }), /Raise max_length/);
  assert.throws(() => rows([tokens([5])]), GraftError); // nothing comes before it
  assert.throws(() => rows([]), /there are no rows/);
});

test('ids and labels must be in the vocabulary', () => {
  assert.deepEqual([...one(tokens([1, 2, 3], [-100, 2, 0])).labels], [-100, 2, 0]);
  const bad: [Example, RegExp][] = [
    [tokens([1, 2000]), /f:1: ids\[1\] is 2000, outside the vocabulary of 676/],
    [tokens([-1, 2]), /ids\[0\] is -1/],
    [tokens([1, 2], [1, 676]), /labels\[1\] is 676/],
    [tokens([1, 2], [1, -1]), /labels\[1\] is -1.*−100/],
    [tokens([1, 2], [1]), /2 ids have 1 labels/],
  ];
  for (const [example, pattern] of bad) assert.throws(() => rows([example]), pattern);
});

test("a tokenizer with ids outside the model's vocabulary", () => {
  const example: Example = { kind: 'text', text: 'plain words' };
  assert.throws(
    () => rows([example], { vocabSize: 300 }),
    (e) =>
      e instanceof GraftError &&
      e.kind === 'mismatch' &&
      /^f:1: the tokenizer gives id \d+ \(.+\).*ends at 299/.test(e.message),
  );
});

test('text without a tokenizer, conversations without a template', () => {
  assert.throws(() => rows([{ kind: 'text', text: 'a' }], { tokenizer: undefined }), /f:1: the model has no tokenizer/);
  assert.throws(() => rows([talk], { chat: undefined }), /f:1: the model has no chat template/);
  assert.equal(one(tokens([1, 2]), { tokenizer: undefined }).ids.length, 2);
});
