import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { GraftError, packageRoot } from '../../base/index.ts';
import { parseJsonExactly } from '../exact-json.ts';
import { ChatTemplate, type Message, tokenizerOf } from '../index.ts';
import { NONE } from './trace.ts';
import { spansOfTurns } from './turns.ts';

const read = (name: string) =>
  parseJsonExactly(readFileSync(join(packageRoot, 'test', 'golden', 'chat', name), 'utf8'));
const { templates, special, conversations, cases, tools, now } = read('chat.json') as {
  templates: Record<string, string>;
  special: Record<string, Record<string, string>>;
  conversations: Record<string, Message[]>;
  cases: {
    template: string;
    conversation: string;
    args: { add_generation_prompt?: boolean; continue_final_message?: boolean; tools?: unknown };
    rendered?: string;
    error?: string;
    message?: string;
  }[];
  now: string;
  tools: unknown[];
};

test("templates render as transformers' apply_chat_template", (context) => {
  context.mock.timers.enable({ apis: ['Date'], now: new Date(now).getTime() });
  let [same, refused] = [0, 0];
  for (const { template, conversation, args, rendered, error, message } of cases) {
    const {
      tools: withTools,
      add_generation_prompt: addGenerationPrompt = false,
      continue_final_message: continueFinalMessage = false,
      ...more
    } = args;
    const chat = new ChatTemplate(templates[template]!, { ...special[template], ...(more as Record<string, string>) });
    const render = () =>
      chat.render(conversations[conversation]!, {
        addGenerationPrompt,
        continueFinalMessage,
        ...(withTools ? { tools } : {}),
      });
    const name = `${template} on ${conversation} ${JSON.stringify(args)}`;
    if (error !== undefined) {
      assert.throws(
        render,
        (e) => e instanceof GraftError && (error !== 'TemplateError' || e.message.includes(message!)),
        name,
      );
      refused++;
    } else {
      assert.equal(render(), rendered, name);
      same++;
    }
  }
  assert.ok(same >= 363 && refused >= 35, `${same} rendered, ${refused} refused`);
});

