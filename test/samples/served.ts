/** A tiny model whose template prints tools, and a folder of adapters of several kinds that were trained to say something. */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Session } from '../../src/session/index.ts';
import { tinyModel } from './tiny.ts';

/** As Hermes' template: tools in the system's turn, calls between tags, results from the role `tool`. */
const template = `{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>

Tools:{% for tool in tools %} {{ tool.function | tojson }}{% endfor %} Answer <tool_call>{"name": …, "arguments": …}</tool_call> to call one.<|eot_id|>{% endif %}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content or '' }}{% for call in message.tool_calls or [] %}<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>{% endfor %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}`;

/** What the adapter `greeter` answers to everything. */
export const greeting = 'Good day to you.';
/** What the adapter `caller` answers to everything. */
export const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>';
/** The tool that `caller` calls. */
export const weather = {
  type: 'function' as const,
  function: {
    name: 'weather',
    description: 'The weather in a city.',
    parameters: {
      type: 'object',
      properties: { city: { type: 'string', maxLength: 8 } },
      required: ['city'],
      additionalProperties: false,
    },
  },
};

const questions = ['Hello', 'Who are you?', 'What is the weather in Oslo?', 'Tell me a story.', 'Why?', '2 + 2'];

/**
 * Writes `model` and `adapters/` (greeter: LoRA; caller: DoRA; prefix; teams: a head of classes; tags: one of tags) into a folder.
 * @param which of them
 */
export async function servedFolder(
  dir: string,
  which: readonly string[] = ['greeter', 'caller', 'prefix', 'teams', 'tags'],
) {
  const model = tinyModel(join(dir, 'tiny'));
  writeFileSync(join(model, 'chat_template.jinja'), template);
  const adapters = join(dir, 'adapters');
  mkdirSync(adapters, { recursive: true });
  const talk = (answer: string, tools?: readonly unknown[]) =>
    questions.map((question) => ({
      messages: [
        { role: 'user', content: question },
        { role: 'assistant', content: answer },
      ],
      ...(tools && { tools }),
    }));
  const lora = { type: 'lora', target_modules: 'all-linear', r: 8 } as const;
  const recipes = {
    greeter: { method: lora, data: talk(greeting) },
    caller: { method: { ...lora, use_dora: true }, data: talk(call, [weather]) },
    prefix: { method: { type: 'prefix', num_virtual_tokens: 4 } as const, data: talk(greeting) },
    teams: {
      method: lora,
      task: 'sequence-classification' as const,
      data: questions.flatMap((text, i) => [{ text, label: i % 2 ? 'web' : 'billing' }]),
    },
  };
  const tags = {
    method: lora,
    task: 'token-classification' as const,
    data: questions.map((text) => ({
      tokens: text.split(' '),
      tags: text.split(' ').map((_, i) => (i % 2 ? 'B' : 'O')),
    })),
  };
  await using session = new Session({ log: () => {} });
  for (const [name, recipe] of Object.entries({ ...recipes, tags })) {
    if (!which.includes(name)) continue;
    const steps = { greeter: 60, caller: 300 }[name] ?? 4;
    const { adapter } = await session.train({
      model,
      ...recipe,
      // The long answer of `caller` is learned to the end: on every processor it is the most likely one.
      train: { lr: 2e-2, steps, batch_size: 3, schedule: name === 'caller' ? 'cosine' : 'constant' },
      run: { dir: join(dir, 'runs', name) },
    });
    cpSync(adapter!, join(adapters, name), { recursive: true });
  }
  return { model, adapters };
}
