import type { FastifyInstance } from 'fastify';
import type { TokenLogprob } from '../../generate/index.ts';
import { type AnswerEvent, type AnswerPlan, answers, finishReason, requestsOf, Usage } from '../answers.ts';
import { badRequest } from '../errors.ts';
import { sendEvents } from '../http/index.ts';
import { generator, type Service } from '../service.ts';
import {
  type CompletionFields,
  CompletionLogprobs,
  checkAnswers,
  completionSchema,
  neutralCompletionFields,
  newId,
  now,
  promptsOf,
  readBody,
  samplingOf,
} from '../wire/index.ts';

/** POST /v1/completions. */
export function completionsRoute(app: FastifyInstance, service: Service): void {
  const { limits, encoder, info } = service;
  app.post('/v1/completions', async (request, reply) => {
    const fields = readBody(completionSchema, request.body, neutralCompletionFields);
    const prompts = promptsOf(fields.prompt);
    checkAnswers(prompts.length, fields.n, limits);
    const found = await generator(service, fields.model, fields.adapters);
    const plan: AnswerPlan = {
      generator: found,
      sampling: samplingOf(fields, limits, info.vocabSize),
      maxNewTokens: fields.max_tokens ?? 16,
      requireRoom: fields.max_tokens !== undefined,
      logprobs: fields.logprobs,
      keyId: request.keyId,
    };
    const ids = prompts.map((prompt, i) => {
      const param = prompts.length > 1 ? `prompt[${i}]` : 'prompt';
      const encoded = typeof prompt === 'string' ? encoder.encode(prompt, 'before', param) : prompt;
      if (encoded.length > 0) return encoded;
      throw badRequest('The prompt has no tokens.', param, 'invalid');
    });
    const requests = requestsOf(plan, ids, fields.n, limits);
    const events = answers(service, plan, requests, request.left);
    if (fields.stream) return sendEvents(reply, chunks(service, fields, requests.length, events), service);
    return whole(service, fields, requests.length, events);
  });
}

/** The answers as one object. */
async function whole(
  { tokenizer }: Service,
  { model, n, logprobs }: CompletionFields,
  count: number,
  events: AsyncIterable<AnswerEvent>,
) {
  const usage = new Usage(n);
  const tokens = Array.from({ length: count }, (): TokenLogprob[] => []);
  const choices: object[] = [];
  for await (const event of events) {
    const { index } = event;
    if (event.type === 'delta') {
      tokens[index]!.push(...(event.delta.logprobs ?? []));
      continue;
    }
    usage.add(index, event.end);
    const own = logprobs === undefined ? undefined : tokens[index];
    choices[index] = {
      index,
      text: event.end.text,
      logprobs: new CompletionLogprobs(tokenizer).next(own),
      finish_reason: finishReason(event.end),
    };
  }
  return { id: newId('cmpl-'), object: 'text_completion', created: now(), model, choices, usage };
}

/** The answers as the chunks of a stream. */
async function* chunks(
  { tokenizer }: Service,
  { model, n, stream_options: options }: CompletionFields,
  count: number,
  events: AsyncIterable<AnswerEvent>,
): AsyncGenerator<object, void, undefined> {
  const head = { id: newId('cmpl-'), object: 'text_completion', created: now(), model };
  const withUsage = options?.include_usage === true;
  const usage = new Usage(n);
  const ofAnswers = Array.from({ length: count }, () => new CompletionLogprobs(tokenizer));
  const chunk = (index: number, text: string, finish: string | null, logprobs: object | null) => ({
    ...head,
    choices: [{ index, text, logprobs, finish_reason: finish }],
    ...(withUsage && { usage: null }),
  });
  for await (const event of events) {
    const { index } = event;
    if (event.type === 'end') {
      usage.add(index, event.end);
      yield chunk(index, '', finishReason(event.end), null);
      continue;
    }
    const { text, logprobs } = event.delta;
    if (text === '' && !logprobs?.length) continue;
    yield chunk(index, text, null, ofAnswers[index]!.next(logprobs));
  }
  if (withUsage) yield { ...head, choices: [], usage };
}
