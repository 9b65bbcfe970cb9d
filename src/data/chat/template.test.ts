import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { GraftError, packageRoot } from '../../base/index.ts';
import { ChatTemplate, type Message, tokenizerOf } from '../index.ts';

const read = (name: string) => JSON.parse(readFileSync(join(packageRoot, 'test', 'golden', 'chat', name), 'utf8'));
const { templates, special, conversations, cases, tools, now } = read('chat.json') as {
  templates: Record<string, string>;
  special: Record<string, Record<string, string>>;
  conversations: Record<string, Message[]>;
  cases: {
    template: string;
    conversation: string;
    args: { add_generation_prompt?: boolean; tools?: unknown };
    rendered?: string;
    error?: string;
    message?: string;
  }[];
  now: string;
  tools: unknown[];
};

// Not supported: filters that the Jinja library lacks, and Python's 1.0, which JSON.parse does not distinguish from 1.
const unsupported = new Set([
  'feature-dictsort-sort on many-turns',
  'feature-dictsort-sort on unicode',
  'qwen-tools on two-tool-calls',
  'mistral on two-tool-calls',
]);

test("templates render as transformers' apply_chat_template", (context) => {
  context.mock.timers.enable({ apis: ['Date'], now: new Date(now).getTime() });
  let [same, refused] = [0, 0];
  for (const { template, conversation, args, rendered, error, message } of cases) {
    const { tools: withTools, add_generation_prompt: addGenerationPrompt = false, ...more } = args;
    if ('continue_final_message' in more) continue; // not offered
    const chat = new ChatTemplate(templates[template]!, { ...special[template], ...(more as Record<string, string>) });
    const render = () =>
      chat.render(conversations[conversation]!, { addGenerationPrompt, ...(withTools ? { tools } : {}) });
    const name = `${template} on ${conversation} ${JSON.stringify(args)}`;
    if (error !== undefined) {
      assert.throws(
        render,
        (e) => e instanceof GraftError && (error !== 'TemplateError' || e.message.includes(message!)),
        name,
      );
      refused++;
    } else if (!unsupported.has(`${template} on ${conversation}`)) {
      assert.equal(render(), rendered, name);
      same++;
    }
  }
  assert.ok(same >= 340 && refused >= 34, `${same} rendered, ${refused} refused`);
});

test('spans found by rendering prefixes equal those of {% generation %} marks, end-of-turn token included', () => {
  const chat = (name: string) => new ChatTemplate(templates[name]!, special[name]);
  let compared = 0;
  for (const [name, messages] of Object.entries(conversations)) {
    if (messages.some((m) => typeof m.content !== 'string' || m.content === '')) continue;
    const marked = chat('chatml-generation').learned(messages);
    assert.deepEqual(chat('chatml').learned(messages), marked, name);
    const last = marked.spans.at(-1);
    if (last) assert.ok(marked.text.slice(...last).endsWith('<|im_end|>'));
    compared += marked.spans.length;
  }
  assert.ok(compared >= 8, `${compared} turns`);
});

/** Templates with {% generation %} blocks, to compare with themselves without the blocks. */
const markedTemplates: Record<string, string> = {
  // The system prompt is in the last user turn (Mistral), so the rendering of a prefix is no prefix of the rendering.
  'system prompt last': `{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}[INST] {% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]{% else %}{% generation %}{{ ' ' + m.content + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}`,
  // An end token where no generation prompt follows (Phi-3).
  'end token last': `{% for m in messages %}{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}`,
  // Reasoning only after the last question (Qwen3).
  'reasoning last': `{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{% if loop.index0 > ns.last %}{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`,
};
const unmarked = (source: string) => source.replaceAll(/\{% (end)?generation %\}/g, '');
const turns = (...contents: string[]): Message[] =>
  contents.map((content, i) => ({ role: i % 2 === 0 ? 'user' : 'assistant', content }));

