/** Checks what callers pass: an unknown option or a wrong value is refused, never ignored. */
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import {
  collectRows,
  columnNames,
  formatNames,
  messageSchema,
  type RowSource,
  type RowStream,
  truncations,
} from '../data/index.ts';
import type { RankPlacement } from '../distributed/index.ts';
import { devicePattern } from '../engine/index.ts';
import type { GenerationRequest } from '../generate/index.ts';
import { combinations } from '../methods/index.ts';
import { exportFormats } from '../models/index.ts';
import { taskNames } from '../nn/index.ts';
import { activationModes, packingModes, quantizeModes } from '../quant/index.ts';
import { type PlanOptions, type RunOptions, stages } from '../train/index.ts';
import type {
  CombineSettings,
  GenerateSettings,
  IdRows,
  MergeCheckpointSettings,
  MergeSettings,
  ModelSettings,
  Prompt,
  QuantizeSettings,
  RowsOptions,
  UseOptions,
} from './jobs/index.ts';
import type { Abortable } from './protocol.ts';
import type { ServeOptions } from './serving-types.ts';

const signal = { signal: z.instanceof(AbortSignal).optional() };
const path = z.string().min(1);
const fraction = z.number().min(0).max(1);
const texts = z.array(z.string());

const use = {
  ...signal,
  adapter: path.optional(),
  taskNumber: z.int().nonnegative().optional(),
  threads: z.int().positive().optional(),
};
const rows = {
  ...use,
  format: z.enum(formatNames).optional(),
  columns: z.partialRecord(z.enum(columnNames), z.string()).optional() as z.ZodType<Record<string, string> | undefined>,
  limit: z.int().positive().optional(),
  delimiter: z.string().length(1).optional(),
  truncate: z.enum(truncations).optional(),
  ownFields: z.boolean().optional(),
  trainOn: z.enum(['completion', 'all']).optional(),
  task: z.enum(taskNames).optional(),
  maxLength: z.int().positive().optional(),
  stride: z.int().nonnegative().optional(),
};

export const useSchema: z.ZodType<UseOptions & Abortable> = z.strictObject(use);
export const writeLogitsSchema: z.ZodType<UseOptions & Abortable & { readonly out: string }> = z.strictObject({
  ...use,
  out: path,
});
export const rowsSchema: z.ZodType<RowsOptions & Abortable> = z.strictObject(rows);
export const evaluateSchema: z.ZodType<RowsOptions & Abortable & { readonly labels?: readonly string[] | undefined }> =
  z.strictObject({ ...rows, labels: texts.optional() });
export const classifySchema: z.ZodType<RowsOptions & Abortable & { readonly labels: readonly string[] }> =
  z.strictObject({ ...rows, labels: texts });
