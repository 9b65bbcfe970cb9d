/** The clients that people use, each whole and in a stream, against a server. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { HumanMessage } from '@langchain/core/messages';
import { ChatOpenAI, OpenAI as LangChainCompletion, OpenAIEmbeddings } from '@langchain/openai';
import { embed, generateText, jsonSchema, Output, streamText, type ToolSet, tool } from 'ai';
import OpenAI from 'openai';
import { greeting, weather } from '../samples/served.ts';
import { runningServer } from './running.ts';

const apiKey = 'test-key-0123456789abcdef';
const { server } = await runningServer(['greeter', 'caller'], { apiKeys: [apiKey] });
const baseURL = `${server.url}/v1`;
const messages = [{ role: 'user' as const, content: 'Hello' }];
const schema = {
  type: 'object' as const,
  properties: { kind: { type: 'string' as const, enum: ['a', 'b'] } },
  required: ['kind'],
  additionalProperties: false as const,
};

test('openai', async () => {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.deepEqual(names, ['tiny', 'caller', 'greeter']);

  const fields = { model: 'greeter', messages, temperature: 0, max_completion_tokens: 40 };
  const answer = await client.chat.completions.create(fields);
  assert.equal(answer.choices[0]!.message.content, greeting);
  assert.ok(answer.usage!.completion_tokens > 0);
  const stream = client.chat.completions.stream({ ...fields, stream_options: { include_usage: true } });
  const pieces: string[] = [];
  stream.on('content', (piece) => pieces.push(piece));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0]!.message.content, greeting);
  assert.ok(pieces.length > 3);
  assert.deepEqual(final.usage, { ...answer.usage!, prompt_tokens_details: final.usage!.prompt_tokens_details });

  const call = await client.chat.completions.create({
    ...fields,
    model: 'caller',
    tools: [weather],
    max_completion_tokens: 90,
  });
  const [made] = call.choices[0]!.message.tool_calls!;
  assert.ok(made?.type === 'function');
  assert.deepEqual([made.function.name, JSON.parse(made.function.arguments)], ['weather', { city: 'Oslo' }]);
  const calling = client.chat.completions.stream({
    ...fields,
    model: 'caller',
    tools: [weather],
    max_completion_tokens: 90,
  });
  assert.equal((await calling.finalChatCompletion()).choices[0]!.message.tool_calls!.length, 1);

  const parsed = await client.chat.completions.parse({
    ...fields,
    model: 'tiny',
    response_format: { type: 'json_schema', json_schema: { name: 'x', schema, strict: true } },
  });
  assert.match((parsed.choices[0]!.message.parsed as unknown as { kind: string }).kind, /^[ab]$/);

  const completion = await client.completions.create({ model: 'tiny', prompt: 'one', max_tokens: 4, temperature: 0 });
  let text = '';
  const chunks = await client.completions.create({
    model: 'tiny',
    prompt: 'one',
    max_tokens: 4,
    temperature: 0,
    stream: true,
  });
  for await (const chunk of chunks) text += chunk.choices[0]?.text ?? '';
  assert.equal(text, completion.choices[0]!.text);

  const { data } = await client.embeddings.create({ model: 'tiny', input: ['one', 'two'] });
  assert.deepEqual(
    data.map(({ embedding }) => embedding.length),
    [32, 32],
  );

  await assert.rejects(client.chat.completions.create({ ...fields, model: 'none' }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code, error.param], [404, 'model_not_found', 'model']);
    return true;
  });
  await assert.rejects(client.chat.completions.create({ ...fields, store: true }), OpenAI.BadRequestError);
  const stranger = new OpenAI({ baseURL, apiKey: 'wrong-key-0123456789abcdef', maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);

  // Leaving a stream ends its answer, and the server goes on.
  const left = await client.chat.completions.create({
    ...fields,
    model: 'tiny',
    stream: true,
    max_completion_tokens: 1500,
  });
  for await (const _ of left) break;
  assert.equal((await client.chat.completions.create(fields)).choices[0]!.message.content, greeting);
});

test('ai with @ai-sdk/openai-compatible', async () => {
  const provider = createOpenAICompatible({
    name: 'graft',
    baseURL,
    apiKey,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  const settings = { model: provider('greeter'), prompt: 'Hello', temperature: 0, maxOutputTokens: 40, maxRetries: 0 };
  const answer = await generateText(settings);
  assert.deepEqual([answer.text, answer.finishReason], [greeting, 'stop']);
  assert.ok(answer.usage.outputTokens! > 0);
  const stream = streamText(settings);
  const pieces: string[] = [];
  for await (const piece of stream.textStream) pieces.push(piece);
  assert.ok(pieces.length > 3);
  assert.equal(pieces.join(''), greeting);
  assert.equal((await stream.usage).outputTokens, answer.usage.outputTokens);

  const { parameters, description } = weather.function;
  const inputSchema = jsonSchema<{ city: string }>(parameters as object);
  const tools = { weather: tool({ description, inputSchema }) } as unknown as ToolSet; // ai's types are not made for exactOptionalPropertyTypes
  const caller = { ...settings, model: provider('caller'), tools, maxOutputTokens: 90 };
  const [call] = (await generateText(caller)).toolCalls;
  assert.deepEqual([call!.toolName, call!.input], ['weather', { city: 'Oslo' }]);
  assert.deepEqual(
    (await streamText(caller).toolCalls).map(({ input }) => input),
    [{ city: 'Oslo' }],
  );

  const output = Output.object({ schema: jsonSchema<{ kind: string }>(schema) });
  const object = await generateText({ ...settings, model: provider('tiny'), output });
  assert.match(object.output.kind, /^[ab]$/);

  const { embedding } = await embed({ model: provider.embeddingModel('tiny'), value: 'one', maxRetries: 0 });
  assert.equal(embedding.length, 32);
  await assert.rejects(generateText({ ...settings, model: provider('none') }), { statusCode: 404 });
});

test('@langchain/openai', async () => {
  const common = { apiKey, configuration: { baseURL }, temperature: 0, maxTokens: 40, maxRetries: 0 };
  const model = new ChatOpenAI({ ...common, model: 'greeter' });
  const answer = await model.invoke([new HumanMessage('Hello')]);
  assert.equal(answer.content, greeting);
  assert.ok((answer.usage_metadata as unknown as { output_tokens: number }).output_tokens > 0);
  const pieces: string[] = [];
  for await (const piece of await model.stream('Hello')) pieces.push(String(piece.content));
  assert.ok(pieces.length > 3);
  assert.equal(pieces.join(''), greeting);

  const caller = new ChatOpenAI({ ...common, model: 'caller', maxTokens: 90 }).bindTools([weather]);
  const [call] = (await caller.invoke('Hello')).tool_calls!;
  assert.deepEqual([call!.name, call!.args], ['weather', { city: 'Oslo' }]);

  const structured = new ChatOpenAI({ ...common, model: 'tiny' }).withStructuredOutput(schema, {
    name: 'x',
    method: 'jsonSchema',
  });
  assert.match((await structured.invoke('Hello')).kind as string, /^[ab]$/);

  const completion = new LangChainCompletion({ ...common, model: 'tiny', maxTokens: 4 });
  assert.ok((await completion.invoke('one')).length > 0);
  const vectors = new OpenAIEmbeddings({ apiKey, configuration: { baseURL }, model: 'tiny', maxRetries: 0 });
  assert.deepEqual(
    (await vectors.embedDocuments(['one', 'two'])).map(({ length }) => length),
    [32, 32],
  );
  await assert.rejects(new ChatOpenAI({ ...common, model: 'none' }).invoke('Hello'), { status: 404 });
});
