import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { GraftError, packageRoot } from '../base/index.ts';
import { ChatTemplate, type Message, tokenizerOf } from './index.ts';

const read = (name: string) => JSON.parse(readFileSync(join(packageRoot, 'test', 'golden', 'chat', name), 'utf8'));
const { templates, special, conversations, cases, tools } = read('chat.json') as {
  templates: Record<string, string>;
  special: Record<string, Record<string, string>>;
  conversations: Record<string, Message[]>;
  cases: { template: string; conversation: string; args: { add_generation_prompt?: boolean; tools?: unknown }; rendered?: string; error?: string }[];
  tools: unknown[];
};

// What the Jinja library gets wrong: it compares '' with false as JavaScript's == does.
const known = new Set(['llama2-inst on empty']);

test("templates render as transformers' apply_chat_template", () => {
  let [same, refused] = [0, 0];
  for (const { template, conversation, args, rendered, error } of cases) {
    if (templates[template]!.includes('strftime_now')) continue; // of the clock
    const chat = new ChatTemplate(templates[template]!, special[template]);
    const render = () =>
      chat.render(conversations[conversation]!, {
        addGenerationPrompt: args.add_generation_prompt ?? false,
        ...(args.tools ? { tools } : {}),
      });
    const name = `${template} on ${conversation} ${JSON.stringify(args)}`;
    if (known.has(`${template} on ${conversation}`)) {
      assert.notEqual(render(), rendered, `${name} is right now: take it off the list`);
      continue;
    }
    if (error !== undefined) {
      assert.throws(render, GraftError, name);
      refused++;
    } else {
      assert.equal(render(), rendered, name);
      same++;
    }
  }
  assert.ok(same >= 60 && refused >= 3, `${same} rendered, ${refused} refused`);
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
    const { text, spans } = new ChatTemplate(templates[template]!, special[template]).learned(conversations[conversation]!);
    const got = tokenizer.encodeWithMask(text, spans);
    assert.deepEqual([...got.ids], ids, `${template} on ${conversation}`);
    assert.deepEqual([...got.mask], mask, `${template} on ${conversation}`);
  }
  assert.ok(compared >= 6, `${compared} cases`);
});