test('turns that are rendered differently at the end of a conversation are found', () => {
  const system = { role: 'system', content: 'Be kind.' };
  const dialogues: Message[][] = [
    turns('a', 'b', 'c', 'd', 'e'),
    [system, ...turns('Hello', 'Hello', 'Hello?', 'Hello', 'Bye')],
    [system, ...turns('x < y?', 'if (x < y) {', 'and?', 'no > here', 'so')],
    [
      ...turns('why', 'so', 'and', 'then').with(1, { role: 'assistant', content: 'so', reasoning: 'hm' }),
      ...turns('f'),
    ],
  ];
  let compared = 0;
  for (const [name, source] of Object.entries(markedTemplates))
    for (const messages of dialogues) {
      const marked = new ChatTemplate(source).learned(messages);
      const byRendering = new ChatTemplate(unmarked(source)).learned(messages);
      assert.deepEqual(byRendering, marked, `${name}: ${JSON.stringify(marked.text)}`);
      compared += byRendering.spans.length;
    }
  assert.equal(compared, 3 * 4 * 2);
});

test('a turn that only calls a function', () => {
  const call = { role: 'assistant', content: '', tool_calls: [{ function: { name: 'f', arguments: { x: 1 } } }] };
  const messages = [
    ...turns('a'),
    call,
    { role: 'tool', content: '1' },
    ...turns('b').map((m) => ({ ...m, role: 'user' })),
  ];
  for (const [name, turn] of [
    ['qwen-tools', '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>'],
    ['phi', '<|end|>'],
  ] as const) {
    const { text, spans } = new ChatTemplate(templates[name]!, special[name]).learned(messages);
    assert.deepEqual(
      spans.map((span) => text.slice(...span)),
      [turn],
      name,
    );
  }
});

test('templates get documents, reasoning under any of its names, and further variables', () => {
  const chat = new ChatTemplate(
    '{{ documents[0].title }} {{ messages[0].reasoning_content }} {{ messages[0].thinking }} {{ enable_thinking }}',
  );
  const rendered = chat.render([{ role: 'assistant', content: 'a', reasoning: 'r' }], {
    documents: [{ title: 't' }],
    variables: { enable_thinking: false },
  });
  assert.equal(rendered, 't r r False');
});

test('turns before `from` are not learned', () => {
  const messages = conversations['many-turns']!;
  for (const name of ['chatml', 'chatml-generation']) {
    const chat = new ChatTemplate(templates[name]!, special[name]);
    const all = chat.learned(messages).spans;
    assert.equal(all.length, 2);
    assert.deepEqual(chat.learned(messages, undefined, (i) => i >= 3).spans, all.slice(1), name);
  }
});

test('a template whose turns cannot be found is refused with a remedy', () => {
  const chat = new ChatTemplate('{{ messages | length }}{% for m in messages %}{{ m.content | upper }}{% endfor %}');
  assert.throws(
    () => chat.learned(conversations['one-turn']!),
    (e) =>
      e instanceof GraftError &&
      /no \{% generation %\} blocks/.test(e.message) &&
      /train on all tokens/.test(e.message),
  );
  assert.throws(() => new ChatTemplate('{% for m in messages %}'), GraftError);
});

const model = process.env.GRAFT_TEST_MODEL;
const skip = model && existsSync(model) ? false : 'set GRAFT_TEST_MODEL to the GGUF file of SmolLM2-135M-Instruct';

test("assistant tokens by {% generation %} marks equal transformers' mask", { skip }, () => {
  const masks = read('masks.json').cases as { template: string; conversation: string; ids: number[]; mask: number[] }[];
  const tokenizer = tokenizerOf(model!);
  let compared = 0;
  for (const { template, conversation, ids, mask } of masks) {
    if (!templates[template]!.includes('endgeneration')) continue;
    compared++;
    const { text, spans } = new ChatTemplate(templates[template]!, special[template]).learned(
      conversations[conversation]!,
    );
    const got = tokenizer.encodeWithMask(text, spans);
    assert.deepEqual([...got.ids], ids, `${template} on ${conversation}`);
    assert.deepEqual([...got.mask], mask, `${template} on ${conversation}`);
  }
  assert.ok(compared >= 6, `${compared} cases`);
});