export const generateSchema: z.ZodType<GenerateSettings & Abortable> = z.strictObject({
  ...use,
  chat: z.boolean().optional(),
  system: z.string().optional(),
  continueFinalMessage: z.boolean().optional(),
  maxNewTokens: z.int().positive().optional(),
  stop: texts.optional(),
  seed: z.int().optional(),
  temperature: z.number().optional(),
  topK: z.number().optional(),
  topP: z.number().optional(),
  minP: z.number().optional(),
  repetitionPenalty: z.number().optional(),
});
export const modelSchema: z.ZodType<ModelSettings & Abortable> = z.strictObject({
  ...signal,
  quantize: z.enum(quantizeModes).optional(),
  activation: z.enum(activationModes).optional(),
  adapters: z.union([z.record(z.string(), path), z.array(path)]).optional(),
  task: z.enum(taskNames).optional(),
  threads: z.int().positive().optional(),
  device: z.string().regex(devicePattern, 'must be auto, cpu, cuda, or a GPU such as cuda:1').optional(),
});
const written = {
  ...signal,
  out: path,
  dtype: z.enum(['float32', 'bfloat16', 'float16']).optional(),
  groupSize: z.int().positive().optional(),
  embedding: z.enum(['none', ...exportFormats]).optional(),
};
export const quantizeSchema: z.ZodType<QuantizeSettings & Abortable> = z.strictObject({
  ...written,
  to: z.enum(exportFormats),
});
export const mergeSchema: z.ZodType<MergeSettings & Abortable> = z.strictObject({
  ...written,
  adapter: path,
  to: z.enum(exportFormats).optional(),
  quantize: z.enum(packingModes).optional(),
});
export const mergeCheckpointSchema: z.ZodType<MergeCheckpointSettings & Abortable> = z.strictObject({
  ...signal,
  checkpoint: path,
  out: path,
});
export const combineSchema: z.ZodType<CombineSettings & Abortable> = z.strictObject({
  ...signal,
  weights: z.array(z.number()),
  out: path,
  how: z.enum(combinations).optional(),
  svdRank: z.int().positive().optional(),
  density: fraction.optional(),
  majoritySignMethod: z.enum(['total', 'frequency']).optional(),
  seed: z.int().optional(),
});
const placement: z.ZodType<RankPlacement> = z.strictObject({
  rank: z.int().nonnegative(),
  size: z.int().positive(),
  localRank: z.int().nonnegative(),
  localSize: z.int().positive(),
  master: z.strictObject({ host: z.string().min(1), port: z.int().min(1).max(65535) }),
  hostsStore: z.boolean(),
  run: z.string(),
  attempt: z.int().nonnegative(),
  timeout: z.number().positive(),
  source: z.string(),
});
export const trainSchema: z.ZodType<RunOptions & Abortable> = z.strictObject({
  ...signal,
  fresh: z.boolean().optional(),
  moreEpochs: z.number().positive().optional(),
  placement: placement.optional(),
});
export const doctorSchema: z.ZodType<{ readonly model?: string | undefined } & Abortable> = z.strictObject({
  ...signal,
  model: path.optional(),
});
export const planSchema: z.ZodType<PlanOptions & Abortable> = z.strictObject({
  ...signal,
  ranks: z.int().positive(),
  zero: z.union(stages.map((stage) => z.literal(stage))).optional(),
  shape: z.string().optional(),
  rowTokens: z.int().positive().optional(),
  memory: z.number().positive().optional(),
  bandwidth: z.number().positive().optional(),
  flops: z.number().positive().optional(),
});
const count = z.int().positive().optional();
export const serveSchema: z.ZodType<ServeOptions> = z.strictObject({
  maxBatchTokens: count,
  maxRunning: count,
  maxQueue: count,
  kvMemory: z.number().positive().optional(),
  adapterMemory: z.number().nonnegative().optional(),
  threads: count,
});
const real = z.number().optional();
export const submitSchema: z.ZodType<GenerationRequest & Abortable> = z.strictObject({
  ...signal,
  ...{ promptIds: z.array(z.number()), adapter: path.optional(), taskNumber: z.int().nonnegative().optional() },
  ...{ maxNewTokens: z.int().positive(), requireRoom: z.boolean().optional() },
  ...{ seed: z.int().optional(), stop: texts.optional() },
  ...{ temperature: real, topK: real, topP: real, minP: real },
  ...{ repetitionPenalty: real, presencePenalty: real, frequencyPenalty: real },
  mixture: z
    .array(z.strictObject({ name: path, weight: z.number() }))
    .min(1)
    .optional(),
  logitBias: z.record(z.string(), z.number()).optional(),
  eosIds: z.array(z.int()).optional(),
  logprobs: z.int().nonnegative().optional(),
  deadlineMs: z.number().nonnegative().optional(),
  priorityKey: z.string().optional(),
  grammar: z.string().optional(),
});
export const abortableSchema: z.ZodType<Abortable> = z.strictObject(signal);

/** Options without their signal, which stays in this thread. @throws GraftError 'usage' listing what is unknown or wrong */
export function split<T extends Abortable>(
  schema: z.ZodType<T>,
  options: T,
  call: string,
): { args: Omit<T, 'signal'>; signal: AbortSignal | undefined } {
  const { signal: passed, ...args } = parseWith(schema, options, call);
  return { args, signal: passed };
}

/** The rows of a call, at once where they need no collecting: then calls run in the order in which they are made. */
export const rowsOf = (rows: RowStream, signal: AbortSignal | undefined): RowSource | Promise<RowSource> => {
  const isSource = typeof rows === 'string' || (typeof rows === 'object' && rows !== null && Symbol.iterator in rows);
  if (!isSource && !(typeof rows === 'object' && rows !== null && Symbol.asyncIterator in rows)) {
    throw new GraftError('usage', 'rows must be a path, a list of objects, or an iterable of them', { place: 'rows' });
  }
  const collected = collectRows(rows, signal);
  return collected instanceof Promise ? stoppable(collected, signal) : collected;
};

/** @throws GraftError 'usage' for a prompt that is neither text nor messages */
export function requirePrompt(prompt: Prompt): void {
  if (typeof prompt === 'string') return;
  parseWith(z.array(messageSchema).min(1, 'there are no messages'), prompt, 'prompt');
}

/** @throws GraftError 'usage' for what is not lists of numbers */
export function requireIds(ids: IdRows): void {
  if (Array.isArray(ids) && ids.every((row) => Array.isArray(row))) return;
  throw new GraftError('usage', 'ids must be rows of token ids, [[int]]', { place: 'logits' });
}

export const interrupted = (problem: string, cause?: unknown) => new GraftError('interrupted', problem, { cause });

/** What is collected, or an 'interrupted' error where the signal stopped it. */
export const stoppable = <T>(collecting: Promise<T>, signal: AbortSignal | undefined): Promise<T> =>
  collecting.catch((error) => {
    throw signal?.aborted ? interrupted('the job was stopped before all rows were read', signal.reason) : error;
  });
