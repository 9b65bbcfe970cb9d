import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import { dataSettingsOf } from '../../adapters/index.ts';
import type { RowInput } from '../../data/index.ts';
import type { Prediction } from '../../session/index.ts';
import type { ServedAdapter } from '../adapters/index.ts';
import { badRequest, brief } from '../errors.ts';
import { named, type Service } from '../service.ts';
import { inputSchema, newId, now, promptsOf, readBody, remarks } from '../wire/index.ts';

/** vLLM: -1 cuts texts that are longer than the model reads. */
const cutting = z.literal(-1).optional();

const embeddingSchema = z.strictObject({
  model: z.string().max(512),
  input: inputSchema,
  encoding_format: z.enum(['float', 'base64']).default('float'),
  truncate_prompt_tokens: cutting,
});
const classifySchema = z.strictObject({
  model: z.string().max(512),
  input: z.union([z.string(), z.array(z.string()).min(1)], { error: 'expected a text, or a list of texts' }),
  truncate_prompt_tokens: cutting,
});

/** Classes, tags and numbers; what else a head predicts needs more than a text. */
const classified = new Set(['sequence-classification', 'token-classification']);

/** POST /v1/embeddings and /classify. */
export function headRoutes(app: FastifyInstance, service: Service): void {
  const { heads, limits, tokenizer, encoder } = service;
  const { contextLength, vocabSize } = service.info;
  /** Tokens of a text at most: as many as the adapter was trained with. */
  const longestOf = (adapter: ServedAdapter | undefined): number =>
    Math.min((adapter && dataSettingsOf(adapter.dir).max_length) ?? contextLength, contextLength);
  /** The texts of an input. @throws RequestError 400 for one that is empty, or longer than what is read unless it is cut */
  const textsOf = (input: z.infer<typeof inputSchema>, longest: number, cut: boolean) => {
    const inputs = promptsOf(input);
    const place = (i: number) => (inputs.length > 1 ? `input[${i}]` : 'input');
    if (inputs.length > limits.inputs)
      throw badRequest(`There are more than ${limits.inputs} inputs.`, 'input', 'too_many');
    const texts = inputs.map((one, i) => (typeof one === 'string' ? one : textOf(one, place(i))));
    for (const [i, text] of texts.entries()) {
      if (text === '') throw badRequest(`The text of '${place(i)}' is empty.`, place(i), 'invalid');
      const { length } = encoder.encode(text, true, place(i));
      if (length > longest && !cut) throw tooLong(place(i), longest);
    }
    return texts;
  };
  const tooLong = (param: string, longest: number) =>
    badRequest(
      `The text of '${param}' has more than the ${longest} tokens that the model reads. 'truncate_prompt_tokens': -1 cuts it.`,
      param,
      'context_length_exceeded',
    );
  /** The text of token ids, which the model reads as these ids, with its special tokens around them or without. */
  const textOf = (ids: readonly number[], param: string): string => {
    const outside = ids.find((id) => id >= vocabSize);
    if (outside !== undefined) throw badRequest(`${outside} is not a token id below ${vocabSize}.`, param, 'invalid');
    const text = tokenizer.decode(ids, { skipSpecialTokens: true });
    const read = [false, 'before', true] as const;
    if (read.some((special) => encoder.encode(text, special, param).join() === ids.join())) return text;
    throw badRequest(`The token ids of '${param}' are not those of a text. Send the text.`, param, 'invalid');
  };
  const predict = async (
    rows: readonly RowInput[],
    options: Parameters<typeof heads.predict>[1] & { readonly maxLength: number },
    cut: boolean,
  ) => {
    const { predictions, tokens, report } = await heads.predict(rows, options);
    // What an adapter puts before a row takes of its length.
    if (report.cutRows > 0 && !cut) throw tooLong('input', options.maxLength);
    return { predictions, usage: { prompt_tokens: tokens, total_tokens: tokens } };
  };

  app.post('/v1/embeddings', async (request) => {
    const neutral = { ...remarks, dimensions: [] };
    const {
      model,
      input,
      encoding_format: encoding,
      truncate_prompt_tokens: truncate,
    } = readBody(embeddingSchema, request.body, neutral);
    const { adapter, task } = await named(service, model);
    if (adapter && task !== 'embedding')
      throw badRequest(`The model is for ${task}, and gives no vectors.`, 'model', 'wrong_task');
    const [maxLength, cut] = [longestOf(adapter), truncate === -1];
    const texts = textsOf(input, maxLength, cut);
    const rows = texts.map((text) => ({ text }));
    const how = { adapter: adapter?.dir, task: 'embedding', format: 'text', maxLength, signal: request.left } as const;
    const { predictions, usage } = await predict(rows, how, cut);
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
    const { model, input, truncate_prompt_tokens: truncate } = readBody(classifySchema, request.body, remarks);
    const { adapter, task } = await named(service, model);
    if (!classified.has(task)) throw badRequest(`The model is for ${task}, and has no classes.`, 'model', 'wrong_task');
    const [maxLength, cut] = [longestOf(adapter), truncate === -1];
    const texts = textsOf(input, maxLength, cut);
    const ofTags = task === 'token-classification';
    const blank = ofTags ? texts.findIndex((text) => text.trim() === '') : -1;
    if (blank >= 0) throw badRequest('The text has no words.', `input[${blank}]`, 'invalid');
    const rows = texts.map((text) => (ofTags ? { tokens: text.split(/\s+/).filter(Boolean) } : { text }));
    const format = ofTags ? 'tags' : 'text';
    const how = { adapter: adapter?.dir, task, format, maxLength, signal: request.left } as const;
    const { predictions, usage } = await predict(rows, how, cut);
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
