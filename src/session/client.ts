import { Worker } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { spinBriefly } from '../engine/index.ts';
import type { jobs } from './jobs/index.ts';

type Jobs = typeof jobs;
type Args<K extends keyof Jobs> = Parameters<Jobs[K]>[0];
type Event<K extends keyof Jobs> =
  Parameters<Jobs[K]> extends [unknown, (event: infer E) => void, ...unknown[]] ? E : never;
type Result<K extends keyof Jobs> = Awaited<ReturnType<Jobs[K]>>;

/** A line about something slow that is being done once: a download, a build. */
export interface LogEvent {
  readonly type: 'log';
  readonly line: string;
}

interface Pending {
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  readonly onEvent: ((event: never) => void) | undefined;
}

/**
 * An engine in a thread of its own. The thread that owns a terminal, a server or a user's event loop only sends jobs and
 * gets events and results (design §3). Jobs run one after the other; `await using` ends the thread.
 *
 * The model of the last `generate`, `evaluate` or `logits` stays loaded with its adapters, so that asking again, with this
 * adapter or with another, costs no load.
 */
export class Session implements AsyncDisposable {
  readonly #worker: Worker;
  /** One more than the id of the job that should end when it can. Shared memory, for a busy thread reads no messages. */
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #pending = new Map<number, Pending>();
  #next = 0;
  /** Why there is no engine thread any more. */
  #ended: unknown;

  constructor() {
    spinBriefly();
    // The file has this module's own ending: .ts in a checkout, .js when published.
    this.#worker = new Worker(
      new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js', import.meta.url),
      { workerData: { stop: this.#stop } },
    );
    this.#worker.on('message', ({ id, event, result, error }) => {
      const pending = this.#pending.get(id);
      if (!pending) return;
      if (event !== undefined) {
        pending.onEvent?.(event as never);
        return;
      }
      this.#pending.delete(id);
      if (error === undefined) pending.resolve(result as never);
      else pending.reject(GraftError.from(error));
      if (this.#pending.size === 0) this.#worker.unref();
    });
    const fail = (error: unknown) => {
      this.#ended ??= error;
      for (const { reject } of this.#pending.values()) reject(error);
      this.#pending.clear();
    };
    this.#worker.on('error', fail);
    this.#worker.on('exit', (code) => fail(new GraftError('state', `the engine thread has ended (code ${code})`)));
    this.#worker.unref();
  }

  /** Runs a job in the engine thread. `onEvent` is told what happens on the way. */
  run<K extends keyof Jobs>(job: K, args: Args<K>, onEvent?: (event: Event<K> | LogEvent) => void): Promise<Result<K>> {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) throw this.#ended;
      const id = this.#next++;
      this.#worker.postMessage({ id, job, args });
      this.#pending.set(id, { resolve: resolve as never, reject, onEvent: onEvent as never });
      this.#worker.ref();
    });
  }

  /** Asks the running job to stop: training ends after the step it is in, with a checkpoint, as an 'interrupted' error. */
  stop(): void {
    const [running] = this.#pending.keys();
    if (running !== undefined) Atomics.store(this.#stop, 0, running + 1);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}
