import assert from 'node:assert/strict';
import test from 'node:test';
import { GraftError } from '../base/index.ts';
import { unusedNotes } from './example.ts';
import { type Format, toExample, toStep } from './index.ts';

const record = (value: Record<string, unknown>) => ({ value, place: 'rows.jsonl:7' });
const example = (value: Record<string, unknown>, format: Format | 'auto' = 'auto') => toExample(record(value), format);
const chat = (messages: unknown[], from = 0) => ({ kind: 'chat', messages, from });
const user = (content: string) => ({ role: 'user', content });
const assistant = (content: string) => ({ role: 'assistant', content });
const system = (content: string) => ({ role: 'system', content });

function refused(value: Record<string, unknown>, pattern: RegExp, format: Format | 'auto' = 'auto'): void {
  assert.throws(
    () => example(value, format),
    (e) => e instanceof GraftError && e.place === 'rows.jsonl:7' && pattern.test(e.message),
    JSON.stringify(value),
  );
}

test('each format is recognised by its columns', () => {
  const same = (value: Record<string, unknown>, expected: unknown) =>
    assert.deepEqual(JSON.parse(JSON.stringify(example(value))), expected);
  same({ messages: [user('a'), assistant('b')] }, chat([user('a'), assistant('b')]));
  same({ messages: [user('a')], tools: [{ x: 1 }] }, { ...chat([user('a')]), tools: [{ x: 1 }] });
  same(
    {
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'a' },
            { type: 'text', text: 'b' },
          ],
        },
      ],
    },
    chat([user('ab')]),
  );
  same(
    {
      conversations: [
        { from: 'human', value: 'a' },
        { from: 'gpt', value: 'b' },
      ],
      system: 's',
    },
    chat([system('s'), user('a'), assistant('b')]),
  );
  same({ prompt: 'a', completion: 'b' }, { kind: 'completion', prompt: 'a', completion: 'b' });
  same({ prompt: [user('a')], completion: [assistant('b')] }, chat([user('a'), assistant('b')], 1));
  same({ instruction: 'a', input: 'b', output: 'c' }, chat([user('a\n\nb'), assistant('c')]));
  same({ instruction: 'a', input: '', output: 'c' }, chat([user('a'), assistant('c')]));
  same({ text: 'a' }, { kind: 'text', text: 'a' });
  same({ ids: [1, 2], labels: [-100, 2] }, { kind: 'tokens', ids: [1, 2], labels: [-100, 2] });
  same({ ids: [1, 2] }, { kind: 'tokens', ids: [1, 2] });
});

test('fields of a message that are null are left out, those of calls too; arguments stay as they are', () => {
  const call = { id: null, function: { name: 'f', arguments: { x: null }, strict: null } };
  const got = example({
    messages: [
      { ...user('a'), name: null, tool_calls: null },
      { role: 'assistant', content: null, tool_calls: [call] },
    ],
  });
  assert.deepEqual(got.kind === 'chat' && got.messages, [
    user('a'),
    { role: 'assistant', tool_calls: [{ function: { name: 'f', arguments: { x: null } } }] },
  ]);
});

const chatOf = (value: Record<string, unknown>) => {
  const got = example(value);
  assert.equal(got.kind, 'chat');
  return got as Extract<typeof got, { kind: 'chat' }>;
};

test('what stands beside a conversation is used', () => {
  const talk = { messages: [user('a'), assistant('b')] };
  assert.deepEqual(chatOf({ ...talk, system: 's' }).messages, [system('s'), ...talk.messages]);
  assert.deepEqual(chatOf({ ...talk, tools: '[{"x": 1}]' }).tools, [{ x: 1 }]);
  for (const none of [null, '', 'null']) assert.equal(chatOf({ ...talk, tools: none }).tools, undefined);
  assert.deepEqual(chatOf({ ...talk, tools: ['{"x": 1}', { y: 2 }] }).tools, [{ x: 1 }, { y: 2 }]);
  refused({ ...talk, tools: ['f'] }, /tools: expected a list, or a list as JSON/);
  refused({ ...talk, tools: '{' }, /tools: expected a list, or a list as JSON/);
  const functions = [{ name: 'f', parameters: {} }];
  assert.deepEqual(chatOf({ ...talk, functions }).tools, [{ type: 'function', function: functions[0] }]);
  const given = chatOf({ ...talk, documents: [{ title: 't' }], chat_template_kwargs: { enable_thinking: false } });
  assert.deepEqual([given.documents, given.variables], [[{ title: 't' }], { enable_thinking: false }]);
  assert.equal(given.unused, undefined);
  const prompted = chatOf({ prompt: [user('a')], completion: [assistant('b')], system: 's' });
  assert.deepEqual([prompted.messages[0], prompted.from], [system('s'), 2]);
  const history = [['a', 'b']];
  assert.deepEqual(chatOf({ instruction: 'c', output: 'd', history, system: 's', tools: functions }), {
    kind: 'chat',
    messages: [system('s'), user('a'), assistant('b'), user('c'), assistant('d')],
    tools: [{ type: 'function', function: functions[0] }],
    from: 0,
  });
});

