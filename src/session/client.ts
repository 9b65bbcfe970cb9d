import { Worker } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { type Comparison, type Results, runComparison } from '../compare/index.ts';
import { collectRows, type RowStream } from '../data/index.ts';
import { spinBriefly } from '../engine/index.ts';
import {
  isParsed,
  type PlanOptions,
  parseRecipe,
  type RanksPlan,
  type Recipe,
  type RecipeInput,
  type RunOptions,
  type TaskPreview,
  type TrainEvent,
  type TrainResult,
} from '../train/index.ts';
import type {
  CombineResult,
  CombineSettings,
  DoctorResult,
  MergeCheckpointResult,
  MergeCheckpointSettings,
  MergeResult,
  MergeSettings,
  ModelSettings,
  Progress,
  QuantizeResult,
  QuantizeSettings,
} from './jobs/index.ts';
import { LoadedModel } from './model.ts';
import {
  abortableSchema,
  combineSchema,
  doctorSchema,
  interrupted,
  mergeCheckpointSchema,
  mergeSchema,
  modelSchema,
  planSchema,
  quantizeSchema,
  split,
  stoppable,
  trainSchema,
} from './options.ts';
import type { Abortable, JobReply, JobRequest, RunJob } from './protocol.ts';
import { Running } from './running.ts';

/** Options of a session. */
export interface SessionOptions {
  /** Is given a line about what takes long once: a download, a build. Default: printed on stderr. */
  readonly log?: (line: string) => void;
}

/** How a model is loaded. */
export interface LoadSettings extends ModelSettings, Abortable {
  /**
   * A model of the same files in another session of this process, held in the same way: this one computes with its weights, and loads only
   * what that has not, such as another head. Default: none, it loads its own.
   */
  readonly weightsOf?: LoadedModel | undefined;
}

/** Options of a training run. */
export interface TrainOptions extends RunOptions, Abortable {}

interface PendingJob {
  readonly stop: Int32Array;
  /** Whether the thread has begun it. */
  started: boolean;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
  readonly onEvent: (event: never) => void;
}

/**
 * An engine in a thread of its own: the thread that owns a terminal, a server or an event loop only sends jobs and gets
 * events and results. Jobs run one after another. `await using` ends the thread; training that is running then stops after
 * its step, with a checkpoint.
 */
