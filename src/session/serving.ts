import type { GenerationDelta, GenerationEnd, GenerationRequest } from '../generate/index.ts';
import { split, submitSchema } from './options.ts';
import type { Abortable, RunJob } from './protocol.ts';
import { Running } from './running.ts';
import type { AddAdapterOptions, ServeOptions, Serving, ServingStats } from './serving-types.ts';

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
