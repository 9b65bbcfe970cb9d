import type { RowInput } from '../data/index.ts';
import type { TaskName } from '../nn/index.ts';
import type { Activation } from '../quant/index.ts';
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
 * Classes, tags and vectors: predictions with a head. Beside a model that generates text they have an engine thread of their own, begun when
 * it is first asked for, whose model computes with the same weights.
 */
export class Heads implements AsyncDisposable {
  readonly #model: LoadedModel;
  readonly #beside: boolean;
  readonly #activation: Activation | undefined;
  readonly #threads: number | undefined;
  readonly #log: (line: string) => void;
  #session: Session | undefined;
  #opened: Promise<LoadedModel> | undefined;
  #waiting = 0;

  /** @param beside whether the model generates text meanwhile; else it predicts itself */
  constructor(
    model: LoadedModel,
    beside: boolean,
    { threads, activation }: Pick<ServerOptions, 'threads' | 'activation'>,
    log: (line: string) => void,
  ) {
    this.#model = model;
    this.#beside = beside;
    this.#activation = activation;
    this.#threads = threads;
    this.#log = log;
  }

  /** @param adapter its directory; undefined for the base */
  async predict(rows: readonly RowInput[], options: HeadOptions): Promise<PredictResult> {
    if (this.#waiting >= maxWaiting)
      throw new RequestError(429, 'Too many requests wait.', { code: 'queue_full', retryAfter: 1 });
    this.#waiting++;
    try {
      this.#opened ??= this.#beside ? this.#open(options) : Promise.resolve(this.#model);
      const opened = this.#opened;
      const model = await opened.catch((error) => {
        if (this.#opened === opened) this.#opened = undefined;
        throw error;
      });
      return await model.predict(rows, options);
    } finally {
      this.#waiting--;
    }
  }

  async #open({ adapter, task }: HeadOptions): Promise<LoadedModel> {
    const session = new Session({ log: this.#log });
    try {
      const { path, quantize, device } = this.#model.info;
      const adapters = adapter === undefined ? {} : { adapters: [adapter] };
      const how = { quantize, device, activation: this.#activation, threads: this.#threads, weightsOf: this.#model };
      const model = await session.load(path, { ...how, task, ...adapters });
      this.#session = session;
      return model;
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
  }

  get waiting(): number {
    return this.#waiting;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened?.catch(() => undefined);
    await this.#session?.[Symbol.asyncDispose]();
  }
}
