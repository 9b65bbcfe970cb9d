import type { RowInput } from '../data/index.ts';
import type { Quantize } from '../models/index.ts';
import type { TaskName } from '../nn/index.ts';
import { type LoadedModel, type Prediction, Session } from '../session/index.ts';
import { RequestError } from './errors.ts';

/** Requests for predictions that wait at most. */
const maxWaiting = 64;

/**
 * Classes, tags and vectors: predictions with a head, in an engine thread beside the one that generates text, with the base loaded a
 * second time when it is first asked.
 */
export class Heads implements AsyncDisposable {
  readonly #model: string;
  readonly #quantize: Quantize | undefined;
  readonly #log: (line: string) => void;
  #opened: Promise<{ session: Session; model: LoadedModel }> | undefined;
  #waiting = 0;

  constructor(model: string, quantize: Quantize | undefined, log: (line: string) => void) {
    this.#model = model;
    this.#quantize = quantize;
    this.#log = log;
  }

  /** @param adapter its directory; undefined for the base */
  async predict(
    rows: readonly RowInput[],
    options: {
      readonly adapter?: string | undefined;
      readonly task?: TaskName | undefined;
      readonly signal: AbortSignal;
    },
  ): Promise<readonly Prediction[]> {
    if (this.#waiting >= maxWaiting)
      throw new RequestError(429, 'Too many requests wait.', { code: 'queue_full', retryAfter: 1 });
    this.#waiting++;
    try {
      this.#opened ??= this.#open(options);
      const opened = this.#opened;
      const { model } = await opened.catch((error) => {
        if (this.#opened === opened) this.#opened = undefined;
        throw error;
      });
      const { predictions } = await model.predict(rows, options);
      return predictions;
    } finally {
      this.#waiting--;
    }
  }

  async #open({ adapter, task }: { readonly adapter?: string | undefined; readonly task?: TaskName | undefined }) {
    const session = new Session({ log: this.#log });
    try {
      const adapters = adapter === undefined ? {} : { adapters: [adapter] };
      return { session, model: await session.load(this.#model, { quantize: this.#quantize, task, ...adapters }) };
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
  }

  get waiting(): number {
    return this.#waiting;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const opened = await this.#opened?.catch(() => undefined);
    await opened?.session[Symbol.asyncDispose]();
  }
}
