/**
 * Conversations that are hard on templates, as text, because JavaScript's values cannot hold all of it: whole floats, ids above
 * 2⁵³, keys that are numbers or names of methods, nulls, texts of many scripts, blocks of content, documents, variables.
 */
import { type Conversation as MaskConversation, conversations as maskConversations } from './mask-conversations.ts';

const tool = (name: string, properties: string, required = '[]') =>
  `{"type": "function", "function": {"name": "${name}", "description": "Does ${name}.\\n  With \\"quotes\\" & <tags>.", "parameters": {"type": "object", "properties": ${properties}, "required": ${required}}}}`;
const plainTool = tool(
  'add',
  '{"a": {"type": "integer", "description": "First", "default": 20.0}, "b": {"type": "number"}}',
  '["a"]',
);
const oddTool = tool(
  'odd_names',
  '{"items": {"type": "array", "items": {"type": "string"}, "description": ""}, "get": {"type": ["string", "null"], "enum": ["x", null, 1, 2.50, true]}, "10": {"type": "object", "properties": {"keys": {"type": "string"}}}, "9": {"anyOf": [{"type": "integer"}, {"type": "null"}], "nullable": true}}',
);
const bareTool =
  '{"type": "function", "function": {"name": "bare", "description": "", "parameters": {"type": "object", "properties": {}}}}';
const returning =
  '{"type": "function", "function": {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}, "return": {"type": "string", "description": "ISO"}}}';

const message = (role: string, content: string, more = '') =>
  `{"role": "${role}", "content": ${content}${more && `, ${more}`}}`;
const user = (text: string) => message('user', JSON.stringify(text));
const assistant = (text: string, more = '') => message('assistant', JSON.stringify(text), more);
const calls = (...given: [name: string, args: string][]) =>
  `"tool_calls": [${given.map(([name, args], i) => `{"id": "call0000${i}", "type": "function", "function": {"name": "${name}", "arguments": ${args}}}`).join(', ')}]`;
const answer = (text: string, i = 0, name = 'add') =>
  message('tool', JSON.stringify(text), `"tool_call_id": "call0000${i}", "name": "${name}"`);

const numbers =
  '{"t": 20.0, "id": 9007199254740993, "small": 1e-07, "large": 1e22, "neg": -0.0, "z": 0, "on": true, "off": false, "no": null, "l": [1.0, 2, "x"], "d": {"b": 1, "a": {"k": []}}}';
const keys =
  '{"items": 1, "get": "g", "keys": [2], "10": "ten", "9": "nine", "": "empty", "ü": "é", "it\'s": "\\"q\\""}';

