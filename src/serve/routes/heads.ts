import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import type { RowInput } from '../../data/index.ts';
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
  const { contextLength, vocabSize } = service.info;
  /** The texts of an input, and the tokens of each. */
  const textsOf = (input: z.infer<typeof inputSchema>) => {
    const inputs = promptsOf(input);
    const place = (i: number) => (inputs.length > 1 ? `input[${i}]` : 'input');
    if (inputs.length > limits.inputs)
      throw badRequest(`There are more than ${limits.inputs} inputs.`, 'input', 'too_many');
    const texts = inputs.map((one, i) => (typeof one === 'string' ? one : textOf(one, place(i))));
    const tokens = texts.map((text, i) => {
      if (text === '') throw badRequest(`The text of '${place(i)}' is empty.`, place(i), 'invalid');
      const { length } = encoder.encode(text, true, place(i));
      if (length > contextLength) throw tooLong(place(i));
      return length;
    });
    const sum = tokens.reduce((total, length) => total + length, 0);
    return { texts, usage: { prompt_tokens: sum, total_tokens: sum } };
  };
  const tooLong = (param: string) =>
    badRequest(`The text of '${param}' has more tokens than the model reads.`, param, 'context_length_exceeded');
  /** The text of token ids, which the model reads as these ids, with its special tokens around them or without. */
  const textOf = (ids: readonly number[], param: string): string => {
    const outside = ids.find((id) => id >= vocabSize);
    if (outside !== undefined) throw badRequest(`${outside} is not a token id below ${vocabSize}.`, param, 'invalid');
    const text = tokenizer.decode(ids, { skipSpecialTokens: true });
    const read = [false, 'before', true] as const;
    if (read.some((special) => encoder.encode(text, special, param).join() === ids.join())) return text;
    throw badRequest(`The token ids of '${param}' are not those of a text. Send the text.`, param, 'invalid');
  };
  const predict = async (rows: readonly RowInput[], options: Parameters<typeof heads.predict>[1]) => {
    const { predictions, report } = await heads.predict(rows, { ...options, maxLength: contextLength });
    // What an adapter puts before a row takes of its length.
    if (report.cutRows > 0) throw tooLong('input');
    return predictions;
  };

  app.post('/v1/embeddings', async (request) => {
    const neutral = { ...remarks, dimensions: [] };
    const { model, input, encoding_format: encoding } = readBody(embeddingSchema, request.body, neutral);
    const { adapter, task } = await named(service, model);
    if (adapter && task !== 'embedding')
      throw badRequest(`The model is for ${task}, and gives no vectors.`, 'model', 'wrong_task');
    const { texts, usage } = textsOf(input);
    const options = { adapter: adapter?.dir, task: 'embedding', format: 'text', signal: request.left } as const;
    const predictions = await predict(
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
    return { object: 'list', data, model, usage };
  });

  app.post('/classify', async (request) => {
    const { model, input } = readBody(classifySchema, request.body, remarks);
    const { adapter, task } = await named(service, model);
    if (!classified.has(task)) throw badRequest(`The model is for ${task}, and has no classes.`, 'model', 'wrong_task');
    const { texts, usage } = textsOf(input);
    const ofTags = task === 'token-classification';
    const blank = ofTags ? texts.findIndex((text) => text.trim() === '') : -1;
    if (blank >= 0) throw badRequest('The text has no words.', `input[${blank}]`, 'invalid');
    const rows = texts.map((text) => (ofTags ? { tokens: text.split(/\s+/).filter(Boolean) } : { text }));
    const format = ofTags ? 'tags' : 'text';
    const predictions = await predict(rows, { adapter: adapter?.dir, task, format, signal: request.left });
    const data = predictions.map((prediction, index) => ({ index, ...classOf(prediction, rows[index]!, index) }));
    return { id: newId('classify-'), object: 'list', created: now(), model, data, usage };
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
