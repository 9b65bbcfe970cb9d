import assert from 'node:assert/strict';
import test from 'node:test';
import { GraftError } from '../base/index.ts';
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

test('a call of a tool has no content', () => {
  const call = { role: 'assistant', content: null, tool_calls: [{ function: { name: 'f', arguments: {} } }] };
  const got = example({ messages: [user('a'), call] });
  assert.equal(got.kind, 'chat');
  assert.deepEqual(got.kind === 'chat' && got.messages[1], { ...call, content: '' });
});

test('missing, ambiguous, misspelt and unrecognised columns', () => {
  refused({}, /\(none\)/);
  refused({ mesages: [] }, /unrecognised columns 'mesages'; did you mean 'messages' instead of 'mesages'\?/);
  refused({ promt: 'a', completion: 'b' }, /'prompt' instead of 'promt'/);
  refused({ prompt: 'a', responses: 'b' }, /unrecognised columns 'prompt', 'responses'/);
  refused({ text: 'a', messages: [user('a')] }, /could be messages or text.*data\.format/);
  refused({ messages: 'a' }, /messages: expected array/);
  refused({ messages: [] }, /messages/);
  refused({ messages: [{ content: 'a' }] }, /messages\.0\.role/);
  refused({ prompt: 'a', completion: 3 }, /completion/);
  refused({ ids: [1, 'x'] }, /ids\.1/);
  refused({ ids: [1.5] }, /ids\.0/);
  refused({ text: '' }, /text/);
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
