import { Worker } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { type Comparison, type Results, runComparison } from '../compare/index.ts';
import { collectRows, type RowStream } from '../data/index.ts';
import { spinBriefly } from '../engine/index.ts';
import {
  isParsed,
  parseRecipe,
  type Recipe,
  type RecipeInput,
  type TrainEvent,
  type TrainResult,
} from '../train/index.ts';
import type {
  CombineResult,
  CombineSettings,
  DoctorResult,
  MergeResult,
  MergeSettings,
  ModelSettings,
} from './jobs/index.ts';
import { LoadedModel } from './model.ts';
import type { Abortable, JobReply, JobRequest, RunJob } from './protocol.ts';
import { Running } from './running.ts';

/** Options of a session. */
export interface SessionOptions {
  /** Is given a line about what takes long once: a download, a build. Default: printed on stderr. */
  readonly log?: (line: string) => void;
}

/** Options of a training run. */
export interface TrainOptions extends Abortable {
  /** Start over; what the run directory holds is moved aside. Default: an unfinished run of the same recipe is resumed. */
  readonly fresh?: boolean;
}

interface PendingJob {
  readonly stop: Int32Array;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  readonly onEvent: (event: never) => void;
}

const interrupted = (problem: string, cause?: unknown) => new GraftError('interrupted', problem, { cause });

/**
 * An engine in a thread of its own: the thread that owns a terminal, a server or an event loop only sends jobs and gets
 * events and results. Jobs run one after another. `await using` ends the thread; training that is running then stops after
 * its step, with a checkpoint.
 */