test('columns that no part of a format reads are named, unless they are empty', () => {
  const unused = (value: Record<string, unknown>) => example(value).unused;
  assert.deepEqual(unused({ text: 'a', url: 'b', title: null, links: [], id: 1 }), ["the column 'url' is not used"]);
  assert.deepEqual(unused({ text: 'a', label: 'x', weight: 2 }), ["the column 'weight' is not used"]);
  assert.deepEqual(unused({ tokens: ['a'], tags: ['O'], pos_tags: ['NN'] }), ["the column 'pos_tags' is not used"]);
  assert.deepEqual(unused({ text: 'a', task: 'summary' }), ["the column 'task' is not used"]);
  assert.equal(unused({ text: 'a', task: 1 }), undefined);
  assert.equal(unused({ text: 'a', text_pair: 'b' }), undefined);
});

test('columns and fields that are null say nothing of the format', () => {
  const turns = { conversations: [{ from: 'human', value: 'a' }, assistant('b')] };
  const messages = [user('a'), assistant('b')];
  assert.deepEqual(chatOf({ ...turns, messages: null }).messages, messages);
  assert.deepEqual(chatOf({ messages, conversations: null }).messages, messages);
  const nulls = { from: null, value: null };
  assert.deepEqual(chatOf({ conversations: messages.map((m) => ({ ...m, ...nulls })) }).messages, messages);
});

test('what is not used is named, with the number of rows', () => {
  const talk = { messages: [system('s'), user('a'), assistant('b')] };
  const rows = [
    { ...talk, id: 7, task: 0, source: 'web', empty: null },
    { ...talk, source: 'book', history: [['a', 'b']] },
    { ...talk, system: 'another', tools: [], functions: [{ name: 'f' }] },
    { ...talk, system: 's' },
    { messages: [user('a'), { role: 'model', content: 'b' }] },
    { prompt: 'a', completion: 'b', system: 's' },
  ];
  const examples = rows.map((row) => example(row));
  assert.deepEqual(unusedNotes(examples, 'rows.jsonl'), [
    "rows.jsonl: the column 'source' is not used (2 rows)",
    "rows.jsonl: the column 'history' is not used (1 row)",
    "rows.jsonl: the column 'system' is not used (2 rows)",
    "rows.jsonl: the column 'functions' is not used (1 row)",
    "rows.jsonl: turns of the role 'model' are not learned, only those of 'assistant' are (1 row)",
  ]);
  assert.deepEqual(unusedNotes(examples.slice(3, 4), 'rows.jsonl'), []);
});

test('tags may be numbers, as the datasets library writes them', () => {
  const tagged = example({ tokens: ['a', 'b'], tags: [3, 0] });
  assert.deepEqual(tagged.kind === 'tags' && tagged.tags, ['3', '0']);
});

test('turns that the row marks are not learned', () => {
  const marked = (field: string, value: unknown) =>
    chatOf({ messages: [user('a'), { ...assistant('b'), [field]: value }, user('c'), assistant('d')] });
  const off = [
    ['weight', 0],
    ['train', false],
    ['loss', false],
  ] as const;
  for (const [field, value] of off) {
    const got = marked(field, value);
    assert.deepEqual([got.notLearned, got.messages[1]], [[1], assistant('b')], field);
  }
  for (const value of [1, true, null]) assert.equal(marked('weight', value).notLearned, undefined);
  refused({ messages: [{ ...assistant('b'), weight: 0.5 }] }, /messages\.0\.weight: expected 0 or 1/);
  const turn = { from: 'gpt', value: 'b', weight: 0 };
  assert.deepEqual(chatOf({ conversations: [{ from: 'human', value: 'a' }, turn], system: 's' }).notLearned, [2]);
});

