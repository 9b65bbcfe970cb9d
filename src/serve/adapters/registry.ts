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

/** Where adapters that generate text are put. */
export type AdapterEngine = Pick<Serving, 'addAdapter' | 'removeAdapter'>;

/** The adapters of a server by name, as the engine has them; it loads each for its first request. */
export class AdapterRegistry {
  readonly #engine: AdapterEngine | undefined;
  readonly #base: string;
  readonly #baseTask: TaskName;
  readonly #resolve: ResolveAdapter | undefined;
  readonly #pins: ReadonlySet<string>;
  readonly #adapters = new Map<string, ServedAdapter>();
  /** What is being done for a name: one thing after another. */
  readonly #busy = new Map<string, Promise<unknown>>();

  /**
   * @param engine undefined for a base that generates no text
   * @param base its name, which no adapter may have
   * @param pins names of adapters that are loaded at once, and stay in memory
   */
  constructor(
    engine: AdapterEngine | undefined,
    base: string,
    baseTask: TaskName,
    {
      resolve,
      pins = [],
    }: { readonly resolve?: ResolveAdapter | undefined; readonly pins?: readonly string[] | undefined },
  ) {
    this.#engine = engine;
    this.#base = base;
    this.#baseTask = baseTask;
    this.#resolve = resolve;
    this.#pins = new Set(pins);
  }

  /** By name. */
  list(): ServedAdapter[] {
    return [...this.#adapters.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  get size(): number {
    return this.#adapters.size;
  }

  /** The adapter of a name; one that is not known is asked of the hook. @throws what registering throws */
  async get(name: string): Promise<ServedAdapter | undefined> {
    const known = this.#adapters.get(name);
    if (known || !this.#resolve) return known;
    return this.#oneByOne(name, async () => {
      const dir = this.#adapters.has(name) ? undefined : await this.#resolve!(name);
      if (dir !== undefined) await this.#register(name, dir, false);
      return this.#adapters.get(name);
    });
  }

  /**
   * Puts an adapter under a name, without loading it unless it is pinned, or replaces the one that has it: requests that run end with that.
   * @throws GraftError 'input' for a directory that is not an adapter, 'usage' for the base's name
   */
  put(name: string, dir: string): Promise<void> {
    return this.#oneByOne(name, () => this.#register(name, dir, false));
  }

  /**
   * Puts an adapter under a name and loads it, if it generates text: one with a head is loaded for its first request.
   * @returns whether it was loaded
   * @throws RequestError 400 for a name that is taken, unless it is replaced; GraftError 'mismatch' where it does not fit
   */
  load(name: string, dir: string, replace: boolean): Promise<boolean> {
    return this.#oneByOne(name, async () => {
      if (this.#adapters.has(name) && !replace) {
        const problem = `The adapter '${brief(name)}' is loaded already. Set 'load_inplace' to replace it.`;
        throw new RequestError(400, problem, { param: 'lora_name', code: 'adapter_exists' });
      }
      await this.#register(name, dir, true);
      return this.#engine !== undefined && generates(this.#adapters.get(name)!);
    });
  }

  /** @throws RequestError 404 for a name that is not there */
  remove(name: string): Promise<void> {
    return this.#oneByOne(name, async () => {
      const adapter = this.#adapters.get(name);
      if (!adapter) {
        const problem = `The adapter '${brief(name)}' does not exist.`;
        throw new RequestError(404, problem, { param: 'lora_name', code: 'adapter_not_found' });
      }
      this.#adapters.delete(name);
      if (generates(adapter)) await this.#engine?.removeAdapter(name);
    });
  }

  async #register(name: string, dir: string, load: boolean): Promise<void> {
    if (name === this.#base)
      throw new GraftError('usage', `'${name}' is the name of the base`, { hint: 'Give the adapter another name' });
    const { task = this.#baseTask } = taskOfAdapter(dir);
    const adapter = { name, dir, task, created: Math.floor(Date.now() / 1000) };
    const before = this.#adapters.get(name);
    const pin = this.#pins.has(name);
    if (this.#engine) {
      if (generates(adapter)) await this.#engine.addAdapter(name, dir, { replace: true, load: load || pin, pin });
      else if (before && generates(before)) await this.#engine.removeAdapter(name);
    }
    this.#adapters.set(name, adapter);
  }

  async #oneByOne<T>(name: string, act: () => Promise<T>): Promise<T> {
    const done = (this.#busy.get(name) ?? Promise.resolve()).then(act);
    const settled = done.catch(() => {});
    this.#busy.set(name, settled);
    try {
      return await done;
    } finally {
      if (this.#busy.get(name) === settled) this.#busy.delete(name);
    }
  }
}

const generates = ({ task }: ServedAdapter): boolean => task === 'causal-lm';

/** A name that an adapter may have. @throws RequestError 400 */
export function checkName(name: string): void {
  if (/^[^\p{Cc}]{1,256}$/u.test(name) && name.trim() === name) return;
  throw badRequest(
    'An adapter has a name of 1 to 256 characters, without white space around it.',
    'lora_name',
    'invalid',
  );
}
