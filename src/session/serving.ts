import type { GenerationDelta, GenerationEnd, GenerationRequest } from '../generate/index.ts';
import { split, submitSchema } from './options.ts';
import type { Abortable, RunJob } from './protocol.ts';
import { Running } from './running.ts';
import type { AddAdapterOptions, ServeOptions, ServingStats } from './serving-types.ts';

/** A model that answers many requests at once; `close` ends it. */
export interface Serving extends AsyncDisposable {
  /**
   * Answers one request. Iterate for its pieces; leaving the iteration ends it, as the signal does: its reason is then 'interrupted'.
   * @throws GraftError 'usage' for what can never be answered (options, context, an unknown adapter); 'state' with
   *   `data.reason` 'queue-full' where too many wait
   */
  submit(request: GenerationRequest, options?: Abortable): Running<GenerationDelta, GenerationEnd>;
  /** Returns where serving stands. */
  stats(): Promise<ServingStats>;
  /** Registers an adapter. @throws GraftError 'usage' for a name that is taken, 'input' and 'mismatch' for one that does not fit */
  addAdapter(name: string, dir: string, options?: AddAdapterOptions): Promise<void>;
  /** Takes a name away; requests that use the adapter end with it. @throws GraftError 'usage' for a name that is not there */
  removeAdapter(name: string): Promise<void>;
  /** Ends serving. Requests that run end first, for `drainMs` at most; then they end as 'interrupted'. Default: 0. */
  close(options?: { readonly drainMs?: number | undefined }): Promise<void>;
}

/** The handle of a model that is served in a session's engine thread. */
export class ModelServing implements Serving {
  readonly #run: RunJob;
  readonly #started: Promise<number>;
  #closed: Promise<void> | undefined;

  /** @internal `LoadedModel.serve` makes these. */
  constructor(modelId: number, options: ServeOptions, run: RunJob) {
    this.#run = run;
    this.#started = run('serve', { modelId, ...options }).then(({ servingId }) => servingId);
    // Whoever submits is told.
    this.#started.catch(() => {});
  }

  submit(request: GenerationRequest, options: Abortable = {}): Running<GenerationDelta, GenerationEnd> {
    const left = new AbortController();
    return new Running(
      async (tell) => {
        const { args, signal } = split(submitSchema, { ...request, ...options }, 'submit');
        const either = signal ? AbortSignal.any([signal, left.signal]) : left.signal;
        const servingId = await this.#started;
        return this.#run('submit', { servingId, request: args }, { onEvent: tell, signal: either });
      },
      () => left.abort(),
    );
  }

  async stats(): Promise<ServingStats> {
    return this.#run('servingStats', { servingId: await this.#started });
  }

  async addAdapter(name: string, dir: string, options: AddAdapterOptions = {}): Promise<void> {
    await this.#run('serveAdapter', { servingId: await this.#started, name, dir, ...options });
  }

  async removeAdapter(name: string): Promise<void> {
    await this.#run('dropAdapter', { servingId: await this.#started, name });
  }

  async close({ drainMs }: { readonly drainMs?: number | undefined } = {}): Promise<void> {
    this.#closed ??= this.#started.then(
      (servingId) => this.#run('closeServing', { servingId, drainMs }),
      () => {},
    );
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
