/** The adapters of a model that is served: many registered, some in memory. In the engine thread. */
import { setImmediate } from 'node:timers/promises';
import {
  loadingResident,
  loadResident,
  type ResidentAdapter,
  readAdapterConfig,
  stepsWithoutValues,
  taskNumberOf,
  taskOfAdapter,
} from '../adapters/index.ts';
import { GraftError, nearest, type Steps } from '../base/index.ts';
import { type AdapterOfRequest, bankKey, type GenerationRequest, type WeightedAdapter } from '../generate/index.ts';
import { readAhead } from '../io/index.ts';
import { Banks } from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import { stateOf } from './file-state.ts';
import { type ResidentModel, requireTasks } from './resident.ts';
import { type Mixture, type Served, unread } from './served-contents.ts';
import type { AddAdapterOptions, ServingStats } from './serving-types.ts';

/** Milliseconds that loading an adapter takes at once, between two passes: rows that decode wait so much longer, and for the last step. */
const turnMs = 14;

/** `data.reason` of the 'usage' error for a name that is not registered. */
export const unknownAdapter = 'unknown-adapter';

/** What a request uses until `release`. */
export interface Acquired extends AdapterOfRequest {
  release(): void;
}

export class ServedAdapters implements Disposable {
  readonly #base: ResidentModel;
  readonly #memory: number;
  /** By name; the one used last at the end. */
  readonly #byName = new Map<string, Served>();
  /** All that are in memory or come there, those that were replaced and still have users included. */
  readonly #inMemory = new Map<number, Served>();
  readonly #mixtures = new Map<string, Mixture>();
  /** What is being loaded: one adapter at a time. */
  #loading: Steps<ResidentAdapter> | undefined;
  #lastRead: Promise<unknown> = Promise.resolve();
  /** Of the model that is loaded now. */
  #banks: Banks | undefined;
  #nextNumber = 1;
  #nextContent = 1;
  readonly #stopWatching: () => void;

  /** @param memory bytes that adapters without users may stay within, together with those that have some */
  constructor(base: ResidentModel, memory: number) {
    this.#base = base;
    this.#memory = memory;
    this.#stopWatching = base.onRelease(() => this.#forget());
  }