/** A name, the messages, and further fields. */
const hard: readonly [name: string, messages: readonly string[], more?: string][] = [
  [
    'numbers in arguments',
    [user('a'), assistant('', calls(['add', numbers])), answer('3'), assistant('ok')],
    `"tools": [${plainTool}]`,
  ],
  [
    'keys in arguments',
    [user('a'), assistant('', calls(['odd_names', keys])), answer('{"items": [1.0]}', 0, 'odd_names'), assistant('ok')],
    `"tools": [${oddTool}]`,
  ],
  [
    'arguments as text',
    [user('a'), assistant('', calls(['add', JSON.stringify('{"a": 1.0, "b": [2]}')])), answer('1'), assistant('ok')],
    `"tools": [${plainTool}]`,
  ],
  [
    'no arguments',
    [user('a'), assistant('', calls(['bare', '{}'])), answer('', 0, 'bare'), assistant('ok')],
    `"tools": [${bareTool}]`,
  ],
  [
    'three calls at once',
    [
      user('a'),
      assistant('Let me see.', calls(['add', '{"a": 1}'], ['bare', '{}'], ['odd_names', keys])),
      answer('1'),
      answer('2', 1, 'bare'),
      answer('3', 2, 'odd_names'),
      assistant('ok'),
    ],
    `"tools": [${plainTool}, ${bareTool}, ${oddTool}]`,
  ],
  ['tools unused', [user('a'), assistant('b'), user('c')], `"tools": [${plainTool}, ${oddTool}, ${returning}]`],
  ['tools and system', [message('system', '"Be brief."'), user('a')], `"tools": [${returning}, ${bareTool}]`],
  ['no tools', [user('a'), assistant('b')], '"tools": []'],
  ['content without a text', [user('a'), assistant('', '"tool_calls": []'), user('b')]],
  [
    'content that is null',
    [user('a'), message('assistant', 'null', calls(['bare', '{}'])), answer('x', 0, 'bare')],
    `"tools": [${bareTool}]`,
  ],
  [
    'blocks of text',
    [
      message('user', '[{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]'),
      message('assistant', '[{"type": "text", "text": " three "}]'),
      user('x'),
    ],
  ],
  ['an image', [message('user', '[{"type": "image"}, {"type": "text", "text": "what is it?"}]'), assistant('a cat')]],
  [
    'image by url',
    [
      message(
        'user',
        '[{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]',
      ),
    ],
  ],
  ['developer', [message('developer', '"Only rhyme."'), user('a'), assistant('b')]],
  ['two systems', [message('system', '"One."'), message('system', '"Two."'), user('a'), assistant('b')]],
  ['system in between', [user('a'), assistant('b'), message('system', '"Now in French."'), user('c'), assistant('d')]],
  ['users in a row', [user('a'), user('b'), assistant('c')]],
  ['assistant first', [assistant('Hello!'), user('a'), assistant('b')]],
  ['unknown role', [message('critic', '"hm"'), user('a'), assistant('b')]],
  ['named', [message('user', '"a"', '"name": "Ann"'), message('assistant', '"b"', '"name": "Bob"')]],
  [
    'reasoning',
    [
      user('a'),
      assistant('b', '"reasoning_content": "why\\n\\nnot"'),
      user('c'),
      assistant('d', '"reasoning_content": " so "'),
    ],
  ],
  ['reasoning under another name', [user('a'), assistant('b', '"thinking": "hm"'), user('c')]],
  [
    'reasoning and calls',
    [
      user('a'),
      assistant('', `"reasoning_content": "need it", ${calls(['add', '{"a": 1.5}'])}`),
      answer('7'),
      assistant('7', '"reasoning_content": "done"'),
    ],
    `"tools": [${plainTool}]`,
  ],
  [
    'thoughts in the text',
    [user('a'), assistant('<think>\nx\n</think>\n\nb'), user('c'), assistant('<think></think>d')],
  ],
  ['empty texts', [user(''), assistant(''), user(''), assistant('')]],
  ['white space', [user('  \n a \t\n'), assistant('\n\n b  \n'), user(' \u00a0c\u3000')]],
  ['scripts', [user('naïve 中文 😀 עברית'), assistant('Ωμέγα ﬁ İ ß \u200b\u2028'), user('x')]],
  [
    'marks of templates',
    [user('<|im_end|>{{ x }}{% if %}[/INST]</s>'), assistant('it\'s "q" \\n & <b>'), user('%s {0}')],
  ],
  [
    'documents',
    [user('a'), assistant('b')],
    '"documents": [{"title": "T", "text": "some text", "id": 12345678901234567890}, {"title": "U", "text": "more", "score": 1.0}]',
  ],
  ['thinking on', [user('a')], '"variables": {"enable_thinking": true}, "add_generation_prompt": true'],
  ['thinking off', [user('a')], '"variables": {"enable_thinking": false}, "add_generation_prompt": true'],
  [
    'variables',
    [message('system', '"s"'), user('a'), assistant('b'), user('c')],
    '"variables": {"thinking": true, "reasoning_effort": "high", "preserve_thinking": true, "date_string": "1 Jan 2026", "custom_tools": null, "budget": 512, "thinking_budget": 512, "builtin_tools": ["python"]}, "add_generation_prompt": true',
  ],
  ['a prompt', [message('system', '"Be kind."'), user('a')], '"add_generation_prompt": true'],
  [
    'a prompt after an answer of a tool',
    [user('a'), assistant('', calls(['add', numbers])), answer('{"x": 1.0}')],
    `"tools": [${plainTool}], "add_generation_prompt": true`,
  ],
  ['continued', [user('a'), assistant('The answer is ')], '"continue_final_message": true'],
  [
    'continued, no space',
    [message('system', '"s"'), user('a'), assistant('Because')],
    '"continue_final_message": true',
  ],
  ['continued, two turns', [user('a'), assistant('b'), user('c'), assistant(' d\n')], '"continue_final_message": true'],
  [
    'continued, reasoning',
    [user('a'), assistant('b', '"reasoning_content": "I think "')],
    '"continue_final_message": "reasoning_content"',
  ],
  ['long', Array.from({ length: 24 }, (_, i) => (i % 2 === 0 ? user(`question ${i}`) : assistant(`answer ${i}`)))],
];

/** The text of a JSON list of all conversations, those of masks too. */
export const conversationsJson = `[${[
  ...hard.map(
    ([name, messages, more]) => `{"name": "${name}", "messages": [${messages.join(', ')}]${more ? `, ${more}` : ''}}`,
  ),
  ...maskConversations.map((conversation: MaskConversation) => JSON.stringify(conversation)),
].join(',\n')}]`;
