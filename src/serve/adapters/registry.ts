import { taskOfAdapter } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import type { TaskName } from '../../nn/index.ts';
import type { Serving } from '../../session/index.ts';
import { badRequest, brief, RequestError } from '../errors.ts';

/** An adapter that requests can name. */
export interface ServedAdapter {
  readonly name: string;
  readonly dir: string;
  readonly task: TaskName;
  /** When it was registered, or replaced; seconds since 1970. */
  readonly created: number;
}

/** Finds an adapter for a name that is not known: its directory, or undefined where there is none. */
export type ResolveAdapter = (name: string) => string | undefined | Promise<string | undefined>;

/** The part of serving that adapters are put on. */
export type AdapterEngine = Pick<Serving, 'addAdapter' | 'removeAdapter'>;

/** The adapters of a server by name. They reach the engine when they are first used. */
export class AdapterRegistry {
  readonly #engine: AdapterEngine | undefined;
  readonly #base: string;
  readonly #ownTask: TaskName;
  readonly #resolve: ResolveAdapter | undefined;
  readonly #adapters = new Map<string, ServedAdapter>();
  /** Names that the engine has. */
  readonly #inEngine = new Set<string>();
  /** What is being done for a name: one thing after another. */
  readonly #busy = new Map<string, Promise<unknown>>();

  /**
   * @param engine undefined for a base that generates no text
   * @param base its name, which no adapter may have
   * @param ownTask the base's
   */
  constructor(engine: AdapterEngine | undefined, base: string, ownTask: TaskName, resolve?: ResolveAdapter) {
    this.#engine = engine;
    this.#base = base;
    this.#ownTask = ownTask;
    this.#resolve = resolve;
  }

  /** By name. */
  list(): ServedAdapter[] {
    return [...this.#adapters.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  get size(): number {
    return this.#adapters.size;
  }

  /**
   * The adapter of a name, in the engine where it generates text. A name that is not known is asked of the hook.
   * @throws what the engine throws for an adapter that does not fit
   */
  async get(name: string): Promise<ServedAdapter | undefined> {
    if (!this.#adapters.has(name) && !this.#resolve) return undefined;
    return this.#oneByOne(name, async () => {
      if (!this.#adapters.has(name)) {
        const dir = await this.#resolve?.(name);
        if (dir === undefined) return undefined;
        this.#register(name, dir);
      }
      const adapter = this.#adapters.get(name)!;
      try {
        await this.#load(adapter);
      } catch (error) {
        // What the hook gave and does not fit is asked for again next time.
        if (this.#resolve && !this.#inEngine.has(name)) this.#adapters.delete(name);
        throw error;
      }
      return adapter;
    });
  }

  /**
   * Puts an adapter under a name without loading it; replaces one that is there, also in the engine.
   * @throws GraftError 'input' for a directory that is not an adapter, 'usage' for the base's name
   */
  async put(name: string, dir: string): Promise<void> {
    await this.#oneByOne(name, async () => {
      this.#register(name, dir);
      if (this.#inEngine.has(name)) await this.#engine!.addAdapter(name, dir, { replace: true });
    });
  }

  /** Puts an adapter under a name and loads it. @throws RequestError 400 for a name that is taken, unless it is replaced */
  async load(name: string, dir: string, replace: boolean): Promise<void> {
    await this.#oneByOne(name, async () => {
      const before = this.#adapters.get(name);
      if (before && !replace) {
        const problem = `The adapter '${brief(name)}' is loaded already. Set 'load_inplace' to replace it.`;
        throw new RequestError(400, problem, { param: 'lora_name', code: 'adapter_exists' });
      }
      this.#register(name, dir);
      try {
        if (before && this.#inEngine.has(name)) await this.#engine!.addAdapter(name, dir, { replace: true });
        else await this.#load(this.#adapters.get(name)!);
      } catch (error) {
        if (before) this.#adapters.set(name, before);
        else this.#adapters.delete(name);
        throw error;
      }
    });
  }

  /** @throws RequestError 404 for a name that is not there */
  async remove(name: string): Promise<void> {
    await this.#oneByOne(name, async () => {
      if (!this.#adapters.delete(name)) {
        const problem = `The adapter '${brief(name)}' does not exist.`;
        throw new RequestError(404, problem, { param: 'lora_name', code: 'adapter_not_found' });
      }
      if (this.#inEngine.delete(name)) await this.#engine!.removeAdapter(name);
    });
  }

  #register(name: string, dir: string): void {
    if (name === this.#base)
      throw new GraftError('usage', `'${name}' is the name of the base`, { hint: 'Give the adapter another name' });
    const { task = this.#ownTask } = taskOfAdapter(dir);
    this.#adapters.set(name, { name, dir, task, created: Math.floor(Date.now() / 1000) });
  }

  async #load({ name, dir, task }: ServedAdapter): Promise<void> {
    if (!this.#engine || task !== 'causal-lm' || this.#inEngine.has(name)) return;
    await this.#engine.addAdapter(name, dir);
    this.#inEngine.add(name);
  }

  async #oneByOne<T>(name: string, act: () => Promise<T>): Promise<T> {
    const done = (this.#busy.get(name) ?? Promise.resolve()).then(act, act);
    const settled = done.then(
      () => {},
      () => {},
    );
    this.#busy.set(name, settled);
    try {
      return await done;
    } finally {
      if (this.#busy.get(name) === settled) this.#busy.delete(name);
    }
  }
}

/** A name that an adapter may have. @throws RequestError 400 */
export function checkName(name: string): void {
  if (/^[^\p{Cc}]{1,256}$/u.test(name) && name.trim() === name) return;
  throw badRequest(
    'An adapter has a name of 1 to 256 characters, without white space around it.',
    'lora_name',
    'invalid',
  );
}
