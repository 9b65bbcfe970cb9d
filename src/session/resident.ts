/** Models in the engine thread that sessions hold handles of, each with the adapters that were put on it. */
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { adapterIn, loadAdapter, readAdapterConfig, taskNumberOf, taskOfAdapter } from '../adapters/index.ts';
import { GraftError, nearest } from '../base/index.ts';
import { type Tokenizer, tokenizerIfAny, tokenizerOf } from '../data/index.ts';
import { undoneQuantization } from '../io/index.ts';
import type { AttachedAdapter } from '../methods/index.ts';
import { headOf, type LoadOptions, loadModel, type Quantize, SharedWeights, vocabSizeOf } from '../models/index.ts';
import { type Model, type TaskName, tensorBytes } from '../nn/index.ts';
import type { Activation } from '../quant/index.ts';
import { currentDevice, onDevice, type Tensor } from '../tensor/index.ts';
import { stateOf } from './file-state.ts';
import type { JobContext } from './job-context.ts';
import { inTurn } from './turns.ts';

/** Adapters that stay attached to a model; of more, the one that was used longest ago is detached. */
const maxAttached = 16;

/** Facts about a loaded model. */
export interface ModelInfo {
  /** Path of the files that it was loaded from. */
  readonly path: string;
  /** The name of the family: `model_type` of its `config.json`. */
  readonly family: string;
  /** The task that it is loaded for now: that of the adapter used last, or of the checkpoint. */
  readonly task: TaskName;
  /** Names of the classes of its head; empty for tasks without classes. */
  readonly labels: readonly string[];
  /** Numbers in the base's weights, tied ones once. */
  readonly parameters: number;
  /** Bytes that the weights take in memory. */
  readonly weightBytes: number;
  /** Number of token ids that it knows. */
  readonly vocabSize: number;
  /** Tokens that it reads at most. */
  readonly contextLength: number;
  /** How its weights are held in memory. */
  readonly quantize: Quantize;
  /** Where its weights are: cpu, or a GPU such as cuda:0. */
  readonly device: string;
  /** Names of its adapters. */
  readonly adapters: readonly string[];
  /** What of it is not as its files have it. */
  readonly notes: readonly string[];
}

/** Files of a directory that a model is made from. */
const modelFile =
  /\.(safetensors|gguf|bin|model)$|^(config|tokenizer\w*|special_tokens_map|vocab|added_tokens|.*\.index)\.(json|txt)$/;

/** Adapters of one task, the same labels and the same vocabulary share a model; causal-lm has no head of its own. */
const headKey = ({ task, labels, vocabRows, ...rest }: LoadOptions): string =>
  task === 'causal-lm' ? `${vocabRows ?? ''}` : JSON.stringify([task, labels, vocabRows, rest]);

/** What is told of a vocabulary that an adapter resized. */
export const resizedNote = (before: number, after: number, hasTokenizer: boolean): string =>
  `the vocabulary of the base, ${before} tokens, is resized to the ${after} of the adapter, with the tokenizer ${hasTokenizer ? 'beside it' : 'of the base'}`;

export class ResidentModel implements Disposable {
  readonly path: string;
  readonly quantize: Quantize;
  readonly #activation: Activation | undefined;
  /** The checkpoint's own task. */
  readonly #checkpointTask: TaskName;
  readonly #state: string;
  /** Directories of adapters by name. */
  readonly #named = new Map<string, string>();
  /** Attached adapters by the state of their files, the one used last at the end. */
  readonly #attached = new Map<string, AttachedAdapter>();
  #loaded: { readonly key: string; readonly model: Model } | undefined;
  #tokenizer: Tokenizer | undefined;
  /** Where the tokenizer is read: with the model, or with the adapter in use. */
  #tokenizerPath: string;
  #isDisposed = false;
  readonly #onRelease = new Set<() => void>();

  /** What it was asked to be loaded for, and the threads of its jobs. */
  readonly #task: TaskName | undefined;
  readonly threads: number | undefined;
  /** That of new tensors when it was loaded. */
  readonly device = currentDevice();
  #info: Omit<ModelInfo, 'adapters' | 'notes'> | undefined;
  readonly #weights: SharedWeights;
  /** Whether the weights are another thread's: they are kept while it loads another head. */
  readonly #isBorrower: boolean;

