import type { RowInput } from '../data/index.ts';
import type { TaskName } from '../nn/index.ts';
import { type LoadedModel, type PredictResult, type RowsOptions, Session } from '../session/index.ts';
import { RequestError } from './errors.ts';
import type { ServerOptions } from './options.ts';

/** Requests for predictions that wait at most. */
const maxWaiting = 64;

/** How rows are predicted. The task is always told: what the model was loaded for is that of the first request. */
type HeadOptions = Pick<RowsOptions, 'adapter' | 'format' | 'maxLength'> & {
  readonly task: TaskName;
  readonly signal: AbortSignal;
};

/**
 * Classes, tags and vectors: predictions with a head, in an engine thread beside the one that generates text, with the base loaded a
 * second time when it is first asked.
 */
export class Heads implements AsyncDisposable {
  readonly #model: string;
  readonly #held: Pick<ServerOptions, 'quantize' | 'activation'>;
  readonly #threads: number | undefined;
  readonly #log: (line: string) => void;
  #opened: Promise<{ session: Session; model: LoadedModel }> | undefined;
  #waiting = 0;

  constructor(
    { model, quantize, activation, threads }: Pick<ServerOptions, 'model' | 'quantize' | 'activation' | 'threads'>,
    log: (line: string) => void,
  ) {
    this.#model = model;
    this.#held = { quantize, activation };
    this.#threads = threads;
    this.#log = log;
  }

  /** @param adapter its directory; undefined for the base */
  async predict(rows: readonly RowInput[], options: HeadOptions): Promise<PredictResult> {
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
      return await model.predict(rows, options);
    } finally {
      this.#waiting--;
    }
  }

  async #open({ adapter, task }: HeadOptions) {
    const session = new Session({ log: this.#log });
    try {
      const adapters = adapter === undefined ? {} : { adapters: [adapter] };
      const options = { ...this.#held, threads: this.#threads, task, ...adapters };
      return { session, model: await session.load(this.#model, options) };
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
