import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import { KvPool, type Model, type TaskName } from '../nn/index.ts';
import type { AnswerListener } from './answer.ts';
import { Batcher } from './batcher.ts';
import { type GenerationRequest, noRoom } from './request.ts';
import { checkSampling } from './sampling.ts';

/** Options of a batch of one. */
export interface LoneOptions extends Omit<GenerationRequest, 'promptIds' | 'adapter' | 'priorityKey' | 'grammar'> {
  /** Chunk size of the prefill, in tokens: large enough for matmuls at full rate, small enough to bound memory. Default 512. */
  readonly prefillTokens?: number | undefined;
}

/** A batch of one row, which uses what is enabled on the model. */
export class LoneBatch implements Disposable {
  readonly #batcher: Batcher;
  readonly #cancel: () => void;

  /** @throws GraftError 'usage' as `checkRequest` does, and for an empty stop string */
  constructor(
    model: Model,
    promptIds: readonly number[],
    { prefillTokens = 512, ...options }: LoneOptions,
    listener: AnswerListener,
    tokenizer?: Tokenizer,
  ) {
    requireCount('prefill-tokens', prefillTokens);
    const { virtualLength: virtual } = model.ports;
    const request: GenerationRequest = { ...options, promptIds };
    const room = checkRequest(model, request, virtual);
    const blocks = KvPool.blocksFor(virtual + promptIds.length + Math.min(options.maxNewTokens, room) - 1);
    const limits = { maxBatchTokens: prefillTokens, maxRunning: 1, maxQueue: 1, blocks };
    this.#batcher = new Batcher({ limits, shape: model, tokenizer, activate: () => model });
    const { taskNumber } = options;
    const adapter = { number: 0, batchKey: '', contentKey: '', virtual, taskNumber };
    try {
      this.#cancel = this.#batcher.submit(request, adapter, room, listener);
    } catch (error) {
      this.#batcher[Symbol.dispose]();
      throw error;
    }
  }

  get isDone(): boolean {
    return this.#batcher.isIdle;
  }

  /** Computes one pass. */
  step(): void {
    this.#batcher.step();
  }

  /** Ends the answer, as 'interrupted', in the next step. */
  cancel(): void {
    this.#cancel();
  }

  [Symbol.dispose](): void {
    this.#batcher[Symbol.dispose]();
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

const usageError = (place: string, problem: string, hint?: string, data?: Record<string, unknown>) =>
  new GraftError('usage', problem, { place, ...(hint && { hint }), ...(data && { data }) });

function requireCount(name: string, value: number): void {
  if (Number.isSafeInteger(value) && value > 0) return;
  throw usageError(name, `${name} must be a whole number above 0, and is ${value}`);
}

/**
 * Checks a request, except for what a batch has of its own (`Batcher.submit`), and returns how many tokens fit after the prompt.
 * @param virtual virtual tokens in front of the row
 * @throws GraftError 'usage' for options out of range, a model that is not a language model, and a prompt that is empty, has ids
 *   outside the vocabulary or fills the context
 */
export function checkRequest(
  model: Pick<Model, 'task' | 'vocabSize' | 'contextLength'>,
  request: GenerationRequest,
  virtual: number,
): number {
  checkSampling(request, model.vocabSize);
  const { promptIds, maxNewTokens, seed = 0, logprobs = 0 } = request;
  requireCount('max-new-tokens', maxNewTokens);
  if (!Number.isSafeInteger(seed)) throw usageError('seed', `seed must be a whole number, and is ${seed}`);
  if (!(Number.isSafeInteger(logprobs) && logprobs >= 0))
    throw usageError('logprobs', `logprobs must be a whole number, and is ${logprobs}`);
  requireLanguageModel(model.task.name);
  if (promptIds.length === 0) throw usageError('prompt', 'the prompt has no tokens');
  const outsideId = promptIds.find((id) => !(Number.isInteger(id) && id >= 0 && id < model.vocabSize));
  if (outsideId !== undefined)
    throw usageError('prompt', `the id ${outsideId} is outside the vocabulary of ${model.vocabSize}`);
  const room = model.contextLength - virtual - promptIds.length;
  if (room < 1) {
    const also = virtual > 0 ? ` and ${virtual} virtual tokens` : '';
    const problem = `the prompt has ${promptIds.length} tokens${also}, which leaves no room for an answer in the model's context length of ${model.contextLength}`;
    throw usageError('prompt', problem, 'Shorten the prompt', { reason: noRoom });
  }
  return room;
}
