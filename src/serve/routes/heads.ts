import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import type { Prediction } from '../../session/index.ts';
import { badRequest, brief } from '../errors.ts';
import { named, type Service } from '../service.ts';
import { inputSchema, newId, now, promptsOf, readBody, remarks } from '../wire/index.ts';

const embeddingSchema = z.strictObject({
  model: z.string().max(512),
  input: inputSchema,
  encoding_format: z.enum(['float', 'base64']).default('float'),
});
const classifySchema = z.strictObject({
  model: z.string().max(512),
  input: z.union([z.string(), z.array(z.string()).min(1)], { error: 'expected a text, or a list of texts' }),
});

/** Classes, tags and numbers; what else a head predicts needs more than a text. */
const classified = new Set(['sequence-classification', 'token-classification']);

/** POST /v1/embeddings and /classify. */
export function headRoutes(app: FastifyInstance, service: Service): void {
  const { heads, limits, tokenizer, encoder } = service;
  const textsOf = (input: z.infer<typeof inputSchema>): string[] => {
    const texts = promptsOf(input).map((one) => (typeof one === 'string' ? one : textOf(one)));
    if (texts.length > limits.inputs)
      throw badRequest(`There are more than ${limits.inputs} inputs.`, 'input', 'too_many');
    for (const text of texts) encoder.checkLength([text], 'input');
    return texts;
  };
  const textOf = (ids: readonly number[]): string => {
    const outside = ids.find((id) => id >= service.info.vocabSize);
    if (outside === undefined) return tokenizer.decode(ids, { skipSpecialTokens: true });
    throw badRequest(`${outside} is not a token id below ${service.info.vocabSize}.`, 'input', 'invalid');
  };
  const usageOf = (texts: readonly string[]) => {
    const tokens = texts.reduce((sum, text) => sum + encoder.encode(text, true, 'input').length, 0);
    return { prompt_tokens: tokens, total_tokens: tokens };
  };

  app.post('/v1/embeddings', async (request) => {
    const neutral = { ...remarks, dimensions: [] };
    const { model, input, encoding_format: encoding } = readBody(embeddingSchema, request.body, neutral);
    const { adapter, task } = await named(service, model);
    if (adapter && task !== 'embedding' && task !== service.info.task)
      throw badRequest(`The model is for ${task}, and gives no vectors.`, 'model', 'wrong_task');
    const texts = textsOf(input);
    const options = { adapter: adapter?.dir, task: 'embedding' as const, signal: request.left };
    const predictions = await heads.predict(
      texts.map((text) => ({ text })),
      options,
    );
    const data = predictions.map(({ embedding, skipped }, index) => {
      if (!embedding)
        throw badRequest(`The text has no vector: ${brief(skipped ?? 'it is empty')}.`, `input[${index}]`, 'invalid');
      const vector = Float32Array.from(embedding);
      return {
        object: 'embedding',
        index,
        embedding: encoding === 'float' ? embedding : Buffer.from(vector.buffer).toString('base64'),
      };
    });
    return { object: 'list', data, model, usage: usageOf(texts) };
  });

  app.post('/classify', async (request) => {
    const { model, input } = readBody(classifySchema, request.body, remarks);
    const { adapter, task } = await named(service, model);
    if (!classified.has(task)) throw badRequest(`The model is for ${task}, and has no classes.`, 'model', 'wrong_task');
    const texts = textsOf(input);
    const ofTags = task === 'token-classification';
    const rows = texts.map((text) => (ofTags ? { tokens: text.split(/\s+/).filter(Boolean) } : { text }));
    const options = { adapter: adapter?.dir, signal: request.left };
    const predictions = await heads.predict(rows, options);
    const data = predictions.map((prediction, index) => ({ index, ...classOf(prediction, rows[index]!, index) }));
    return { id: newId('classify-'), object: 'list', created: now(), model, data, usage: usageOf(texts) };
  });
}

/** One prediction: with vLLM's fields where it is a class. */
function classOf(prediction: Prediction, row: { readonly tokens?: readonly string[] }, index: number): object {
  const { label, labels, probabilities, value, tags, skipped } = prediction;
  if (skipped !== undefined)
    throw badRequest(`The text cannot be classified: ${brief(skipped)}.`, `input[${index}]`, 'invalid');
  if (tags) return { words: row.tokens, tags };
  if (value !== undefined) return { value };
  const probs = Object.values(probabilities ?? {});
  return {
    ...(labels ? { labels } : { label }),
    probs,
    num_classes: probs.length,
    probabilities,
  };
}