test('spans that are found equal those of {% generation %} marks, end-of-turn token included', () => {
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
  // The system prompt is kept in its own turn and printed in the first question.
  'system prompt kept': `{% set ns = namespace(kept='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.kept = m.content + '\n\n' %}{% elif m.role == 'user' %}{{ '<turn>user\n' + ns.kept }}{% set ns.kept = '' %}{{ m.content + '<end>\n' }}{% else %}{{ '<turn>model\n' }}{% generation %}{{ m.content + '<end>' }}{% endgeneration %}{{ '\n' }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}`,
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
  assert.equal(compared, 4 * 4 * 2);
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

test('what is not clear is refused with a remedy', () => {
  const refused: [source: string, why: RegExp][] = [
    ["{{ messages | map(attribute='content') | join(' ') }}", /outside of a loop/],
    ['{% for n in [1, 2] %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}', /in two places/],
    [
      "{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = (ns.all ~ m.content) | upper %}{{ ns.all }}{% endfor %}",
      /several messages/,
    ],
    ['{% for m in messages | reverse %}{{ m.content }}{% endfor %}', /in another order/],
    [
      '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}',
      /begins with "<assistant>", and the generation prompt is "Answer:"/,
    ],
  ];
  for (const [source, why] of refused) {
    assert.throws(
      () => new ChatTemplate(source).learned(turns('a', 'b', 'c', 'd')),
      (e) =>
        e instanceof GraftError && why.test(e.message) && /Put \{% generation %\}.*train on all tokens/.test(e.message),
      source,
    );
  }
  assert.throws(() => new ChatTemplate('{% for m in messages %}'), GraftError);
});

/** What is learned of a conversation, as texts. */
function learnedOf(source: string, messages: Message[], special: Record<string, string> = {}): string[] {
  const { text, spans } = new ChatTemplate(source, special).learned(messages);
  return spans.map((span) => text.slice(...span));
}
const call = (name: string) => ({ type: 'function', function: { name, arguments: { x: name } } });
const calling = (...names: string[]): Message => ({ role: 'assistant', content: '', tool_calls: names.map(call) });
const tool = (content: string): Message => ({ role: 'tool', content });

test('what the generation prompt gives is not learned, and what it does not give is', () => {
  const body =
    "{{ '<' ~ m.role ~ '>' ~ m.content }}{% for c in m.tool_calls or [] %}{{ '<call>' ~ c.function.name }}{% endfor %}<end>";
  const opensThought = `{% for m in messages %}${body}{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}`;
  const talk = [...turns('a', '<think>\nhm</think>b', 'c', '<tab'), ...turns('d'), calling('f', 'g')];
  assert.deepEqual(learnedOf(opensThought, talk), ['hm</think>b<end>', '<tab<end>', '<call>f<call>g<end>']);
  // The header is printed at the end of every rendering.
  const always = `{% for m in messages %}${body}{% endfor %}<assistant>`;
  assert.deepEqual(learnedOf(always, turns('a', 'b', 'c', 'd')), ['b<end>', 'd<end>']);
  // The prompt closes the user's turn, or opens another one before.
  const closing = `{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% if m.role == 'assistant' or not loop.last %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<end><assistant>{% endif %}`;
  assert.deepEqual(learnedOf(closing, turns('a', 'b', 'c', 'd')), ['b<end>', 'd<end>']);
  const reminding = `{% for m in messages %}${body}{% endfor %}{% if add_generation_prompt %}<system>Be brief.<end><assistant>{% endif %}`;
  assert.deepEqual(learnedOf(reminding, turns('a', 'b', 'c', 'd')), ['b<end>', 'd<end>']);
  // No prompt after an answer, and yet a header.
  const onlyAfterUser = `{% for m in messages %}${body}{% endfor %}{% if add_generation_prompt and messages[-1].role == 'user' %}<assistant>{% endif %}`;
  const inARow = [...turns('a', 'b'), { role: 'assistant', content: 'c' }];
  assert.deepEqual(learnedOf(onlyAfterUser, inARow), ['b<end>', 'c<end>']);
  assert.deepEqual(learnedOf(always, turns('a', 'b').reverse()), ['b<end>']);
});

test('the end of a turn is learned wherever the template prints it, and nothing of the next turn', () => {
  const talk = turns('a', 'b', 'c', 'd');
  const byNext = `{% set ns = namespace(open=false) %}{% for m in messages %}{% if ns.open and m.role == 'user' %}<end>{% endif %}<{{ m.role }}>{{ m.content }}{% set ns.open = m.role == 'assistant' %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
  assert.deepEqual(learnedOf(byNext, talk), ['b<end>', 'd']);
  const separated = `{% for m in messages %}{% if not loop.first %}<end>{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}<end>{% if add_generation_prompt %}<assistant>{% endif %}`;
  assert.deepEqual(learnedOf(separated, talk), ['b<end>', 'd<end>']);
  const other = `{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '<return>' if loop.last and m.role == 'assistant' else '<end>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
  assert.deepEqual(learnedOf(other, talk), ['b<end>', 'd<return>']);
  const headerInTurn = `{% for m in messages %}{{ m.content }}<end>{% if m.role == 'user' %}<assistant>{% elif not loop.last %}<user>{% endif %}{% endfor %}`;
  assert.deepEqual(learnedOf(headerInTurn, talk), ['b<end><user>', 'd<end>'], 'GLM ends a turn with the next role');
});

test('a message belongs to its own turn, however the template prints it', () => {
  const talk = [...turns('  a', ' b b '), ...turns('b b', 'a')];
  const right = ['b b<end>', 'a<end>'];
  const header = '<{{ m.role }}>';
  const prompt = '{% if add_generation_prompt %}<assistant>{% endif %}';
  const printing: Record<string, string> = {
    trimmed: `{% for m in messages %}${header}{{ m.content | trim }}<end>{% endfor %}`,
    'by a macro': `{% macro turn(m) %}${header}{{ m.content.strip() }}<end>{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}`,
    'by number': `{% for i in range(messages | length) %}{% set m = messages[i] %}${header}{{ m['content'] | trim }}<end>{% endfor %}`,
    'from a block': `{% for m in messages %}{% set text %}{{ '<' ~ m.role ~ '>' ~ m.content }}{% endset %}{{ text.split('>')[0] ~ '>' ~ text.split('>')[1].strip() }}<end>{% endfor %}`,
    collected: `{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all ~ '<' ~ m.role ~ '>' ~ m.content.strip() ~ '<end>' %}{% endfor %}{{ ns.all }}`,
    'the last one apart': `{% for m in messages[:-1] %}${header}{{ m.content | trim }}<end>{% endfor %}{% set m = messages[-1] %}${header}{{ m.content | trim }}<end>`,
    'before continue': `{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{{ m.content | trim }}<end>{% continue %}{% endif %}<user>{{ m.content }}<end>{% endfor %}`,
  };
  for (const [name, source] of Object.entries(printing))
    assert.deepEqual(learnedOf(source + prompt, talk), right, name);
});

test("the answer of a tool is not learned, nor is the assistant's text where another turn repeats it", () => {
  const within = `{% for m in messages %}{% if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{% endfor %}{% if m.tool_calls %}{% for k in range(loop.index0 + 1, messages | length) %}{% set answer = messages[k] %}{% if answer.role == 'tool' %}<tool>{{ answer.content }}</tool>{% endif %}{% endfor %}{% endif %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
  assert.deepEqual(learnedOf(within, [...turns('a'), calling('f', 'g'), tool('1'), tool('2')]), [
    '<call>f<call>g',
    '<end>',
  ]);
  const named = `{% for m in messages %}<{{ m.role }}>{% if m.role == 'tool' %}{% for n in messages %}{% for c in n.tool_calls or [] %}{{ c.function.name }}={% endfor %}{% endfor %}{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
  const talk = [...turns('a'), calling('f'), tool('1'), { role: 'assistant', content: 'f is 1' }];
  assert.deepEqual(learnedOf(named, talk), ['<call>f{"x": "f"}<end>', 'f is 1<end>']);
});

test('a header that stands in the turn again is learned where the model goes on, not after the end of text', () => {
  const source = `{% for m in messages %}{% if m.reasoning_content %}<assistant>{{ m.reasoning_content }}<end>{% endif %}<{{ m.role }}>{{ m.content }}<stop>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}`;
  const talk = [...turns('a'), { role: 'assistant', content: 'b', reasoning_content: 'r' }];
  assert.deepEqual(learnedOf(source, talk), ['r<end><assistant>b<stop>']);
  assert.deepEqual(learnedOf(source, talk, { eos_token: '<end>' }), ['r<end>', 'b<stop>']);
});

test('finding the turns renders as much text for each message, however many there are', () => {
  const rendered = (n: number) => {
    let messages = 0;
    const talk = turns(...Array.from({ length: n }, (_, i) => `text ${i}`));
    const pieces = (part: readonly Message[], prompts: boolean) => {
      messages += part.length;
      return part
        .flatMap(({ role, content }, turn) => [
          { text: `<${role}>`, turn, innerTurn: turn, source: NONE },
          { text: content!, turn, innerTurn: turn, source: turn },
        ])
        .concat(prompts ? [{ text: '<assistant>', turn: NONE, innerTurn: NONE, source: NONE }] : []);
    };
    assert.equal(spansOfTurns(pieces, talk, () => true, '').spans.length, n / 2);
    return messages / n;
  };
  assert.ok(rendered(200) <= rendered(20), `${rendered(20)} and ${rendered(200)} renderings of each message`);
});

test('the last message is continued in the field that is named, and what cannot be continued is refused', () => {
  const chat = new ChatTemplate(
    '{% for m in messages %}<{{ m.role }}>{{ m.thinking }}|{{ m.content[0].text if m.content is not string else m.content | trim }}<end>{% endfor %}',
  );
  const answer = (content: unknown) => [...turns('a'), { role: 'assistant', content, reasoning: 'so ' }] as Message[];
  const before = '<user>|a<end><assistant>so |';
  assert.equal(chat.render(answer('b '), { continueFinalMessage: true }), `${before}b`);
  assert.equal(chat.render(answer([{ type: 'text', text: 'b ' }]), { continueFinalMessage: true }), `${before}b `);
  assert.equal(chat.render(answer('b'), { continueFinalMessage: 'reasoning' }), '<user>|a<end><assistant>so ');
  const refused = (messages: Message[], options: object, why: RegExp) =>
    assert.throws(
      () => chat.render(messages, options),
      (e) => e instanceof GraftError && why.test(e.message),
    );
  refused([], { continueFinalMessage: true }, /no text to continue in 'content'/);
  refused(answer('b'), { continueFinalMessage: 'name' }, /no text to continue in 'name'/);
  refused([{ role: 'user', content: 'a', name: 'b' }], { continueFinalMessage: 'name' }, /does not print 'name'/);
  refused(answer('b'), { continueFinalMessage: true, addGenerationPrompt: true }, /not both/);
  const silent = new ChatTemplate('{% for m in messages if m.content == "x" %}{{ m.content }}{% endfor %}');
  assert.throws(() => silent.render(answer('b'), { continueFinalMessage: true }), /does not print the last message/);
});

test('fields that are null are as if they were not there, and conversations with tools have their template', () => {
  const names = new ChatTemplate('{% for m in messages %}{{ m.keys() | list }}{% endfor %}');
  const nulls = { role: 'assistant', content: 'a', tool_calls: null, reasoning_content: null };
  assert.equal(names.render([nulls]), "['role', 'content']");
  const chat = new ChatTemplate('plain', {}, 'with tools{% generation %}!{% endgeneration %}');
  assert.equal(chat.render(turns('a')), 'plain');
  assert.equal(chat.render(turns('a'), { tools: [] }), 'with tools!');
  assert.equal(chat.learned(turns('a'), undefined).text, 'plain');
});

const model = process.env.GRAFT_TEST_MODEL;
const skip = model && existsSync(model) ? false : 'set GRAFT_TEST_MODEL to the GGUF file of SmolLM2-135M-Instruct';

test("assistant tokens by {% generation %} marks equal transformers' mask", { skip }, () => {
  const { cases: masks } = read('masks.json') as {
    cases: { template: string; conversation: string; ids: number[]; mask: number[] }[];
  };
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
