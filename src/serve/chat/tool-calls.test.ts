import assert from 'node:assert/strict';
import test from 'node:test';
import { ToolCallReader } from './tool-calls.ts';
import { toolFormOf } from './tool-forms.ts';

const templates = {
  hermes: '{{ "<tool_call>" }}',
  mistral: '{{ "[TOOL_CALLS]" }}',
  llama3: '{"name": function name, "parameters": …}',
};

/** Text and calls of an answer that comes in pieces of `size` characters. */
function read(form: keyof typeof templates, answer: string, size: number, names = ['f', 'g']) {
  const reader = new ToolCallReader(toolFormOf(templates[form]), names);
  let text = '';
  for (let at = 0; at < answer.length; at += size) text += reader.push(answer.slice(at, at + size));
  const { content, calls } = reader.end();
  return { text: text + content, calls: calls.map((call) => [call.name, JSON.parse(call.arguments)]) };
}

const f = ['f', { a: 'x > </tool_call' }] as const;
const g = ['g', {}] as const;
const json = '{"name": "f", "arguments": {"a": "x > </tool_call"}}';
const answers: [form: keyof typeof templates, answer: string, text: string, calls: readonly unknown[]][] = [
  ['hermes', 'No call.', 'No call.', []],
  ['hermes', `<tool_call>\n${json}\n</tool_call>`, '', [f]],
  [
    'hermes',
    `Let me look. \n<tool_call>${json}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>`,
    'Let me look.',
    [f, g],
  ],
  ['hermes', `<tool_call>${json}`, '', [f]],
  ['hermes', '<tool_call>{"name": "g", "arguments": "{}"}</tool_call>', '', [g]],
  [
    'hermes',
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    [],
  ],
  ['hermes', '<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum', []],
  ['hermes', 'a < b <tool', 'a < b <tool', []],
  [
    'hermes',
    '<tool_call>{"name": "g", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "g", "arguments": [1]}</tool_call>',
    [],
  ],
  ['mistral', `[TOOL_CALLS][${json}, {"name": "g", "arguments": {}}]`, '', [f, g]],
  ['mistral', '[TOOL_CALLS]f[ARGS]{"a": "x > </tool_call"}[TOOL_CALLS]g[ARGS]{}', '', [f, g]],
  ['mistral', 'Hm. [TOOL_CALLS]g{}', 'Hm.', [g]],
  ['mistral', '[TOOL_CALLS][{"name"', '[TOOL_CALLS][{"name"', []],
  ['mistral', '[TOO many]', '[TOO many]', []],
  ['llama3', '{"name": "f", "parameters": {"a": "x > </tool_call"}}', '', [f]],
  ['llama3', '<|python_tag|>{"name": "g", "parameters": {}}; {"name": "g", "parameters": {}}', '', [g, g]],
  ['llama3', '\n\n{"name": "g", "parameters": {}}', '', [g]],
  ['llama3', '{"no": "call"}', '{"no": "call"}', []],
  ['llama3', 'Use {"name": "g", "parameters": {}}', 'Use {"name": "g", "parameters": {}}', []],
  ['llama3', '{"name": "g", "parameters": {', '{"name": "g", "parameters": {', []],
  ['llama3', '', '', []],
];

test('calls in the forms of Hermes, Mistral and Llama 3 are read, however the answer comes; what is none is text', (t) => {
  let checked = 0;
  for (const [form, answer, text, calls] of answers)
    for (let size = 1; size <= Math.max(1, answer.length); size += size < 6 ? 1 : 7) {
      const found = read(form, answer, size);
      assert.deepEqual(
        { ...found, text: found.text.trim() },
        { text: text.trim(), calls },
        `${form}, pieces of ${size}: ${answer}`,
      );
      checked++;
    }
  assert.ok(checked > 150);
  t.diagnostic(`${checked} answers read`);
});

test('text that cannot be a call is given at once', () => {
  const reader = new ToolCallReader(toolFormOf(templates.hermes), ['f']);
  assert.equal(reader.push('Hello '), 'Hello');
  assert.equal(reader.push('there <'), ' there');
  assert.equal(reader.push('b'), ' <b');
});

test('a special token that begins calls, which no text shows, begins them', () => {
  const reader = new ToolCallReader(toolFormOf(templates.mistral), ['g']);
  assert.equal(reader.push('Hm.'), 'Hm.');
  assert.equal(reader.push('[{"name": "g"', true), '');
  assert.equal(reader.push(', "arguments": {}}]'), '');
  assert.deepEqual(reader.end(), { content: '', calls: [{ name: 'g', arguments: '{}' }] });
});