test('speakers of ShareGPT', () => {
  const role = (from: string) => chatOf({ conversations: [{ from, value: 'a' }] }).messages[0]!.role;
  const roles = {
    assistant: ['gpt', 'assistant', 'model', 'chatgpt', 'bot', 'bing', 'bard', 'GPT'],
    user: ['human', 'user', 'Human'],
    system: ['system'],
    tool: ['tool', 'observation', 'function_response'],
  };
  for (const [expected, names] of Object.entries(roles)) for (const name of names) assert.equal(role(name), expected);
  refused(
    { conversations: [{ from: 'humam', value: 'a' }] },
    /conversations\.0\.from: unknown speaker 'humam' \(did you mean 'human'\?\); known are human, user, gpt/,
  );
  assert.deepEqual(chatOf({ conversations: [user('a'), assistant('b')] }).messages, [user('a'), assistant('b')]);
  const call = { from: 'function_call', value: '{"name": "f", "arguments": {"x": 1}}' };
  assert.deepEqual(chatOf({ conversations: [{ from: 'human', value: 'a' }, call] }).messages[1], {
    role: 'assistant',
    content: '',
    tool_calls: [{ type: 'function', function: { name: 'f', arguments: { x: 1 } } }],
  });
  refused({ conversations: [{ ...call, value: 'f(1)' }] }, /conversations\.0\.value: expected a call of a function/);
});

test('missing, ambiguous, misspelt and unrecognised columns', () => {
  refused({}, /\(none\)/);
  refused({ mesages: [] }, /unrecognised columns 'mesages'; did you mean 'messages' instead of 'mesages'\?/);
  refused({ promt: 'a', completion: 'b' }, /'prompt' instead of 'promt'/);
  refused({ question: 'a', responses: 'b' }, /unrecognised columns 'question', 'responses'/);
  refused({ text: 'a', messages: [user('a')] }, /could be messages or text.*data\.format/);
  refused({ messages: 'a' }, /messages: expected array/);
  refused({ messages: [{ content: 'a' }] }, /messages\.0\.role/);
  refused({ prompt: 'a', completion: 3 }, /completion/);
  refused({ ids: [1, 'x'] }, /ids\.1/);
  refused({ ids: [1.5] }, /ids\.0/);
  refused({ messages: [user('a')] }, /invalid row of format text: text/, 'text');
});

test('an error names the field in the file, and the one that was probably meant', () => {
  refused(
    { promt: 'a', completion: 'b' },
    /prompt: expected string.*Did you mean 'prompt' instead of 'promt'\?/,
    'prompt-completion',
  );
  refused(
    { messages: [{ role: 'user', content: [{ type: 'image' }] }] },
    /messages\.0\.content\.0\.type: expected "text"/,
  );
  refused({ prompt: [user('a')], completion: [{ role: 'assistant', content: 3 }] }, /completion\.0\.content/);
});

test('tools of a prompt that is a conversation', () => {
  const got = example({ prompt: [user('a')], completion: [assistant('b')], tools: [{ x: 1 }] });
  assert.deepEqual(got.kind === 'chat' && [got.tools, got.from], [[{ x: 1 }], 1]);
});

test('a row that only asks has no answer: columns of another format come first', () => {
  assert.deepEqual(example({ prompt: 'a', source: 3 }), {
    kind: 'completion',
    prompt: 'a',
    completion: undefined,
    unused: ["the column 'source' is not used"],
  });
  const talks = [{ prompt: [user('a')] }, { prompt: [user('a')], completion: null }, { instruction: 'a' }];
  for (const row of talks) {
    const got = example(row);
    assert.deepEqual(got.kind === 'chat' && got.messages, [user('a')], JSON.stringify(row));
  }
  const earlier = example({ instruction: 'c', history: [['a', 'b']] });
  assert.deepEqual(earlier.kind === 'chat' && earlier.messages.map(({ content }) => content), ['a', 'b', 'c']);
  assert.equal(example({ prompt: 'a', text: 'b' }).kind, 'text');
  assert.equal(example({ prompt: 'a', messages: [user('a')] }).kind, 'chat');
});

test('naming the format resolves columns that match two', () => {
  const both = { instruction: 'a', output: 'b', text: 'c' };
  refused(both, /alpaca or text/);
  assert.equal(example(both, 'text').kind, 'text');
  assert.equal(example(both, 'alpaca').kind, 'chat');
});

test('batches: one optimizer step a line', () => {
  const step = toStep(record({ rows: [{ ids: [1, 2], labels: [-100, 2] }, { ids: [3] }] }));
  assert.deepEqual(
    step.map(({ example }) => example),
    [
      { kind: 'tokens', ids: [1, 2], labels: [-100, 2] },
      { kind: 'tokens', ids: [3], labels: undefined },
    ],
  );
  assert.ok(step.every(({ place }) => place.startsWith('rows.jsonl:7')));
  for (const value of [{}, { rows: [] }, { rows: [{ ids: 'x' }] }, { rows: [{ labels: [1] }] }])
    assert.throws(() => toStep(record(value)), /rows\.jsonl:7: invalid row of format batches: rows/);
});
