/** What a server answers: OpenAI's routes and fields, and refusals that name what is wrong. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test from 'node:test';
import { serve } from '../../src/serve/index.ts';
import { call, greeting, weather } from '../samples/served.ts';
import { tinyBert, tinyClassifier } from '../samples/tiny.ts';
import { eventsOf, requests, runningServer } from './running.ts';

const { server, dir, get, post } = await runningServer();
const messages = [{ role: 'user', content: 'Hello' }];
const greet = { model: 'greeter', messages, temperature: 0, max_tokens: 40 };

test('models: the base and each adapter, with its parent', async () => {
  const { body } = await get('/v1/models');
  assert.deepEqual(
    body.data.map(({ id, parent, root, object, task }: Record<string, unknown>) => [id, parent, root, object, task]),
    [
      ['tiny', null, 'tiny', 'model', 'causal-lm'],
      ['caller', 'tiny', 'caller', 'model', 'causal-lm'],
      ['greeter', 'tiny', 'greeter', 'model', 'causal-lm'],
      ['prefix', 'tiny', 'prefix', 'model', 'causal-lm'],
      ['tags', 'tiny', 'tags', 'model', 'token-classification'],
      ['teams', 'tiny', 'teams', 'model', 'sequence-classification'],
    ],
  );
  assert.deepEqual((await get('/v1/models/greeter')).body.id, 'greeter');
  assert.equal((await get('/v1/models/none')).status, 404);
});

test('chat: an adapter answers as it was trained, whole and in pieces, with usage', async () => {
  const { body } = await post('/v1/chat/completions', greet);
  const [choice] = body.choices;
  assert.deepEqual(choice.message, { role: 'assistant', content: greeting, refusal: null });
  assert.equal(choice.finish_reason, 'stop');
  const { prompt_tokens: prompt, completion_tokens: made, total_tokens: total } = body.usage;
  assert.ok(prompt > 10 && made > 5 && total === prompt + made);
  const long = { ...greet, messages: [{ role: 'user', content: 'Tell me a story. '.repeat(8) }] };
  await post('/v1/chat/completions', long);
  const again = await post('/v1/chat/completions', long);
  assert.ok(again.body.usage.prompt_tokens_details.cached_tokens > 0, 'the prompt was in the cache');

  const stream = await post('/v1/chat/completions', {
    ...greet,
    stream: true,
    stream_options: { include_usage: true },
  });
  assert.match(stream.headers.get('content-type')!, /^text\/event-stream/);
  const events = eventsOf(stream.text);
  assert.equal(events.pop(), '[DONE]');
  const chunks = events.map((event) => JSON.parse(event));
  const usage = chunks.pop();
  assert.deepEqual([usage.choices, usage.usage.completion_tokens], [[], made]);
  assert.deepEqual(chunks[0].choices[0].delta, { role: 'assistant', content: '' });
  assert.equal(chunks.map(({ choices }) => choices[0].delta.content ?? '').join(''), greeting);
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  assert.ok(chunks.length > 4 && chunks.every(({ id, usage: none }) => id === chunks[0].id && none === null));
});

test('chat: several answers, seeds, stop strings, lengths, biases', async () => {
  const base = { model: 'tiny', messages, max_tokens: 12 };
  const ask = async (more: object) => (await post('/v1/chat/completions', { ...base, ...more })).body;
  const three = await ask({ n: 3, seed: 5 });
  const texts = three.choices.map((choice: { message: { content: string } }) => choice.message.content);
  assert.equal(new Set(texts).size, 3);
  assert.deepEqual(
    three.choices.map((choice: { index: number }) => choice.index),
    [0, 1, 2],
  );
  assert.ok(three.usage.completion_tokens > 12 && three.usage.prompt_tokens < 60, 'the prompt counts once');
  const again = await ask({ n: 3, seed: 5 });
  assert.deepEqual(
    again.choices.map((choice: { message: { content: string } }) => choice.message.content),
    texts,
  );
  assert.notEqual((await ask({ seed: 6 })).choices[0].message.content, texts[0]);
  assert.equal((await ask({})).choices[0].finish_reason, 'length');

  const stopped = (await post('/v1/chat/completions', { ...greet, stop: [' to', 'zzz'] })).body.choices[0];
  assert.deepEqual([stopped.message.content, stopped.finish_reason], ['Good day', 'stop']);
  const { body: tokens } = await post('/tokenize', { prompt: 'x', add_special_tokens: false });
  const biased = await ask({ logit_bias: { [tokens.tokens[0]]: 100 }, max_completion_tokens: 3, max_tokens: null });
  assert.equal(biased.choices[0].message.content, 'xxx');
  assert.equal(biased.usage.completion_tokens, 3);
});

test('log-probabilities: of chat with their bytes, of completions with their offsets', async () => {
  const { body } = await post('/v1/chat/completions', { ...greet, logprobs: true, top_logprobs: 2 });
  const { content } = body.choices[0].logprobs;
  assert.equal(content.length, body.usage.completion_tokens);
  const bytes = content.flatMap((token: { bytes: number[] }) => token.bytes);
  assert.equal(Buffer.from(bytes).toString(), greeting);
  for (const { token, logprob, top_logprobs: top } of content) {
    assert.equal(top.length, 2);
    assert.ok(top[0].token === token && top[0].logprob === logprob && top[1].logprob <= logprob && logprob <= 0);
  }
  const stream = await post('/v1/chat/completions', { ...greet, logprobs: true, stream: true });
  const streamed = eventsOf(stream.text)
    .slice(0, -1)
    .flatMap((event) => JSON.parse(event).choices[0].logprobs?.content ?? []);
  assert.equal(streamed.length, content.length);

  const plain = { model: 'tiny', prompt: 'one two', max_tokens: 6, temperature: 0, logprobs: 1 };
  const [choice] = (await post('/v1/completions', plain)).body.choices;
  assert.deepEqual([choice.logprobs.tokens.length, choice.logprobs.text_offset[0]], [6, 0]);
  assert.equal(Object.keys(choice.logprobs.top_logprobs[0]).length, 1);
});

test('log-probabilities of completions: no token hides another, and offsets are places in the text', async () => {
  const fields = { model: 'tiny', prompt: 'one two', max_tokens: 40, temperature: 1.8, seed: 3, logprobs: 20 };
  const [choice] = (await post('/v1/completions', fields)).body.choices;
  const { tokens, top_logprobs: top, text_offset: offsets } = choice.logprobs;
  assert.ok(tokens.length > 10 && tokens.some((token: string) => token.startsWith('bytes:\\x')), tokens.join());
  for (const likeliest of top) assert.equal(Object.keys(likeliest).length, 20);
  let whole = 0;
  for (const [i, token] of tokens.entries()) {
    if (token.startsWith('bytes:') || token.startsWith('<|')) continue;
    assert.equal(choice.text.slice(offsets[i]).startsWith(token), true, `${token} at ${offsets[i]} of ${choice.text}`);
    whole++;
  }
  assert.ok(whole > 5, `${whole} tokens are whole characters`);
  const stream = await post('/v1/completions', { ...fields, stream: true });
  const parts = eventsOf(stream.text)
    .slice(0, -1)
    .flatMap((event) => JSON.parse(event).choices[0].logprobs?.text_offset ?? []);
  assert.deepEqual(parts, offsets);
});

test('usage: several answers to a prompt do not count as cached what the first of them computed', async () => {
  const long = { ...greet, messages: [{ role: 'user', content: 'Why do you say so? '.repeat(60) }], n: 4 };
  const cached = async () => (await post('/v1/chat/completions', long)).body.usage.prompt_tokens_details.cached_tokens;
  assert.equal(await cached(), 0);
  assert.ok((await cached()) > 100);
});

test('completions: texts and ids, several prompts, the same text in pieces', async () => {
  const fields = { model: 'prefix', max_tokens: 6, temperature: 0 };
  const { body } = await post('/v1/completions', { ...fields, prompt: ['one two', 'three'], n: 2 });
  assert.equal(body.choices.length, 4);
  assert.equal(body.choices[0].text, body.choices[1].text);
  const { tokens } = (await post('/tokenize', { prompt: 'one two' })).body;
  const ofIds = await post('/v1/completions', { ...fields, prompt: tokens });
  assert.equal(ofIds.body.choices[0].text, body.choices[0].text);
  const stream = await post('/v1/completions', { ...fields, prompt: 'three', stream: true });
  const pieces = eventsOf(stream.text)
    .slice(0, -1)
    .map((event) => JSON.parse(event).choices[0].text);
  assert.equal(pieces.join(''), body.choices[2].text);
});

test('tools: a call that the model writes, whole and in a stream; one that is forced; none', async () => {
  const fields = { model: 'caller', messages, temperature: 0, max_tokens: 90, tools: [weather] };
  const { message, finish_reason: finish } = (await post('/v1/chat/completions', fields)).body.choices[0];
  assert.equal(finish, 'tool_calls', JSON.stringify(message));
  assert.equal(message.content, null);
  assert.match(message.tool_calls[0].id, /^call_/);
  assert.deepEqual(message.tool_calls[0].function, { name: 'weather', arguments: '{"city":"Oslo"}' });
  const stream = await post('/v1/chat/completions', { ...fields, stream: true });
  const deltas = eventsOf(stream.text)
    .slice(0, -1)
    .map((event) => JSON.parse(event).choices[0]);
  const [streamed] = deltas.flatMap(({ delta }) => delta.tool_calls ?? []);
  assert.deepEqual([streamed.index, streamed.function.arguments], [0, '{"city":"Oslo"}']);
  assert.ok(!deltas.some(({ delta }) => delta.content?.includes('tool_call')));
  assert.equal(deltas.at(-1).finish_reason, 'tool_calls');

  for (const choice of ['required', { type: 'function', function: { name: 'weather' } }]) {
    const forced = { ...fields, model: 'tiny', tool_choice: choice, temperature: 1, seed: 3, max_tokens: 200 };
    const answer = (await post('/v1/chat/completions', forced)).body.choices[0];
    assert.equal(answer.finish_reason, 'tool_calls', JSON.stringify(answer));
    for (const { function: called } of answer.message.tool_calls) {
      assert.equal(called.name, 'weather');
      assert.deepEqual(Object.keys(JSON.parse(called.arguments)), ['city']);
    }
  }
  const none = await post('/v1/chat/completions', { ...fields, model: 'greeter', tool_choice: 'none' });
  assert.equal(none.body.choices[0].message.content, greeting);
  // A conversation that goes on after a call.
  const turn = [
    ...messages,
    { role: 'assistant', content: null, tool_calls: message.tool_calls },
    { role: 'tool', tool_call_id: message.tool_calls[0].id, content: 'rain' },
  ];
  const { tokens } = (await post('/tokenize', { messages: turn, tools: [weather] })).body;
  const { prompt } = (await post('/detokenize', { tokens })).body;
  assert.ok(prompt.includes(call.replace('</tool_call>', '')) || prompt.includes('"city": "Oslo"'), prompt);
});

test('response_format: JSON, and JSON of a schema', async () => {
  const schema = {
    type: 'object',
    properties: { kind: { enum: ['a', 'b'] }, count: { type: 'integer', minimum: 1, maximum: 9 } },
    required: ['kind', 'count'],
    additionalProperties: false,
  };
  const fields = { model: 'tiny', messages, max_tokens: 300, n: 4 };
  const format = { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } };
  const { choices } = (await post('/v1/chat/completions', { ...fields, response_format: format })).body;
  for (const { message, finish_reason: finish } of choices) {
    assert.equal(finish, 'stop');
    const value = JSON.parse(message.content);
    assert.ok(['a', 'b'].includes(value.kind) && value.count >= 1 && value.count <= 9);
  }
  const any = await post('/v1/chat/completions', {
    ...fields,
    response_format: { type: 'json_object' },
    logit_bias: {},
  });
  for (const { message } of any.body.choices) assert.match(message.content, /^\{/);
});

test('heads: classes with their probabilities, vectors as numbers and as bytes', async () => {
  const { body } = await post('/classify', { model: 'teams', input: ['Hello', 'Why?'] });
  for (const { label, probs, num_classes: classes, probabilities } of body.data) {
    assert.ok(['billing', 'web'].includes(label) && classes === 2);
    assert.equal(Math.max(...probs), probabilities[label]);
  }
  const tagged = (await post('/classify', { model: 'tags', input: 'one two  three' })).body.data[0];
  assert.deepEqual(tagged.words, ['one', 'two', 'three']);
  assert.ok(tagged.tags.length === 3 && tagged.tags.every((tag: string) => ['B', 'O'].includes(tag)));
  // White space between words is no part of them.
  const tokensOf = async (input: string) =>
    (await post('/classify', { model: 'tags', input })).body.usage.prompt_tokens;
  assert.equal(await tokensOf('one two \n\n  three'), await tokensOf('one two three'));
  const vectors = await post('/v1/embeddings', { model: 'tiny', input: ['one', 'two'] });
  assert.deepEqual(
    vectors.body.data.map(({ embedding }: { embedding: number[] }) => embedding.length),
    [32, 32],
  );
  const packed = await post('/v1/embeddings', { model: 'tiny', input: 'one', encoding_format: 'base64' });
  const bytes = Buffer.from(packed.body.data[0].embedding, 'base64');
  assert.equal(bytes.length, 128);
  assert.ok(Math.abs(bytes.readFloatLE(0) - vectors.body.data[0].embedding[0]) < 1e-6);
  assert.equal((await post('/classify', { model: 'greeter', input: 'x' })).body.error.code, 'wrong_task');
  const loaded = await post('/v1/load_lora_adapter', { lora_name: 'more teams', lora_path: 'teams' });
  assert.match(loaded.text, /^Success: .*; it is loaded, and may turn out not to fit, with its first request$/);
  assert.equal((await post('/classify', { model: 'more teams', input: 'Hello' })).status, 200);
  await post('/v1/unload_lora_adapter', { lora_name: 'more teams' });
  assert.equal((await post('/v1/chat/completions', { ...greet, model: 'teams' })).body.error.code, 'wrong_task');
});

test('heads: what would be cut, or read as other tokens, is refused; usage counts what is read', async () => {
  const { tokens } = (await post('/tokenize', { prompt: 'one two' })).body;
  const vectorOf = async (input: unknown) => (await post('/v1/embeddings', { model: 'tiny', input })).body;
  const [ofText, ofIds, ofBare] = [await vectorOf('one two'), await vectorOf(tokens), await vectorOf(tokens.slice(1))];
  assert.deepEqual([ofIds.data, ofBare.data], [ofText.data, ofText.data]);
  assert.deepEqual([ofText.usage.prompt_tokens, ofIds.usage.prompt_tokens], [tokens.length, tokens.length]);
  const invalid = await vectorOf([128, 2, 3, 599]);
  assert.deepEqual([invalid.error?.param, invalid.error?.code], ['input', 'invalid'], JSON.stringify(invalid));

  const long = 'Tell me a story. '.repeat(200);
  const within = 'Tell me a story. '.repeat(110); // more than the tokens of a row by default, and fewer than the context
  for (const [path, model] of [
    ['/v1/embeddings', 'tiny'],
    ['/classify', 'teams'],
    ['/classify', 'tags'],
  ] as const) {
    const { body } = await post(path, { model, input: ['x', long] });
    assert.deepEqual(
      [body.error?.param, body.error?.code],
      ['input[1]', 'context_length_exceeded'],
      `${path} ${model}`,
    );
    // An adapter reads as many tokens as it was trained with, the base all that it can.
    const { body: read } = await post(path, { model, input: within });
    if (model === 'tiny') assert.ok(read.usage.prompt_tokens > 1024, JSON.stringify(read).slice(0, 200));
    else assert.equal(read.error?.code, 'context_length_exceeded');
    const { body: cut } = await post(path, { model, input: ['x', long], truncate_prompt_tokens: -1 });
    const most = model === 'tiny' ? 2048 : 1024;
    assert.ok(cut.usage?.prompt_tokens > most && cut.usage.prompt_tokens < most + 5, JSON.stringify(cut).slice(0, 200));
    const { body: empty } = await post(path, { model, input: '' });
    assert.equal(empty.error?.param, 'input');
  }
  const ends = [await vectorOf(`${within} red`), await vectorOf(`${within} blue`)];
  assert.notDeepEqual(ends[0].data, ends[1].data, 'the end of a long text counts');
  assert.equal((await post('/v1/embeddings', { model: 'greeter', input: 'x' })).body.error.code, 'wrong_task');
});

test('adapters of one request: a weighted sum on the base', async () => {
  const mixed = async (weight: number) => {
    const fields = { ...greet, model: 'tiny', adapters: [{ name: 'greeter', weight }] };
    return (await post('/v1/chat/completions', fields)).body.choices[0].message.content;
  };
  const base = (await post('/v1/chat/completions', { ...greet, model: 'tiny' })).body.choices[0].message.content;
  assert.equal(await mixed(1), greeting);
  assert.equal(await mixed(0), base);
  assert.notEqual(base, greeting);
});

test('health and metrics', async () => {
  const long = { ...greet, messages: [{ role: 'user', content: 'What is a story? '.repeat(8) }] };
  for (let i = 0; i < 2; i++) await post('/v1/chat/completions', long);
  assert.deepEqual((await get('/health')).body, { status: 'ok', model: 'tiny' });
  const { text } = await get('/metrics');
  for (const name of [
    'graft_generated_tokens_total{model="greeter"} ',
    'graft_time_to_first_token_seconds_bucket{le="0.01",model="greeter"} ',
    'graft_answers_total{model="greeter",reason="eos"} ',
    'graft_requests_total{route="/v1/chat/completions",status="200"} ',
    'graft_queue_length 0',
    'graft_adapters 5',
  ])
    assert.ok(text.includes(name), `${name} in ${text}`);
  const found = Number(/^graft_cache_found_tokens (\d+)/m.exec(text)![1]);
  assert.ok(found > 0);
});

test('what is wrong is refused with a status, and named', async (t) => {
  const chat = (more: object) => ['/v1/chat/completions', { ...greet, ...more }] as const;
  const plain = (more: object) => ['/v1/completions', { model: 'tiny', prompt: 'x', ...more }] as const;
  const cases: [path: string, body: unknown, status: number, param: string | null][] = [
    [...chat({ model: 'none' }), 404, 'model'],
    [...chat({ model: undefined }), 400, 'model'],
    [...chat({ messages: [] }), 400, 'messages'],
    [...chat({ messages: [{ role: 'robot', content: 'x' }] }), 400, 'messages[0].role'],
    [
      ...chat({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'x' } }] }] }),
      400,
      'messages[0].content[0].type',
    ],
    [...chat({ messages: [{ role: 'user', content: 'x', cache: true }] }), 400, 'messages[0].cache'],
    [...chat({ temprature: 1 }), 400, 'temprature'],
    [...chat({ temperature: 3 }), 400, 'temperature'],
    [...chat({ top_p: 0 }), 400, 'top_p'],
    [...chat({ n: 1000 }), 400, 'n'],
    [...chat({ stop: Array(17).fill('x') }), 400, 'stop'],
    [...chat({ stop: [''] }), 400, 'stop'],
    [...chat({ logit_bias: { 999999: 1 } }), 400, 'logit_bias'],
    [...chat({ top_logprobs: 2 }), 400, 'top_logprobs'],
    [...chat({ max_tokens: 1, max_completion_tokens: 2 }), 400, 'max_tokens'],
    [...chat({ max_completion_tokens: 2048 }), 400, 'max_tokens'],
    [...plain({ max_tokens: 2047 }), 400, 'max_tokens'],
    [...chat({ stream_options: { include_usage: true } }), 400, 'stream_options'],
    [...chat({ store: true }), 400, 'store'],
    [...chat({ parallel_tool_calls: false }), 400, 'parallel_tool_calls'],
    [...chat({ reasoning_effort: 'high' }), 400, 'reasoning_effort'],
    [...chat({ audio: {} }), 400, 'audio'],
    [...chat({ functions: [] }), 400, 'functions'],
    [...chat({ tool_choice: 'required' }), 400, 'tool_choice'],
    [...chat({ tools: [weather], tool_choice: { type: 'function', function: { name: 'x' } } }), 400, 'tool_choice'],
    [...chat({ tools: [weather, weather] }), 400, 'tools'],
    [
      ...chat({ tools: [{ ...weather, function: { ...weather.function, strict: true } }] }),
      400,
      'tools[0].function.strict',
    ],
    [
      ...chat({ response_format: { type: 'json_schema', json_schema: { schema: { not: {} } } } }),
      400,
      'response_format.json_schema.schema',
    ],
    [...chat({ response_format: { type: 'xml' } }), 400, 'response_format.type'],
    [...chat({ chat_template_kwargs: { enable_thinking: false } }), 400, 'chat_template_kwargs'],
    [...chat({ messages: [{ role: 'user', content: 'word '.repeat(5000) }] }), 400, 'prompt'],
    [...plain({ echo: true }), 400, 'echo'],
    [...plain({ best_of: 3 }), 400, 'best_of'],
    [...plain({ suffix: 'x' }), 400, 'suffix'],
    [...plain({ prompt: [999999] }), 400, 'prompt'],
    [...plain({ prompt: 'a'.repeat(3_000_000) }), 400, 'prompt'],
    [...chat({ messages: [{ role: 'user', content: 'a'.repeat(3_000_000) }] }), 400, 'messages'],
    ['/tokenize', { prompt: 'a'.repeat(3_000_000) }, 400, 'prompt'],
    [...plain({ prompt: [] }), 400, 'prompt'],
    [...plain({ model: 'prefix', adapters: [{ name: 'greeter', weight: 1 }] }), 400, 'adapters'],
    [...plain({ adapters: [{ name: 'none', weight: 1 }] }), 404, 'model'],
    [...plain({ adapters: [{ name: 'greeter' }] }), 400, 'adapters[0].weight'],
    [...plain({ adapters: [{ name: 'prefix', weight: 1 }] }), 400, 'adapters'],
    ['/v1/embeddings', { model: 'tiny', input: 'x', dimensions: 5 }, 400, 'dimensions'],
    ['/v1/embeddings', { model: 'tiny', input: Array(257).fill('x') }, 400, 'input'],
    ['/tokenize', {}, 400, 'prompt'],
    ['/detokenize', { tokens: [1e6] }, 400, 'tokens'],
    ['/v1/load_lora_adapter', { lora_name: 'x', lora_path: '/etc' }, 400, 'lora_path'],
    ['/v1/load_lora_adapter', { lora_name: 'x', lora_path: '../runs/greeter' }, 400, 'lora_path'],
    ['/v1/load_lora_adapter', { lora_name: 'greeter', lora_path: 'greeter' }, 400, 'lora_name'],
    ['/v1/load_lora_adapter', { lora_name: 'tiny', lora_path: 'greeter' }, 400, null],
    ['/v1/unload_lora_adapter', { lora_name: 'none' }, 404, 'lora_name'],
    ['/v1/nothing', {}, 404, null],
    ['/v1/models', {}, 405, null],
  ];
  for (const [path, body, status, param] of cases) {
    const answer = await post(path, body);
    const what = `${path} ${JSON.stringify(body).slice(0, 200)}: ${answer.text.slice(0, 300)}`;
    assert.equal(answer.status, status, what);
    assert.equal(answer.body.error.param, param, what);
    assert.doesNotMatch(answer.text, /\bat \S+ \(|\/tmp\/|\/home\/|node_modules/, what);
    assert.ok(answer.body.error.message.length > 10 && answer.body.error.type.endsWith('_error'), what);
  }
  // Null and defaults are accepted.
  const neutral = {
    store: false,
    service_tier: 'auto',
    audio: null,
    seed: null,
    tools: null,
    stop: null,
    user: 'me',
    metadata: { a: 'b' },
    parallel_tool_calls: true,
    logprobs: false,
    response_format: { type: 'text' },
    modalities: ['text'],
  };
  assert.equal((await post('/v1/chat/completions', { ...greet, ...neutral })).status, 200);
  t.diagnostic(`${cases.length} requests refused`);
});

test('bodies that are no JSON, or too much of it', async () => {
  const send = (body: string | Uint8Array, type = 'application/json') =>
    post('/v1/chat/completions', body, { 'content-type': type });
  const refused: [string | Uint8Array, number, string, string?][] = [
    ['{', 400, 'invalid_json'],
    ['', 400, 'invalid_json'],
    ['[]', 400, 'invalid_json'],
    ['"x"', 400, 'invalid_json'],
    ['{"__proto__": {"a": 1}}', 400, 'invalid_json'],
    [Uint8Array.of(0x7b, 0xff, 0x7d), 400, 'invalid_json'],
    ['['.repeat(100_000), 400, 'too_deep'],
    [`{"model": "${'x'.repeat(5 * 2 ** 20)}"}`, 413, 'body_too_large'],
    ['{}', 415, 'not_json', 'text/plain'],
    ['a=b', 415, 'not_json', 'application/x-www-form-urlencoded'],
  ];
  for (const [body, status, code, type] of refused) {
    const answer = await send(body, type);
    assert.deepEqual([answer.status, answer.body?.error.code], [status, code], String(body).slice(0, 60));
  }
  assert.equal((await get('/v1/%zz')).status, 400);
  assert.equal(server.adapters.length, 5);
});

test('a base that generates no text has vectors and classes, and says so otherwise', async () => {
  const bert = tinyBert(join(dir, 'bert'));
  await using encoder = await serve({ model: bert, port: 0, log: () => {} });
  const { get, post } = requests(encoder.url);
  assert.equal((await get('/health')).status, 200);
  const { body } = await post('/v1/embeddings', { model: 'bert', input: ['one', 'two words'] });
  assert.equal(body.data.length, 2, JSON.stringify(body));
  assert.equal(body.data[0].embedding.length, 32);
  const chat = await post('/v1/chat/completions', { model: 'bert', messages });
  assert.deepEqual([chat.status, chat.body.error.code], [400, 'wrong_task']);
});

test('a base with a head: its classes, also after it was asked for vectors', async () => {
  const classifier = tinyClassifier(join(dir, 'classifier'));
  await using server = await serve({ model: classifier, port: 0, log: () => {} });
  const { post } = requests(server.url);
  const classes = async () => (await post('/classify', { model: 'classifier', input: 'one' })).body.data?.[0];
  assert.equal((await post('/v1/embeddings', { model: 'classifier', input: 'one' })).body.data[0].embedding.length, 32);
  const answered = await classes();
  assert.deepEqual([answered.num_classes, answered.probs.length], [3, 3], JSON.stringify(answered));
  assert.match(answered.label, /^LABEL_[012]$/);
});