  get stats(): ServingStats['adapters'] {
    const resident = [...this.#inMemory.values()].filter((served) => served.resident).map(({ name }) => name);
    return { registered: [...this.#byName.keys()].sort(), resident: [...new Set(resident)].sort(), bytes: this.#bytes };
  }

  /** Of what is in memory. */
  get #bytes(): number {
    return [...this.#inMemory.values()].reduce((sum, { resident }) => sum + (resident?.bytes ?? 0), 0);
  }

  /** @throws GraftError 'usage' for a name that is taken; 'input' and 'mismatch' for an adapter that does not fit */
  async add(
    name: string,
    dir: string,
    { replace = false, load = true, pin = false }: AddAdapterOptions = {},
  ): Promise<void> {
    if (this.#byName.has(name) && !replace) {
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
    const number = this.#nextNumber++;
    const served = unread(name, dir, number, pin);
    if (load) await this.#load(served);
    const before = this.#byName.get(name);
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
   * Returns what a batch has to know of a request's adapter, or of its mixture, which stays in memory until it is released. It is
   * loaded where it is not.
   * @throws GraftError 'usage' for a name that is not there, and adapters that cannot be mixed; what loading throws
   */
  async acquire({ adapter, mixture, taskNumber }: GenerationRequest): Promise<Acquired> {
    if (mixture && adapter !== undefined) {
      throw new GraftError('usage', 'a request has an adapter or a mixture of adapters, not both', {
        place: 'mixture',
      });
    }
    if (mixture) return this.#acquireMixture(mixture, taskNumber);
    if (adapter === undefined) {
      if (taskNumber !== undefined) requireTasks(await this.#base.inTurn(() => this.activate(bankKey, []).ports));
      return { number: 0, batchKey: bankKey, contentKey: 'base', virtual: 0, taskNumber, release() {} };
    }
    const served = await this.#use(adapter);
    const { number, content } = served;
    const task = taskNumber ?? taskNumberOf(served.dir);
    const placed = this.#base.inTurn(() => {
      this.activate(bankKey, []);
      const key = served.resident?.alone ? keyOf(number) : bankKey;
      const { ports } = this.activate(key, [number]);
      if (taskNumber !== undefined) requireTasks(ports, number);
      return [key, ports.virtualLengthOf(number)] as const;
    });
    const [batchKey, virtual] = await placed.catch((error) => {
      this.#leave(served);
      throw error;
    });
    const contentKey = JSON.stringify({ content, task, virtual });
    return { number, batchKey, contentKey, virtual, taskNumber: task, release: () => this.#leave(served) };
  }

  /**
   * The model with what rows of this batch key use switched on, and no other adapter that stands alone.
   * @param adapters the numbers that the rows use
   * @throws GraftError 'state' for one that is not in memory: it could not be loaded again with the model
   */
  activate(batchKey: string, adapters: readonly number[]): Model {
    const model = this.#base.use();
    this.#banks ??= this.#fill(model);
    for (const number of adapters) {
      if (this.#banks.holds(number) || this.#inMemory.get(number)?.resident) continue;
      throw notInMemory();
    }
    for (const { number, resident } of this.#inMemory.values()) {
      if (resident?.alone) resident.alone.adapter.enabled = batchKey === keyOf(number);
    }
    return model;
  }

  async #acquireMixture(weighted: readonly WeightedAdapter[], taskNumber: number | undefined): Promise<Acquired> {
    const members: Served[] = [];
    const leave = () => {
      for (const member of members) this.#leave(member);
    };
    try {
      for (const { name } of weighted) members.push(await this.#use(name));
      const key = JSON.stringify(weighted.map(({ weight }, i) => [members[i]!.content, weight]));
      const numbers = members.map(({ number }) => number);
      const mixture = await this.#base.inTurn(() => {
        const { ports } = this.activate(bankKey, numbers);
        const known = this.#mixtures.get(key);
        const mixed = known ?? { number: this.#nextNumber++, members, weighted, users: 0 };
        if (!known) this.#mix(mixed);
        this.#mixtures.set(key, mixed);
        if (taskNumber !== undefined) requireTasks(ports, mixed.number);
        mixed.users++;
        return mixed;
      });
      const release = () => {
        mixture.users--;
        leave();
        void this.#base.inTurn(() => {
          if (mixture.users > 0 || this.#mixtures.get(key) !== mixture) return;
          this.#mixtures.delete(key);
          if (this.#banks?.holds(mixture.number)) this.#banks.remove(mixture.number);
        });
      };
      return { number: mixture.number, batchKey: bankKey, contentKey: key, virtual: 0, taskNumber, release };
    } catch (error) {
      leave();
      throw error;
    }
  }

  #mix({ number, members, weighted }: Mixture): void {
    if (members.some(({ resident }) => !resident)) throw notInMemory();
    for (const { name, number: member, resident } of members) {
      const reason = resident!.alone?.reason ?? this.#banks!.whyNotMixed(member);
      if (reason !== undefined)
        throw new GraftError('usage', `'${name}' cannot be mixed: ${reason}`, { place: 'adapters' });
    }
    this.#banks!.mix(
      number,
      weighted.map(({ weight }, i) => ({ adapter: members[i]!.number, weight })),
    );
  }

  /** Loads an adapter where it is not in memory, and counts a user of it. */
  async #use(name: string): Promise<Served> {
    const served = this.#named(name);
    served.users++;
    try {
      await this.#load(served);
      return served;
    } catch (error) {
      served.users--;
      throw error;
    }
  }

  #leave(served: Served): void {
    served.users--;
    if (this.#byName.get(served.name) !== served) this.#retire(served);
    else if (served.users === 0) void this.#base.inTurn(() => this.#evict());
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
    if (served.resident) return;
    if (!served.loading) {
      served.loading = this.#lastRead
        .then(() => this.#read(served))
        .finally(() => {
          served.loading = undefined;
        });
      this.#lastRead = served.loading.catch(() => {});
    }
    await served.loading;
  }

  /** Loads an adapter in turns of its own, between which passes go on. Its files are read meanwhile, before their values are needed. */
  async #read(served: Served): Promise<void> {
    const { dir, number } = served;
    const files = stateOf(dir);
    if (files !== served.files) served.content = this.#nextContent++;
    served.files = files;
    const reading = readAhead(dir);
    reading.catch(() => {});
    let steps: Steps<ResidentAdapter> | undefined;
    const turn = (most = Infinity) => {
      const end = performance.now() + turnMs;
      const model = this.activate(bankKey, []);
      if (served.resident) return true; // it came back with the model
      // Where the model was freed meanwhile, it begins again on the new one.
      if (!steps || this.#loading !== steps) steps = loadingResident(model, this.#banks!, dir, number);
      this.#loading = steps;
      let step = this.#next(steps);
      for (let taken = 1; !step.done && taken < most && performance.now() < end; taken++) step = this.#next(steps);
      if (!step.done) return false;
      if (stateOf(dir) !== files) {
        step.value.remove();
        throw new GraftError('state', 'the files of the adapter changed while they were read', {
          place: dir,
          hint: 'Send the request again',
        });
      }
      served.resident = step.value;
      this.#inMemory.set(number, served);
      this.#evict(served);
      return true;
    };
    try {
      let isDone = await this.#base.inTurn(() => turn(stepsWithoutValues));
      await reading;
      while (!isDone) {
        isDone = await this.#base.inTurn(() => turn());
        if (!isDone) await setImmediate(); // passes begin from the event loop
      }
    } finally {
      const ahead = await reading.catch(() => undefined);
      ahead?.[Symbol.dispose]();
    }
  }

  #next(steps: Steps<ResidentAdapter>): IteratorResult<void, ResidentAdapter> {
    let isDone: boolean | undefined = true;
    try {
      const result = steps.next();
      isDone = result.done;
      return result;
    } finally {
      if (isDone) this.#loading = undefined;
    }
  }

  /** The banks of a model that was just loaded, with the adapters that requests use. */
  #fill(model: Model): Banks {
    const banks = new Banks(model);
    this.#banks = banks;
    for (const served of [...this.#inMemory.values()]) {
      attempt(() => {
        if (stateOf(served.dir) === served.files)
          served.resident = loadResident(model, banks, served.dir, served.number);
      });
      if (!served.resident) this.#renew(served);
    }
    for (const mixture of this.#mixtures.values()) attempt(() => this.#mix(mixture));
    return banks;
  }

  /**
   * Gives the name of an adapter whose files are others now, or cannot be read, to a new content: rows that began with the old one fail,
   * because `activate` does not find it, and none goes on with other numbers.
   */
  #renew(served: Served): void {
    const { name, dir, number, pinned } = served;
    this.#inMemory.delete(number);
    if (this.#byName.get(name) === served) this.#byName.set(name, unread(name, dir, this.#nextNumber++, pinned));
  }

  /** Before the model is freed: what is being loaded begins again later; adapters without users leave; the others are loaded again with it. */
  #forget(): void {
    this.#loading?.return(undefined as never);
    this.#loading = undefined;
    for (const served of [...this.#inMemory.values()]) if (served.users === 0) this.#unload(served);
    for (const { number } of this.#mixtures.values()) if (this.#banks?.holds(number)) this.#banks.remove(number);
    for (const served of this.#inMemory.values()) served.resident?.remove();
    for (const served of this.#inMemory.values()) served.resident = undefined;
    this.#banks?.[Symbol.dispose]();
    this.#banks = undefined;
  }

  /** Takes adapters out of memory that no request uses, the one used longest ago first, until the others fit. */
  #evict(newest?: Served): void {
    let bytes = this.#bytes;
    for (const served of this.#byName.values()) {
      if (bytes <= this.#memory) return;
      if (served === newest || served.users > 0 || served.pinned || !served.resident) continue;
      bytes -= served.resident.bytes;
      this.#unload(served);
    }
  }

  /** Frees an adapter that no name leads to any more, once nobody uses it. */
  #retire(served: Served): void {
    void this.#base.inTurn(() => {
      if (served.users === 0) this.#unload(served);
    });
  }

  #unload(served: Served): void {
    served.resident?.remove();
    served.resident = undefined;
    this.#inMemory.delete(served.number);
  }

  [Symbol.dispose](): void {
    this.#forget();
    this.#stopWatching();
    this.#byName.clear();
  }
}

const notInMemory = () =>
  new GraftError('state', 'the adapter is not in memory any more', { hint: 'Send the request again' });

function attempt(act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!(error instanceof GraftError)) throw error;
  }
}

/** The batch key of an adapter that no bank holds. */
const keyOf = (number: number): string => `adapter ${number}`;
