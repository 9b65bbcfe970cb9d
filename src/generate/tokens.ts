import { GraftError } from '../base/index.ts';
import { randomStream } from '../data/index.ts';
import { type CachedRows, KvPool, type Model, packTokens, type TaskName } from '../nn/index.ts';
import { mixSeed, noGrad, ops, scope } from '../tensor/index.ts';
import { checkSampling, type SamplingOptions, sample } from './sampling.ts';

/** Options of `generate`. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. */
  readonly maxNewTokens: number;
  /** Ids that end generation; they are not part of the answer. */
  readonly eosIds?: readonly number[] | undefined;
  /** The task of the prompt, among several that share an adapter. */
  readonly taskNumber?: number | undefined;
  /** Seed of sampling: the same seed gives the same answer. Default 0. */
  readonly seed?: number | undefined;
  /** Chunk size of the prefill, in tokens: large enough for matmuls at full rate, small enough to bound memory. Default 512. */
  readonly prefillTokens?: number | undefined;
}

/** What `generate` returns at its end. */
export interface GenerateSummary {
  /** Why it ended: at an end token, at `maxNewTokens` or the end of the context, or at a stop string. */
  readonly reason: 'eos' | 'length' | 'stop';
  /** Tokens of the prompt. */
  readonly promptTokens: number;
  /** Tokens that were generated. */
  readonly newTokens: number;
  /** Time until the first token was sampled. */
  readonly prefillSeconds: number;
  /** Time for all tokens after the first, without the consumer's time between them. */
  readonly decodeSeconds: number;
}

/**
 * Runs the model on `ids` and adds them to the cache.
 * @returns the logits [V] after the last of them, where `needLogits`
 */
function forward(
  model: Model,
  ids: readonly number[],
  cache: CachedRows,
  needLogits: boolean,
  task: number | undefined,
): Float32Array | undefined {
  return noGrad(() => {
    using _ = scope();
    const hidden = model.hidden(packTokens([ids], [task]), cache);
    if (!needLogits) return undefined;
    return model.logits(ops.narrow(hidden, 0, ids.length - 1, 1), [0, 1]).data() as Float32Array;
  });
}

/**
 * Generates tokens after `promptIds`. Yields the ids one by one, each computed when the consumer asks for it, and returns a
 * summary; its reason is 'length' at `maxNewTokens` or where the model's context is full.
 * @throws GraftError 'usage' for options out of range, a model that is not a language model, and a prompt that is empty,
 *   has ids outside the vocabulary or fills the context
 */
export function* generate(
  model: Model,
  promptIds: ArrayLike<number>,
  options: GenerateOptions,
): Generator<number, GenerateSummary> {
  const prompt = Array.from(promptIds);
  const maxNewTokens = Math.min(options.maxNewTokens, checkedRoom(model, prompt, options));
  const eos = new Set(options.eosIds);
  const random = randomStream(Number(BigInt.asUintN(52, mixSeed(options.seed ?? 0))));
  const seen = new Set(prompt);
  const chunk = options.prefillTokens ?? 512;
  let [newTokens, prefillSeconds, decodeSeconds] = [0, 0, 0];
  let start = performance.now();
  const elapsed = () => (performance.now() - start) / 1e3;

  const blocks = KvPool.blocksFor(model.ports.virtualLength + prompt.length + maxNewTokens);
  using pool = new KvPool(model, blocks);
  let filled = 0;
  const cache = () => ({ pool, blocks: [Array.from({ length: blocks }, (_, b) => b)], filled: [filled] });
  let at = 0;
  for (; at + chunk < prompt.length; at += chunk) {
    forward(model, prompt.slice(at, at + chunk), cache(), false, options.taskNumber);
    filled = at + chunk + model.ports.virtualLength;
  }
  let next = prompt.slice(at);
  for (;;) {
    const id = sample(forward(model, next, cache(), true, options.taskNumber)!, seen, options, random);
    filled = (filled || model.ports.virtualLength) + next.length;
    if (newTokens === 0) prefillSeconds = elapsed();
    else decodeSeconds += elapsed();
    const ended = eos.has(id);
    if (!ended) {
      newTokens++;
      yield id;
    }
    if (ended || newTokens === maxNewTokens) {
      return {
        reason: ended ? 'eos' : 'length',
        promptTokens: prompt.length,
        newTokens,
        prefillSeconds,
        decodeSeconds,
      };
    }
    start = performance.now();
    seen.add(id);
    next = [id];
  }
}

/** Checks that a model generates text. @throws GraftError 'usage' for one with the head of another task */
export function requireLanguageModel(task: TaskName): void {
  if (task === 'causal-lm') return;
  throw new GraftError('usage', `the model is for ${task}, and does not generate text`, {
    place: 'model',
    hint: 'Use graft predict, or a language model',
  });
}

/** Checks all arguments of `generate` and returns how many tokens fit after the prompt. */
function checkedRoom(model: Model, prompt: readonly number[], options: GenerateOptions): number {
  checkSampling(options);
  const { maxNewTokens, prefillTokens = 1, seed = 0 } = options;
  const usageError = (place: string, problem: string, hint?: string) =>
    new GraftError('usage', problem, { place, ...(hint && { hint }) });
  for (const [name, value] of Object.entries({ 'max-new-tokens': maxNewTokens, 'prefill-tokens': prefillTokens })) {
    if (!(Number.isSafeInteger(value) && value > 0))
      throw usageError(name, `${name} must be a whole number above 0, and is ${value}`);
  }
  if (!Number.isSafeInteger(seed)) throw usageError('seed', `seed must be a whole number, and is ${seed}`);
  requireLanguageModel(model.task.name);
  if (prompt.length === 0) throw usageError('prompt', 'the prompt has no tokens');
  const outsideId = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < model.vocabSize));
  if (outsideId !== undefined)
    throw usageError('prompt', `the id ${outsideId} is outside the vocabulary of ${model.vocabSize}`);
  const { virtualLength } = model.ports;
  const room = model.contextLength - virtualLength - prompt.length;
  if (room < 1) {
    const virtual = virtualLength > 0 ? ` and ${virtualLength} virtual tokens` : '';
    const problem = `the prompt has ${prompt.length} tokens${virtual}, which leaves no room for an answer in the model's context length of ${model.contextLength}`;
    throw usageError('prompt', problem, 'Shorten the prompt');
  }
  return room;
}
