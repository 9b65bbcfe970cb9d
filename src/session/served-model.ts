import { GraftError } from '../base/index.ts';
import { currentEngine, useThreads } from '../engine/index.ts';
import {
  Batcher,
  checkRequest,
  type GenerationDelta,
  type GenerationEnd,
  type GenerationRequest,
  GrammarThreads,
  nameOf,
  requireLanguageModel,
  vocabularyTokens,
} from '../generate/index.ts';
import { KvPool } from '../nn/index.ts';
import { freeDeviceMemory } from '../tensor/index.ts';
import type { JobContext } from './job-context.ts';
import type { ResidentModel } from './resident.ts';
import { ServedAdapters } from './served-adapters.ts';
import type { ServeOptions, ServingStats } from './serving-types.ts';

/** A model that answers many requests at once, in the engine thread. Passes and jobs take turns. */
export class ServedModel {
  readonly adapters: ServedAdapters;
  readonly #resident: ResidentModel;
  readonly #batcher: Batcher;
  readonly #grammars: GrammarThreads;
  readonly #maxQueue: number;
  /** Requests whose callers may go away. */
  readonly #active = new Set<{ readonly context: JobContext<GenerationDelta>; readonly cancel: () => void }>();
  readonly #tokens = new Map<string, { prompt: number; generated: number }>();
  #isStepping = false;
  #isClosing = false;
  readonly #whenIdle: (() => void)[] = [];

  /** @throws GraftError 'usage' for a model that generates no text, and limits that leave no block */
  constructor(resident: ResidentModel, options: ServeOptions) {
    const { maxBatchTokens = 256, maxRunning = 64, maxQueue = 256 } = options;
    const model = resident.use();
    requireLanguageModel(model.task.name);
    this.#resident = resident;
    this.#grammars = new GrammarThreads(() => vocabularyTokens(resident.tokenizer, model.vocabSize));
    this.#maxQueue = maxQueue;
    this.adapters = new ServedAdapters(resident, options.adapterMemory ?? freeDeviceMemory() / 8);
    const running = Math.min(maxRunning, maxBatchTokens);
    const most = running * KvPool.blocksFor(model.contextLength);
    const blocks = Math.min(most, Math.floor((options.kvMemory ?? freeDeviceMemory() / 4) / KvPool.blockBytes(model)));
    if (blocks < 1) {
      const problem = `the memory for keys and values is ${options.kvMemory} bytes, and a block takes ${KvPool.blockBytes(model)}`;
      throw new GraftError('usage', problem, { place: 'kvMemory', hint: 'Raise it' });
    }
    this.#batcher = new Batcher({
      limits: { maxBatchTokens, maxRunning: running, maxQueue, blocks },
      shape: { layers: model.layers, kvHeads: model.kvHeads, headDim: model.headDim },
      tokenizer: resident.tokenizer,
      activate: (batchKey, adapters) => {
        useThreads(options.threads ?? resident.threads);
        return this.adapters.activate(batchKey, adapters);
      },
    });
  }

  /** Registers the adapters that the model was loaded with. */
  async addOwnAdapters(): Promise<void> {
    const { adapters } = this.#resident.info;
    for (const name of adapters) await this.adapters.add(name, this.#resident.dirOf(name), { load: false });
  }

  /** @throws as `Serving.submit` */
  async submit(request: GenerationRequest, context: JobContext<GenerationDelta>): Promise<GenerationEnd> {
    if (this.#isClosing) throw closing();
    // An answer that has begun ends its filter itself.
    using filter = request.grammar === undefined ? undefined : await this.#grammars.begin(request.grammar);
    const adapter = await this.adapters.acquire(request).catch((error) => {
      throw this.#isClosing ? closing() : error;
    });
    try {
      return await new Promise<GenerationEnd>((resolve, reject) => {
        const begin = () => {
          if (this.#isClosing) throw closing();
          context.throwIfStopped();
          const room = checkRequest(this.#resident.use(), request, adapter.virtual);
          const listener = {
            delta: (delta: GenerationDelta) => context.emit(delta),
            end: (end: GenerationEnd) => {
              this.#active.delete(active);
              this.#count(request, end);
              resolve(end);
            },
            fail: (error: unknown) => {
              this.#active.delete(active);
              reject(error);
            },
          };
          const active = { context, cancel: this.#batcher.submit(request, adapter, room, listener, filter) };
          this.#active.add(active);
          this.#run();
        };
        this.#resident.inTurn(begin).catch(reject);
      });
    } finally {
      adapter.release();
    }
  }

  stats(): ServingStats {
    const { counts } = this.#batcher;
    return {
      ...counts,
      maxQueue: this.#maxQueue,
      adapters: this.adapters.stats,
      tensors: currentEngine().native.memory().handles,
      tokens: Object.fromEntries([...this.#tokens].map(([name, tokens]) => [name, { ...tokens }])),
    };
  }

  /** Ends serving: requests that run have `drainMs` to end. */
  async close(drainMs = 0): Promise<void> {
    this.#isClosing = true;
    if (!this.#batcher.isIdle) {
      const idle = new Promise<void>((resolve) => this.#whenIdle.push(resolve));
      const timer = setTimeout(() => void this.#resident.inTurn(() => this.#batcher.cancelAll()), drainMs);
      await idle;
      clearTimeout(timer);
    }
    await this.#grammars.close();
    await this.#resident.inTurn(() => {
      this.adapters[Symbol.dispose]();
      this.#batcher[Symbol.dispose]();
    });
  }

  #count(request: GenerationRequest, { promptTokens, newTokens }: GenerationEnd): void {
    const name = nameOf(request);
    const tokens = this.#tokens.get(name) ?? { prompt: 0, generated: 0 };
    this.#tokens.set(name, tokens);
    tokens.prompt += promptTokens;
    tokens.generated += newTokens;
  }

  /** Computes passes while there is something to compute; between two, the event loop takes messages and other jobs. */
  #run(): void {
    if (this.#isStepping) return;
    this.#isStepping = true;
    const turn = () => {
      for (const { context, cancel } of this.#active) if (context.stopRequested()) cancel();
      this.#batcher.step();
    };
    const next = () =>
      void this.#resident.inTurn(turn).then(
        () => {
          if (!this.#batcher.isIdle) return void setImmediate(next);
          this.#isStepping = false;
          for (const resolve of this.#whenIdle.splice(0)) resolve();
        },
        (error) => {
          // A fault of ours, not of a row: nothing that is in flight can go on.
          this.#batcher.failAll(error);
          this.#isStepping = false;
          for (const resolve of this.#whenIdle.splice(0)) resolve();
        },
      );
    next();
  }
}

const closing = () => new GraftError('state', 'serving ends', { data: { reason: 'closing' } });

const served = new Map<number, ServedModel>();
let nextId = 0;

/** Registers a model that is served; returns the number by which jobs name it. */
export function registerServed(model: ServedModel): number {
  served.set(nextId, model);
  return nextId++;
}

/** @throws GraftError 'state' where serving has ended */
export function servedOf(id: number): ServedModel {
  const model = served.get(id);
  if (model) return model;
  throw new GraftError('state', 'serving has ended', { data: { reason: 'closing' } });
}

export const dropServed = (id: number): boolean => served.delete(id);