export class Session implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #pending = new Map<number, PendingJob>();
  readonly #log: (line: string) => void;
  #nextId = 0;
  /** Why there is no engine thread any more. */
  #ended: unknown;

  /** Starts the thread; the first job starts the engine in it. */
  constructor({ log = (line) => console.error(line) }: SessionOptions = {}) {
    this.#log = log;
    spinBriefly();
    // The file has this module's own ending: .ts in a checkout, .js when published.
    const file = import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js';
    this.#worker = new Worker(new URL(file, import.meta.url));
    this.#worker.on('message', (reply: JobReply) => this.#receive(reply));
    this.#worker.on('error', (error) => this.#end(error));
    this.#worker.on('exit', (code) =>
      this.#end(new GraftError('state', `the engine thread has ended (code ${code})`, { hint: 'Make a new Session' })),
    );
    this.#worker.unref();
  }

  /**
   * Loads a model: a Hugging Face directory, a .gguf file, or a hub id, which is downloaded once.
   * @throws GraftError 'input' for a broken file, 'mismatch' for weights or adapters that do not fit, 'environment' where
   *   memory is short
   */
  load(model: string, settings: ModelSettings & Abortable = {}): Running<never, LoadedModel> {
    const { signal, ...args } = settings;
    return new Running(async () => {
      const { id, info } = await this.#run('load', { model, ...args }, { signal });
      return new LoadedModel(id, info, this.#run);
    });
  }

  /**
   * Trains what a recipe says. Await it for the result, or iterate over its events; leaving the iteration does not stop it,
   * the signal does. Loaded models give up their weights meanwhile, and load them again when they are next used.
   * @param recipe the fields of a recipe file (docs/recipe.md), with rows in memory wherever it names a file, or what
   *   `readRecipe` returns
   * @throws GraftError 'usage' with all mistakes of the recipe, 'interrupted' when stopped: `data` then has the step and the
   *   checkpoint, and the same recipe resumes there
   */
  train(recipe: RecipeInput | Recipe, { fresh = false, signal }: TrainOptions = {}): Running<TrainEvent, TrainResult> {
    return new Running(async (tell) => {
      const parsed = isParsed(recipe) ? recipe : parseRecipe(await withRowsCollected(recipe));
      return this.#run('train', { recipe: parsed, fresh }, { onEvent: tell, signal });
    });
  }

  /**
   * Trains every method of a comparison on the same rows, each in a process of its own, and measures it. Iterate for lines about
   * the progress. A comparison that was stopped is resumed when it is run again.
   * @param comparison what `readComparison` returns
   */
  compare(comparison: Comparison, { signal }: Abortable = {}): Running<string, Results> {
    return new Running((tell) => runComparison(comparison, () => new Session({ log: this.#log }), tell, signal));
  }

  /** Writes several adapters as one: LoRA by weighted combinations, bottleneck adapters as the mean of their weights. */
  combine(adapters: readonly string[], settings: CombineSettings & Abortable): Running<never, CombineResult> {
    const { signal, ...args } = settings;
    return new Running(() => this.#run('combine', { adapters, ...args }, { signal }));
  }

  /** Writes a model with an adapter added to its weights, and compares the outputs of both. */
  merge(model: string, settings: MergeSettings & Abortable): Running<never, MergeResult> {
    const { signal, ...args } = settings;
    return new Running(() => this.#run('mergeFiles', { model, ...args }, { signal }));
  }

  /** Measures this machine, and says what its memory has room for. @param model the model to plan for; default: three common sizes */
  doctor({ model, signal }: { readonly model?: string } & Abortable = {}): Running<never, DoctorResult> {
    return new Running(() => this.#run('doctor', model === undefined ? {} : { model }, { signal }));
  }

  /** Waits for the running job to stop, and ends the thread. Jobs behind it reject as 'interrupted'. */
  async [Symbol.asyncDispose](): Promise<void> {
    const running = [...this.#pending.values()];
    for (const { stop } of running) Atomics.store(stop, 0, 1);
    this.#ended ??= new GraftError('state', 'the session has been disposed', { hint: 'Make a new Session' });
    // The worker answers every job that it was sent; one that is stopped answers soon.
    while (this.#pending.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await this.#worker.terminate();
  }

  readonly #run: RunJob = (job, args, { onEvent = () => {}, signal } = {}) => {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) throw this.#ended;
      if (signal?.aborted) throw interrupted('aborted before it began', signal.reason);
      const id = this.#nextId++;
      const stop = new Int32Array(new SharedArrayBuffer(4));
      const onAbort = () => Atomics.store(stop, 0, 1);
      signal?.addEventListener('abort', onAbort);
      const settle =
        <T>(pass: (value: T) => void) =>
        (value: T) => {
          signal?.removeEventListener('abort', onAbort);
          pass(value);
        };
      const fail = (error: unknown) => {
        const stopped = signal?.aborted && error instanceof GraftError && error.kind === 'interrupted';
        if (stopped) error.cause ??= signal.reason;
        reject(error);
      };
      this.#pending.set(id, {
        stop,
        resolve: settle(resolve as never),
        reject: settle(fail),
        onEvent: onEvent as never,
      });
      this.#worker.ref();
      this.#worker.postMessage({ type: 'job', id, job, args, stop } satisfies JobRequest);
    });
  };

  #receive(reply: JobReply): void {
    if (reply.type === 'log') {
      this.#log(reply.line);
      return;
    }
    const job = this.#pending.get(reply.id);
    if (!job) return;
    if (reply.type === 'event') {
      job.onEvent(reply.event as never);
      return;
    }
    this.#pending.delete(reply.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if (reply.type === 'result') job.resolve(reply.result as never);
    else job.reject(GraftError.from(reply.error));
  }

  #end(error: unknown): void {
    this.#ended ??= error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }
}

/** A recipe whose rows can cross a thread. */
async function withRowsCollected(recipe: RecipeInput): Promise<object> {
  const isStream = (data: unknown): data is RowStream =>
    typeof data === 'string' ||
    Array.isArray(data) ||
    (typeof data === 'object' && data !== null && Symbol.asyncIterator in data);
  const collected = async (data: RecipeInput['data']) => {
    if (data === undefined || isStream(data)) return data && (await collectRows(data));
    return {
      ...data,
      train: await collectRows(data.train),
      ...(data.eval !== undefined && { eval: await collectRows(data.eval) }),
    };
  };
  const { data, tasks, ...rest } = recipe;
  return {
    ...rest,
    ...(data !== undefined && { data: await collected(data) }),
    ...(tasks && {
      tasks: Object.fromEntries(
        await Promise.all(
          Object.entries(tasks).map(
            async ([name, task]) => [name, { ...task, data: await collected(task.data) }] as const,
          ),
        ),
      ),
    }),
  };
}
