import { GraftError } from '../base/index.ts';
import { randomStream } from '../data/index.ts';
import { type KvCache, type Model, packTokens, type TaskName } from '../nn/index.ts';
import { mixSeed, noGrad, ops, scope } from '../tensor/index.ts';
import { checkSampling, type SamplingOptions, sample } from './sampling.ts';

export interface GenerateOptions extends SamplingOptions {
  readonly maxNewTokens: number;
  /** Ids that end the answer; the one that did is not part of it. */
  readonly eosIds?: readonly number[] | undefined;
  /** Which of several tasks that share an adapter the prompt is of. */
  readonly taskNumber?: number | undefined;
  /** Of the draws: the same seed gives the same answer. Default 0. */
  readonly seed?: number | undefined;
  /** Prompt tokens that are read at one time: enough for products at full rate, few enough to bound memory. Default 512. */
  readonly prefillTokens?: number | undefined;
}

export interface GenerateSummary {
  readonly reason: 'eos' | 'length' | 'stop';
  readonly promptTokens: number;
  readonly newTokens: number;
  /** Until the first token was chosen. */
  readonly prefillSeconds: number;
  /** For all tokens after the first, without what the consumer did between them. */
  readonly decodeSeconds: number;
}

/** Puts `ids`, of task `task`, into the cache; the logits [V] behind the last of them, where they are wanted. */
function read(
  model: Model,
  ids: readonly number[],
  cache: KvCache,
  wanted: boolean,
  task: number | undefined,
): Float32Array | undefined {
  return noGrad(() => {
    using _ = scope();
    const hidden = model.hidden(packTokens([ids], cache.tokens, [task]), cache);
    return wanted ? (model.logits(ops.narrow(hidden, 0, ids.length - 1, 1), [0, 1]).data() as Float32Array) : undefined;
  });
}

/**
 * Continues `promptIds` token by token; the ids of the answer come one by one, each computed when it is asked for. Ends
 * with a summary: 'length' at `maxNewTokens` or where the model's context is full.
 * @throws GraftError 'usage' when the prompt is empty, holds unknown ids or leaves no room in the context
 */
export function* generate(
  model: Model,
  promptIds: ArrayLike<number>,
  options: GenerateOptions,
): Generator<number, GenerateSummary> {
  const prompt = Array.from(promptIds);
  const most = Math.min(options.maxNewTokens, roomFor(model, prompt, options));
  const eos = new Set(options.eosIds);
  const random = randomStream(Number(BigInt.asUintN(52, mixSeed(options.seed ?? 0))));
  const seen = new Set(prompt);
  const step = options.prefillTokens ?? 512;
  let [newTokens, prefillSeconds, decodeSeconds] = [0, 0, 0];
  let began = performance.now();
  const elapsed = () => (performance.now() - began) / 1e3;

  using cache = model.newCache(prompt.length + most);
  let at = 0;
  for (; at + step < prompt.length; at += step)
    read(model, prompt.slice(at, at + step), cache, false, options.taskNumber);
  let next = prompt.slice(at);
  for (;;) {
    const id = sample(read(model, next, cache, true, options.taskNumber)!, seen, options, random);
    if (newTokens === 0) prefillSeconds = elapsed();
    else decodeSeconds += elapsed();
    const ended = eos.has(id);
    if (!ended) {
      newTokens++;
      yield id;
    }
    if (ended || newTokens === most) {
      return {
        reason: ended ? 'eos' : 'length',
        promptTokens: prompt.length,
        newTokens,
        prefillSeconds,
        decodeSeconds,
      };
    }
    began = performance.now();
    seen.add(id);
    next = [id];
  }
}

/** @throws GraftError 'usage' for a model that is loaded for anything but writing */
export function requireWriter(task: TaskName): void {
  if (task === 'causal-lm') return;
  throw new GraftError('usage', `the model is for ${task}, and does not write text`, {
    place: 'model',
    hint: 'Use graft predict, or a model that writes',
  });
}

/** Tokens that fit behind the prompt, once all arguments have been found good. */
function roomFor(model: Model, prompt: readonly number[], options: GenerateOptions): number {
  checkSampling(options);
  const { maxNewTokens, prefillTokens = 1, seed = 0 } = options;
  const wrong = (place: string, problem: string, hint?: string) =>
    new GraftError('usage', problem, { place, ...(hint && { hint }) });
  for (const [name, value] of Object.entries({ 'max-new-tokens': maxNewTokens, 'prefill-tokens': prefillTokens })) {
    if (!(Number.isSafeInteger(value) && value > 0))
      throw wrong(name, `${name} must be a whole number above 0, and is ${value}`);
  }
  if (!Number.isSafeInteger(seed)) throw wrong('seed', `seed must be a whole number, and is ${seed}`);
  requireWriter(model.task.name);
  if (prompt.length === 0) throw wrong('prompt', 'the prompt has no tokens');
  const alien = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < model.vocabSize));
  if (alien !== undefined) throw wrong('prompt', `the id ${alien} is outside the vocabulary of ${model.vocabSize}`);
  const { virtualLength } = model.ports;
  const room = model.contextLength - virtualLength - prompt.length;
  if (room < 1) {
    const virtual = virtualLength > 0 ? ` beside ${virtualLength} virtual ones` : '';
    const problem = `the prompt has ${prompt.length} tokens${virtual}, and the model reads at most ${model.contextLength} with the answer`;
    throw wrong('prompt', problem, 'Shorten the prompt');
  }
  return room;
}