export class Session implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #pending = new Map<number, PendingJob>();
  readonly #log: (line: string) => void;
  readonly #disposing = new AbortController();
  readonly #comparing = new Set<Promise<Results>>();
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
  load(model: string, settings: LoadSettings = {}): Running<never, LoadedModel> {
    return new Running(async () => {
      const { weightsOf, ...others } = settings;
      const { args, signal } = split(modelSchema, others, 'load');
      const lent = await weightsOf?.lend();
      try {
        const { id, info } = await this.#run('load', { model, device: 'auto', ...args, lent }, { signal });
        return new LoadedModel(id, info, this.#run);
      } catch (error) {
        if (lent) await weightsOf?.takeBack(lent);
        throw error;
      }
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
  train(recipe: RecipeInput | Recipe, options: TrainOptions = {}): Running<TrainEvent, TrainResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(trainSchema, options, 'train');
      const collected = isParsed(recipe) ? recipe : withRowsCollected(recipe, signal);
      const complete = collected instanceof Promise ? await stoppable(collected, signal) : collected;
      const parsed = isParsed(complete) ? complete : parseRecipe(complete);
      const { device } = parsed.train;
      return this.#run('train', { recipe: parsed, device, ...args }, { onEvent: tell, signal });
    });
  }

  /**
   * Trains every method of a comparison on the same rows, each in a process of its own, and measures it. Iterate for lines about
   * the progress. A comparison that was stopped is resumed when it is run again.
   * @param comparison what `readComparison` returns
   */
  compare(comparison: Comparison, options: Abortable = {}): Running<string, Results> {
    return new Running(async (tell) => {
      const { signal } = split(abortableSchema, options, 'compare');
      const either = signal ? AbortSignal.any([signal, this.#disposing.signal]) : this.#disposing.signal;
      const comparing = runComparison(comparison, () => new Session({ log: this.#log }), tell, either);
      this.#comparing.add(comparing);
      return comparing.finally(() => this.#comparing.delete(comparing));
    });
  }

  /** Writes several adapters as one: LoRA by weighted combinations, bottleneck adapters as the mean of their weights. */
  combine(adapters: readonly string[], settings: CombineSettings & Abortable): Running<never, CombineResult> {
    return new Running(async () => {
      const { args, signal } = split(combineSchema, settings, 'combine');
      return this.#run('combine', { adapters, ...args }, { signal });
    });
  }

  /** Writes a model with an adapter added to its weights, and compares the outputs of both. */
  merge(model: string, settings: MergeSettings & Abortable): Running<Progress, MergeResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(mergeSchema, settings, 'merge');
      return this.#run('mergeFiles', { model, ...args }, { onEvent: tell, signal });
    });
  }

  /** Writes a checkpoint of full fine-tuning of a model as a model, whichever and however many processes wrote it. */
  mergeCheckpoint(
    model: string,
    settings: MergeCheckpointSettings & Abortable,
  ): Running<Progress, MergeCheckpointResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(mergeCheckpointSchema, settings, 'mergeCheckpoint');
      return this.#run('mergeCheckpoint', { model, ...args }, { onEvent: tell, signal });
    });
  }

  /**
   * Writes a model with its weights rounded to a format, as a GGUF file or a directory, and compares the outputs of both.
   * Iterate for the progress in tensors.
   */
  quantize(model: string, settings: QuantizeSettings & Abortable): Running<Progress, QuantizeResult> {
    return new Running(async (tell) => {
      const { args, signal } = split(quantizeSchema, settings, 'quantize');
      return this.#run('quantizeFiles', { model, ...args }, { onEvent: tell, signal });
    });
  }

  /** Measures this machine, and says what its memory has room for. @param model the model to plan for; default: three common sizes */
  doctor(options: { readonly model?: string | undefined } & Abortable = {}): Running<never, DoctorResult> {
    return new Running(async () => {
      const { args, signal } = split(doctorSchema, options, 'doctor');
      return this.#run('doctor', { ...args, device: 'auto' }, { signal });
    });
  }

  /**
   * Plans a recipe for many processes, which need not exist: memory, traffic and time of each at every ZeRO stage, and the cheapest
   * stage that fits. Nothing is loaded.
   * @param recipe as of `train`; rows are read only where nothing but they have the labels
   * @throws GraftError 'usage' for what cannot be planned
   */
  plan(recipe: RecipeInput | Recipe, options: PlanOptions & Abortable): Running<never, RanksPlan> {
    return new Running(async () => {
      const { args, signal } = split(planSchema, options, 'plan');
      const collected = isParsed(recipe) ? recipe : await withRowsCollected(recipe, signal);
      const parsed = isParsed(collected) ? collected : parseRecipe(collected);
      return this.#run('plan', { recipe: parsed, ...args }, { signal });
    });
  }

  /**
   * The rows of a recipe as the model will see them: the first ten with what is learned of them, lengths, classes, and what is cut or
   * left out. No weights are loaded, and nothing is written.
   * @param recipe as of `train`
   * @throws GraftError for anything that is wrong with the recipe, the model's config or the data
   */
  previewRows(recipe: RecipeInput | Recipe, options: Abortable = {}): Running<never, readonly TaskPreview[]> {
    return new Running(async () => {
      const { signal } = split(abortableSchema, options, 'previewRows');
      const collected = isParsed(recipe) ? recipe : await withRowsCollected(recipe, signal);
      const parsed = isParsed(collected) ? collected : parseRecipe(collected);
      return this.#run('rowsPreview', { recipe: parsed }, { signal });
    });
  }

  /** Waits for the running job to stop, and ends the thread. Jobs behind it reject as 'interrupted'. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposing.abort(new GraftError('state', 'the session has been disposed'));
    const running = [...this.#pending.values()];
    for (const { stop } of running) Atomics.store(stop, 0, 1);
    this.#ended ??= new GraftError('state', 'the session has been disposed', { hint: 'Make a new Session' });
    // The worker answers every job that it was sent; one that is stopped answers soon.
    while (this.#pending.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await Promise.allSettled(this.#comparing);
    await this.#worker.terminate();
  }

  readonly #run: RunJob = (job, args, { onEvent = () => {}, signal } = {}) => {
    return new Promise((resolve, reject) => {
      if (this.#ended !== undefined) throw this.#ended;
      if (signal?.aborted) throw interrupted('the job was stopped before it began', signal.reason);
      const id = this.#nextId++;
      const stop = new Int32Array(new SharedArrayBuffer(4));
      const onAbort = () => {
        Atomics.store(stop, 0, 1);
        const waiting = this.#pending.get(id);
        if (!waiting || waiting.started) return;
        // The thread is busy with another job, and skips this one when its turn comes.
        waiting.reject(interrupted('the job was stopped before it began', signal?.reason));
      };
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
        started: false,
        resolve: settle(resolve as never),
        reject: settle(fail),
        onEvent: onEvent as never,
      });
      this.#worker.ref();
      try {
        this.#worker.postMessage({ type: 'job', id, job, args, stop } satisfies JobRequest);
      } catch (cause) {
        this.#pending.delete(id);
        if (this.#pending.size === 0) this.#worker.unref();
        const problem = `the arguments cannot be sent to the engine thread: ${(cause as Error).message}`;
        const hint = 'Pass plain data: no functions, class instances with private fields, or streams inside rows';
        settle(reject)(new GraftError('usage', problem, { place: job, hint, cause }));
      }
    });
  };

  #receive(reply: JobReply): void {
    if (reply.type === 'log') {
      this.#log(reply.line);
      return;
    }
    const job = this.#pending.get(reply.id);
    if (!job) return;
    if (reply.type === 'started') {
      job.started = true;
      return;
    }
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

/** A recipe whose rows can cross a thread: at once, unless some of them have to be collected. */
function withRowsCollected(recipe: RecipeInput, signal: AbortSignal | undefined): object | Promise<object> {
  const pending: Promise<void>[] = [];
  const collectInto = (target: Record<string, unknown>, field: string) => {
    const rows = collectRows(target[field] as RowStream, signal);
    if (rows instanceof Promise)
      pending.push(
        rows.then((collected) => {
          target[field] = collected;
        }),
      );
  };
  const copied = (value: unknown): Record<string, unknown> | undefined =>
    typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype
      ? { ...value }
      : undefined;
  const collectData = (fields: Record<string, unknown>) => {
    const data = copied(fields.data);
    if (!data) {
      collectInto(fields, 'data');
      return;
    }
    fields.data = data;
    for (const field of ['train', 'eval']) if (field in data) collectInto(data, field);
  };
  const complete = copied(recipe);
  if (!complete) return recipe; // the schema says what is wrong
  const tasks = copied(complete.tasks);
  if (tasks) {
    complete.tasks = tasks;
    for (const [name, task] of Object.entries(tasks)) {
      const fields = copied(task);
      if (!fields) continue;
      tasks[name] = fields;
      collectData(fields);
    }
  }
  if ('data' in complete) collectData(complete);
  return pending.length > 0 ? Promise.all(pending).then(() => complete) : complete;
}
