import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { GraftError, packageRoot } from '../base/index.ts';
import { ChatTemplate, type Message, tokenizerOf } from './index.ts';

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

// Filters that the Jinja library lacks, and 1.0 as Python prints it, which JSON.parse cannot tell from 1.
const known = new Set([
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
    } else if (!known.has(`${template} on ${conversation}`)) {
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

test('turns before `from` are not learned', () => {
  const messages = conversations['many-turns']!;
  for (const name of ['chatml', 'chatml-generation']) {
    const chat = new ChatTemplate(templates[name]!, special[name]);
    const all = chat.learned(messages).spans;
    assert.equal(all.length, 2);
    assert.deepEqual(chat.learned(messages, undefined, 3).spans, all.slice(1), name);
  }
});

test('a template whose turns cannot be told apart says what to do', () => {
  const chat = new ChatTemplate(
    '{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}',
  );
  assert.throws(
    () => chat.learned(conversations['one-turn']!),
    (e) => e instanceof GraftError && /no assistant marks/.test(e.message) && /\{% generation %\}/.test(e.message),
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
