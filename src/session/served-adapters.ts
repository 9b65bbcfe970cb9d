/** The adapters of a model that is served: many registered, some in memory. In the engine thread. */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { loadAdapter, readAdapterConfig, taskNumberOf, taskOfAdapter } from '../adapters/index.ts';
import { GraftError, nearest } from '../base/index.ts';
import { type AdapterOfRequest, bankKey } from '../generate/index.ts';
import type { AttachedAdapter } from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import type { AddAdapterOptions } from './serving-types.ts';
import { inTurn } from './turns.ts';

/** One content of an adapter: a new one, under another number, takes its place when the files change. */
interface Served {
  readonly name: string;
  readonly dir: string;
  /** Its number in runs and batch keys. */
  readonly number: number;
  /** Of its files; undefined before it is first loaded. */
  digest: string | undefined;
  attached: AttachedAdapter | undefined;
  /** Virtual tokens that it puts in front of a row. */
  virtual: number;
  loading: Promise<void> | undefined;
  /** Requests that use it. */
  users: number;
}

/** `data.reason` of the 'usage' error for a name that is not registered. */
export const unknownAdapter = 'unknown-adapter';

export class ServedAdapters {
  readonly #modelOf: () => Model;
  readonly #memory: number;
  /** By name; the one used last at the end. */
  readonly #byName = new Map<string, Served>();
  /** All that are in memory, those that were replaced and still have users included. */
  readonly #resident = new Map<number, Served>();
  #model: Model | undefined;
  #nextNumber = 1;

  /**
   * @param modelOf returns the model with its own adapters disabled; another one where it had to be loaded again
   * @param memory bytes that adapters without users may take
   */
  constructor(modelOf: () => Model, memory: number) {
    this.#modelOf = modelOf;
    this.#memory = memory;
  }

  get names() {
    const resident = [...this.#resident.values()].map(({ name }) => name);
    return { registered: [...this.#byName.keys()].sort(), resident: [...new Set(resident)].sort() };
  }

  /** @throws GraftError 'usage' for a name that is taken; 'input' and 'mismatch' for an adapter that does not fit */
  async add(name: string, dir: string, { replace = false, load = true }: AddAdapterOptions = {}): Promise<void> {
    const before = this.#byName.get(name);
    if (before && !replace) {
      throw new GraftError('usage', `this model has an adapter named '${name}' already`, {
        place: dir,
        hint: 'Remove it first, or replace it',
      });
    }
    readAdapterConfig(dir);
    const { task = 'causal-lm' } = taskOfAdapter(dir);
    if (task !== 'causal-lm') {
      throw new GraftError('mismatch', `the adapter is for ${task}, and does not generate text`, { place: dir });
    }
    const served: Served = {
      ...{ name, dir, number: this.#nextNumber++, digest: undefined, attached: undefined },
      ...{ virtual: 0, loading: undefined, users: 0 },
    };
    if (load) await this.#load(served);
    this.#byName.set(name, served);
    if (before) this.#retire(before);
  }

  /** Requests that use it end with it. @throws GraftError 'usage' for a name that is not there */
  remove(name: string): void {
    const served = this.#named(name);
    this.#byName.delete(name);
    this.#retire(served);
  }

  /**
   * Returns what a batch has to know of an adapter, which stays in memory until `release`. It is loaded where it is not.
   * @throws GraftError 'usage' for a name that is not there, and what loading throws
   */
  async acquire(name: string | undefined, taskNumber?: number): Promise<AdapterOfRequest> {
    if (name === undefined) return { number: 0, batchKey: bankKey, contentKey: 'base', virtual: 0, taskNumber };
    const served = this.#named(name);
    served.users++;
    try {
      await this.#load(served);
    } catch (error) {
      served.users--;
      throw error;
    }
    const { number, digest, virtual } = served;
    const task = taskNumber ?? taskNumberOf(served.dir);
    const contentKey = JSON.stringify({ digest, task, virtual });
    return { number, batchKey: `adapter ${number}`, contentKey, virtual, taskNumber: task };
  }

  release(number: number): void {
    const served = this.#resident.get(number);
    if (!served) return;
    served.users--;
    if (served.users === 0 && this.#byName.get(served.name) !== served) this.#retire(served);
  }

  /** The model with what rows of this batch key use enabled, and nothing else. */
  activate(batchKey: string): Model {
    const model = this.#current();
    for (const { number, attached } of this.#resident.values()) {
      if (attached) attached.enabled = batchKey === `adapter ${number}`;
    }
    return model;
  }

  /** The model; where it was loaded again, the adapters are attached to the new one. */
  #current(): Model {
    const model = this.#modelOf();
    if (this.#model !== model) {
      this.#model = model;
      for (const served of this.#resident.values()) {
        if (served.attached) served.attached = loadAdapter(model, served.dir, 'own');
      }
    }
    return model;
  }

  #named(name: string): Served {
    const served = this.#byName.get(name);
    if (served) return served;
    const near = nearest(name, [...this.#byName.keys()]);
    throw new GraftError('usage', `there is no adapter named '${name}'`, {
      place: 'adapter',
      ...(near && { hint: `Did you mean '${near}'?` }),
      data: { reason: unknownAdapter },
    });
  }

  async #load(served: Served): Promise<void> {
    if (this.#byName.get(served.name) === served) {
      this.#byName.delete(served.name);
      this.#byName.set(served.name, served);
    }
    this.#resident.set(served.number, served);
    if (served.attached) return;
    served.loading ??= this.#read(served).finally(() => {
      served.loading = undefined;
    });
    await served.loading;
  }

  async #read(served: Served): Promise<void> {
    try {
      // Not in turn: the files are in the system's cache when the engine reads them.
      const digest = await digestOf(served.dir);
      await inTurn(() => {
        const model = this.#current();
        this.activate(bankKey);
        served.attached = loadAdapter(model, served.dir, 'own');
        served.digest = digest;
        served.virtual = model.ports.virtualLength;
        served.attached.enabled = false;
        this.#evict(served);
      });
    } catch (error) {
      this.#resident.delete(served.number);
      throw error;
    }
  }

  /** Takes adapters out of memory that no request uses, the one used longest ago first, until the others fit. */
  #evict(newest: Served): void {
    const bytesOf = ({ attached }: Served) =>
      [...(attached?.parameters.values() ?? [])].reduce((sum, { nbytes }) => sum + nbytes, 0);
    let bytes = [...this.#resident.values()].reduce((sum, served) => sum + bytesOf(served), 0);
    for (const served of this.#byName.values()) {
      if (bytes <= this.#memory) return;
      if (served === newest || served.users > 0 || !served.attached) continue;
      bytes -= bytesOf(served);
      this.#detach(served);
    }
  }

  /** Frees an adapter that no name leads to any more, once nobody uses it. */
  #retire(served: Served): void {
    if (served.users === 0) void inTurn(() => this.#detach(served));
  }

  #detach(served: Served): void {
    served.attached?.detach();
    served.attached?.[Symbol.dispose]();
    served.attached = undefined;
    this.#resident.delete(served.number);
  }

  [Symbol.dispose](): void {
    if (this.#model === this.#modelOf()) for (const served of [...this.#resident.values()]) this.#detach(served);
    this.#byName.clear();
  }
}

/** A digest of the files of an adapter, those of its parts included. */
async function digestOf(dir: string): Promise<string> {
  const hash = createHash('sha256');
  const entries = await readdir(dir, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  for (const file of files.sort()) hash.update(`${file.slice(dir.length)}\0`).update(await readFile(file));
  return hash.digest('hex');
}
