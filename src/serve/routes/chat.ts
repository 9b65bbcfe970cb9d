import type { FastifyInstance } from 'fastify';
import type { TokenLogprob } from '../../generate/index.ts';
import { type AnswerEvent, type AnswerPlan, answers, requestsOf, Usage } from '../answers.ts';
import { answerForm, beginId, chatPrompt, Turn, toolFormOf } from '../chat/index.ts';
import { badRequest } from '../errors.ts';
import { sendEvents } from '../http/index.ts';
import { generator, type Service } from '../service.ts';
import {
  type ChatFields,
  chatLogprobs,
  chatSchema,
  checkAnswers,
  neutralChatFields,
  newId,
  now,
  readBody,
  samplingOf,
} from '../wire/index.ts';

/** POST /v1/chat/completions. */
export function chatRoute(app: FastifyInstance, service: Service): void {
  app.post('/v1/chat/completions', async (request, reply) => {
    const fields = readBody(chatSchema, request.body, neutralChatFields);
    checkAnswers(1, fields.n, service.limits);
    const found = await generator(service, fields.model, fields.adapters);
    const form = await answerForm(fields, service.grammars, service.limits);
    const maxTokens = maxTokensOf(fields);
    const plan: AnswerPlan = {
      generator: found,
      sampling: samplingOf(fields, service.limits, service.info.vocabSize),
      maxNewTokens: maxTokens ?? service.info.contextLength,
      requireRoom: maxTokens !== undefined,
      logprobs: logprobsOf(fields),
      grammar: form.grammar,
      keyId: request.keyId,
    };
    const requests = requestsOf(plan, [chatPrompt(service, fields, form.tools)], fields.n, service.limits);
    const toolForm = toolFormOf(service.tokenizer.chatTemplates.tool_use ?? service.tokenizer.chatTemplate ?? '');
    const begin = beginId(toolForm, service.tokenizer);
    const turns = requests.map(() => new Turn(form, toolForm, begin, fields.parallel_tool_calls ?? true));
    const events = answers(service, plan, requests, request.left);
    if (fields.stream) return sendEvents(reply, chunks(service, fields, turns, events), service);
    return whole(service, fields, turns, events);
  });
}

/** @throws RequestError 400 where the two fields for it differ */
function maxTokensOf({ max_tokens: old, max_completion_tokens: max }: ChatFields): number | undefined {
  if (old !== undefined && max !== undefined && old !== max)
    throw badRequest("'max_tokens' and 'max_completion_tokens' differ. Send one of them.", 'max_tokens', 'invalid');
  return max ?? old;
}

/** How many log-probabilities are reported beside each token's own; undefined for none at all. */
function logprobsOf({ logprobs, top_logprobs: top }: ChatFields): number | undefined {
  if (top !== undefined && !logprobs)
    throw badRequest("'top_logprobs' needs 'logprobs': true.", 'top_logprobs', 'invalid');
  return logprobs ? (top ?? 0) : undefined;
}

/** The answers as one object. */
async function whole(
  { tokenizer }: Service,
  { model, n, logprobs }: ChatFields,
  turns: readonly Turn[],
  events: AsyncIterable<AnswerEvent>,
) {
  const usage = new Usage(n);
  const texts = turns.map(() => '');
  const tokens = turns.map((): TokenLogprob[] => []);
  const choices: object[] = [];
  for await (const event of events) {
    const { index } = event;
    if (event.type === 'delta') {
      texts[index] += turns[index]!.push(event.delta);
      tokens[index]!.push(...(event.delta.logprobs ?? []));
      continue;
    }
    usage.add(index, event.end);
    const { content, calls, finish } = turns[index]!.end(event.end);
    const text = texts[index] + content;
    choices[index] = {
      index,
      message: {
        role: 'assistant',
        content: text === '' && calls.length > 0 ? null : text,
        refusal: null,
        ...(calls.length > 0 && { tool_calls: calls }),
      },
      logprobs: chatLogprobs(tokenizer, logprobs ? tokens[index] : undefined) ?? null,
      finish_reason: finish,
    };
  }
  return { id: newId('chatcmpl-'), object: 'chat.completion', created: now(), model, choices, usage };
}

/** The answers as the chunks of a stream. */
async function* chunks(
  { tokenizer }: Service,
  { model, n, stream_options: options }: ChatFields,
  turns: readonly Turn[],
  events: AsyncIterable<AnswerEvent>,
): AsyncGenerator<object, void, undefined> {
  const head = { id: newId('chatcmpl-'), object: 'chat.completion.chunk', created: now(), model };
  const withUsage = options?.include_usage === true;
  const chunk = (index: number, delta: object, finish: string | null = null, logprobs?: object) => ({
    ...head,
    choices: [{ index, delta, logprobs: logprobs ?? null, finish_reason: finish }],
    ...(withUsage && { usage: null }),
  });
  const usage = new Usage(n);
  const begun = new Set<number>();
  const first = (index: number) => {
    if (begun.has(index)) return [];
    begun.add(index);
    return [chunk(index, { role: 'assistant', content: '' })];
  };
  for await (const event of events) {
    const { index } = event;
    yield* first(index);
    if (event.type === 'delta') {
      const content = turns[index]!.push(event.delta);
      const logprobs = chatLogprobs(tokenizer, event.delta.logprobs);
      if (content !== '' || logprobs) yield chunk(index, content === '' ? {} : { content }, null, logprobs);
      continue;
    }
    usage.add(index, event.end);
    const { content, calls, finish } = turns[index]!.end(event.end);
    if (content !== '') yield chunk(index, { content });
    for (const [i, call] of calls.entries()) yield chunk(index, { tool_calls: [{ index: i, ...call }] });
    yield chunk(index, {}, finish);
  }
  if (withUsage) yield { ...head, choices: [], usage };
}