  /** @param lent weights of a model in another thread; default: its own */
  constructor(
    path: string,
    quantize: Quantize,
    task?: TaskName,
    threads?: number,
    activation?: Activation,
    lent?: SharedWeights,
  ) {
    this.path = path;
    this.#weights = lent ?? new SharedWeights();
    this.#isBorrower = lent !== undefined;
    this.#tokenizerPath = path;
    this.quantize = quantize;
    this.#activation = activation;
    this.#task = task;
    this.threads = threads;
    this.#checkpointTask = headOf(path).name;
    this.#state = stateOf(path, modelFile);
  }

  get info(): ModelInfo {
    return { ...this.#info!, adapters: [...this.#named.keys()], notes: this.notes };
  }

  /** @throws GraftError 'input' for a directory that is not an adapter; 'usage' for a name that is taken */
  addAdapter(name: string, path: string): void {
    const dir = adapterIn(path);
    if (this.#named.has(name) && this.#named.get(name) !== dir) {
      throw new GraftError('usage', `this model has an adapter named '${name}' already`, {
        place: dir,
        hint: 'Remove it first, or give this one another name',
      });
    }
    readAdapterConfig(dir);
    this.#named.set(name, dir);
  }

  /** @throws GraftError 'usage' for a name that is not there */
  removeAdapter(name: string): void {
    const dir = this.#named.get(name);
    if (dir === undefined) throw this.#unknown(name, `there is no adapter named '${name}'`);
    this.#named.delete(name);
    const state = stateOf(dir);
    this.#attached.get(state)?.detach();
    this.#attached.delete(state);
  }

  /** The directory of an adapter, given by its name or as a directory. @throws GraftError 'usage' for neither */
  dirOf(adapter: string): string {
    const dir = this.#named.get(adapter) ?? adapter;
    if (dir !== adapter || statSync(dir, { throwIfNoEntry: false })) return adapterIn(dir);
    throw this.#unknown(adapter, `there is no adapter named '${adapter}', and no such directory`);
  }

  #unknown(name: string, problem: string): GraftError {
    const names = [...this.#named.keys()];
    const near = nearest(name, names);
    const hint = near ? `Did you mean '${near}'?` : `This model's adapters: ${names.join(', ') || 'none'}`;
    return new GraftError('usage', problem, { place: 'adapter', hint });
  }

  /**
   * The model with one adapter enabled, or none. It is loaded for `task`, else for the adapter's task, else for the checkpoint's;
   * where that needs another head than it has, it is loaded again.
   * @param adapter name or directory
   * @throws what `loadModel` and `loadAdapter` throw; 'mismatch' where neither checkpoint nor adapter has the task's head
   */
  use(adapter?: string, task?: TaskName, context?: Pick<JobContext, 'throwIfStopped'>): Model {
    if (this.#isDisposed) throw disposed();
    const dir = adapter === undefined ? undefined : this.dirOf(adapter);
    if (dir === undefined && this.#tokenizerPath !== this.path) {
      this.#tokenizer = undefined;
      this.#tokenizerPath = this.path;
    }
    const fromAdapter = dir === undefined ? { trainedHead: true } : this.#headOf(dir);
    const wanted = task ?? (dir === undefined ? this.#task : undefined);
    const head = { task: this.#checkpointTask, ...fromAdapter, ...(wanted && { task: wanted }) };
    const key = headKey(head);
    if (this.#loaded?.key !== key) {
      this.release();
      const { path, quantize } = this;
      if (stateOf(path, modelFile) !== this.#state) {
        throw new GraftError('state', 'the files of this model were changed after it was loaded', {
          place: path,
          hint: 'Load it again',
        });
      }
      const model = loadModel(path, {
        quantize,
        weights: this.#weights,
        activation: this.#activation,
        ...head,
        progress: () => context?.throwIfStopped(),
      });
      this.#loaded = { key, model };
      const { family, parameters, vocabSize, contextLength } = model;
      const { name, labels } = model.task;
      const weightBytes = tensorBytes(model.root);
      const held = { weightBytes, quantize, device: this.device };
      this.#info = { path, family, task: name, labels, parameters, vocabSize, contextLength, ...held };
    }
    const { model } = this.#loaded!;
    for (const other of this.#attached.values()) other.enabled = false;
    if (dir === undefined) return model;
    const state = stateOf(dir);
    const active = this.#attached.get(state) ?? loadAdapter(model, dir);
    active.enabled = true;
    this.#attached.delete(state);
    this.#attached.set(state, active);
    if (this.#attached.size > maxAttached) {
      const [[oldest, unused]] = this.#attached as unknown as [[string, AttachedAdapter]];
      unused.detach();
      this.#attached.delete(oldest);
    }
    return model;
  }

  /** The head that an adapter needs. Of a vocabulary that is not the base's, the tokenizer beside the adapter is taken, if there is one. */
  #headOf(dir: string): LoadOptions {
    const { vocabRows, ...head } = taskOfAdapter(dir);
    const isOther = vocabRows !== undefined && vocabRows !== vocabSizeOf(this.path);
    const tokenizerPath = isOther && existsSync(join(dir, 'tokenizer.json')) ? dir : this.path;
    if (tokenizerPath !== this.#tokenizerPath) this.#tokenizer = undefined;
    this.#tokenizerPath = tokenizerPath;
    return isOther ? { ...head, vocabRows } : head;
  }

  /** What of the loaded model is not as its files have it. */
  get notes(): string[] {
    const rows = this.#loaded?.model.vocabSize;
    const own = rows === undefined ? rows : vocabSizeOf(this.path);
    return [
      ...undoneQuantization(this.#loaded?.model.config ?? {}),
      ...(rows === own ? [] : [resizedNote(own!, rows!, this.#tokenizerPath !== this.path)]),
    ];
  }

  /**
   * The task number of rows that have none: as asked for, else the adapter's.
   * @throws GraftError 'usage' for one that nothing on the model in use reads
   */
  taskNumber(adapter: string | undefined, taskNumber: number | undefined): number | undefined {
    if (taskNumber !== undefined) requireTasks(this.#loaded!.model.ports);
    return taskNumber ?? (adapter === undefined ? undefined : taskNumberOf(this.dirOf(adapter)));
  }

  /** @throws what `tokenizerOf` throws */
  get tokenizer(): Tokenizer {
    this.#tokenizer ??= tokenizerOf(this.#tokenizerPath);
    return this.#tokenizer;
  }

  /** Undefined for a model without one. */
  get tokenizerIfAny(): Tokenizer | undefined {
    this.#tokenizer ??= tokenizerIfAny(this.#tokenizerPath);
    return this.#tokenizer;
  }

  /** Calls back before the weights are freed, for whoever has put something on the model. @returns a function that ends this */
  onRelease(callback: () => void): () => void {
    this.#onRelease.add(callback);
    return () => this.#onRelease.delete(callback);
  }

  /** Runs work as `inTurn` does, with new tensors on the model's device: of jobs that run beside others, each turn sets it anew. */
  inTurn<T>(work: () => T): Promise<T> {
    return inTurn(() => onDevice(this.device, work));
  }

  /** Frees weights and adapters; the next use loads them again. */
  release(): void {
    if (!this.#loaded) return;
    for (const callback of this.#onRelease) callback();
    const { model } = this.#loaded;
    this.#loaded = undefined;
    for (const adapter of this.#attached.values()) adapter[Symbol.dispose]();
    this.#attached.clear();
    model[Symbol.dispose]();
    if (!this.#isBorrower) this.#weights[Symbol.dispose]();
  }

  /** The weights as they are in memory, of which a model in another thread may be made. */
  get weights(): ReadonlyMap<string, Tensor> {
    if (!this.#loaded) this.use();
    return this.#weights.entries;
  }

  [Symbol.dispose](): void {
    this.release();
    this.#weights[Symbol.dispose]();
    this.#isDisposed = true;
  }
}

/** @param number of the adapter in a bank. @throws GraftError 'usage' where no prompt depends on the task of a row */
export function requireTasks(ports: Model['ports'], number?: number): void {
  if (ports.readsTasks(number)) return;
  throw new GraftError('usage', 'a task number is for prompts that were trained on several tasks, and there is none', {
    place: 'taskNumber (--task-number)',
    hint: 'Leave it out, or give an adapter of the method multitask-prompt',
  });
}

const disposed = () => new GraftError('state', 'this model has been disposed', { hint: 'Load it again' });
const residents = new Map<number, ResidentModel>();
let nextId = 0;

/** Registers a model; returns the number by which jobs name it. */
export function registerResident(resident: ResidentModel): number {
  residents.set(nextId, resident);
  return nextId++;
}

/** @throws GraftError 'state' for a model that was disposed */
export function residentOf(id: number): ResidentModel {
  const resident = residents.get(id);
  if (resident) return resident;
  throw disposed();
}

/** The device of a model; undefined for one that was disposed. */
export const residentDevice = (id: number): string | undefined => residents.get(id)?.device;

export function dropResident(id: number): void {
  residents.get(id)?.[Symbol.dispose]();
  residents.delete(id);
}

/** Frees the weights of all models, for a job that needs the memory. */
export function releaseResidents(): void {
  for (const resident of residents.values()) resident.release();
}
