import { GraftError } from '../base/index.ts';
import type { Tokenizer } from '../data/index.ts';
import { KvPool, type KvShape, type Model } from '../nn/index.ts';
import { Answer, type AnswerListener } from './answer.ts';
import { type AdapterOfRequest, bankKey, type GenerationRequest, noRoom, type TokenFilter } from './request.ts';
import type { Sampled } from './row-sampler.ts';
import { Runner } from './runner.ts';
import { Scheduler, type SchedulerLimits, type StepRow } from './scheduler.ts';

export interface BatcherOptions {
  readonly limits: Omit<SchedulerLimits, 'blockSize'>;
  readonly shape: KvShape;
  /** Without one, answers have ids and no text. */
  readonly tokenizer?: Tokenizer | undefined;
  /**
   * Returns the model, with nothing enabled but what rows of the batch key use. Called before each pass.
   * @param adapters the numbers that the rows of the pass use, in order and each once
   */
  activate(batchKey: string, adapters: readonly number[]): Model;
  /** Milliseconds. Default: `performance.now`. */
  now?(): number;
}

/** Answers many requests at once: rows join and leave between passes. Nothing runs but in `step`. */
export class Batcher implements Disposable {
  readonly #options: BatcherOptions;
  readonly #scheduler: Scheduler;
  readonly #runner: Runner;
  readonly #answers = new Map<StepRow['sequence'], Answer>();
  readonly #now: () => number;

  constructor(options: BatcherOptions) {
    const pool = new KvPool(options.shape, options.limits.blocks);
    this.#options = options;
    this.#scheduler = new Scheduler({ ...options.limits, blockSize: pool.blockSize });
    this.#runner = new Runner(pool);
    this.#now = options.now ?? (() => performance.now());
  }

  get isIdle(): boolean {
    return this.#scheduler.isIdle;
  }

  get counts() {
    const { waiting, running, counts } = this.#scheduler;
    return { waiting, running, ...counts };
  }

  /**
   * Queues a request, whose arguments have been checked (`checkRequest`).
   * @param room tokens that the model's context has for the answer
   * @param filter of the request's grammar
   * @returns a function that cancels it: it then ends, as 'interrupted', before the next pass
   * @throws GraftError 'usage' for an empty stop string, and what there is no room for; 'state' with `data.reason` 'queue-full'
   */
  submit(
    request: GenerationRequest,
    adapter: AdapterOfRequest,
    room: number,
    listener: AnswerListener,
    filter?: TokenFilter,
  ): () => void {
    const { tokenizer } = this.#options;
    const poolRoom = this.#scheduler.longestRow - adapter.virtual - request.promptIds.length;
    if (poolRoom < 1) {
      const problem = `the prompt has ${request.promptIds.length} tokens, and the memory for keys and values holds ${this.#scheduler.longestRow - 1}`;
      throw new GraftError('usage', problem, {
        place: 'prompt',
        hint: 'Shorten the prompt, or raise the memory',
        data: { reason: noRoom },
      });
    }
    const maxNewTokens = Math.min(request.maxNewTokens, room, poolRoom);
    if (request.requireRoom && maxNewTokens < request.maxNewTokens) {
      const where = room < poolRoom ? "the model's context" : 'the memory for keys and values';
      const problem = `the answer may have ${request.maxNewTokens} tokens, and after a prompt of ${request.promptIds.length} there is room for ${maxNewTokens} in ${where}`;
      throw new GraftError('usage', problem, { place: 'max_tokens', hint: 'Ask for fewer', data: { reason: noRoom } });
    }
    const answer = new Answer({ request, adapter, maxNewTokens, tokenizer, filter, listener, now: this.#now() });
    if (!this.#scheduler.add(answer.sequence)) {
      throw new GraftError('state', `${this.#scheduler.waiting} requests wait already`, {
        hint: 'Try again later',
        data: { reason: 'queue-full' },
      });
    }
    this.#answers.set(answer.sequence, answer);
    return () => {
      answer.sequence.cancelled = true;
    };
  }

  /** Computes one pass, and tells the listeners what came of it. A pass that fails ends the rows that it fails for. */
  step(): void {
    const { rows, ended } = this.#scheduler.plan(this.#now());
    for (const sequence of ended) this.#finish(sequence);
    if (rows.length === 0) return;
    for (const { sequence } of rows) this.#answers.get(sequence)!.began(this.#now());
    const results = this.#compute(rows);
    const done = rows
      .map((row, i) => ({ row, result: results[i] }))
      .filter(({ row, result }) => {
        if (!(result instanceof Failure)) return true;
        this.#fail(row.sequence, result.error);
        return false;
      }) as { readonly row: StepRow; readonly result: Sampled | undefined }[];
    const sampled = done.map(({ result }) => result?.id);
    this.#scheduler.apply({ rows: done.map(({ row }) => row) }, sampled);
    const now = this.#now();
    for (const { row, result } of done) {
      const { sequence } = row;
      if (!result) continue;
      const answer = this.#answers.get(sequence)!;
      answer.sampled(now);
      if (sequence.ended !== 'eos') {
        const reason = answer.take(result);
        if (reason) this.#scheduler.end(sequence, reason);
      }
      if (sequence.ended) this.#finish(sequence);
    }
  }

  /** Ends all requests with an error. */
  failAll(error: unknown): void {
    for (const sequence of this.#answers.keys()) this.#fail(sequence, error);
  }

  /** Ends all requests, as 'interrupted'. */
  cancelAll(): void {
    for (const sequence of this.#answers.keys()) sequence.cancelled = true;
    this.step();
  }

  /** One pass for all rows; if it fails, one for each, so that a row fails alone. */
  #compute(rows: readonly StepRow[]): readonly (Sampled | undefined | Failure)[] {
    const { batchKey } = rows[0]!.sequence;
    try {
      const adapters = [...new Set(rows.map(({ sequence }) => sequence.adapter))];
      const model = this.#options.activate(batchKey, adapters);
      const full = rows.map((row) => {
        const { sampler, adapter } = this.#answers.get(row.sequence)!;
        return { ...row, sampler, taskNumber: adapter.taskNumber };
      });
      return this.#runner.run(model, full, batchKey === bankKey);
    } catch (error) {
      if (rows.length === 1) return [new Failure(error)];
      return rows.flatMap((row) => this.#compute([row]));
    }
  }

  #finish(sequence: StepRow['sequence']): void {
    this.#answers.get(sequence)!.finish(this.#now());
    this.#answers.delete(sequence);
  }

  #fail(sequence: StepRow['sequence'], error: unknown): void {
    this.#scheduler.end(sequence, 'interrupted');
    this.#answers.get(sequence)!.fail(error);
    this.#answers.delete(sequence);
  }

  [Symbol.dispose](): void {
    this.#runner[Symbol.dispose]();
  }
}

/** Why a row could not be computed. */
class Failure {
  readonly error: unknown;
  constructor(error: unknown) {
    this.error = error;
  }
}
