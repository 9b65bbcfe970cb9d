import assert from 'node:assert/strict';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../base/index.ts';
import { ChatTemplate, loadTokenizer, makePrompt, promptSourceOf } from '../index.ts';

const tokenizer = loadTokenizer(join(packageRoot, 'test', 'golden', 'tokenizer', 'llama3.json'));
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
