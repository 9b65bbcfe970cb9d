/** Options and figures of serving. */

/** Limits of serving. */
export interface ServeOptions {
  /** Tokens of a step at most: rows that decode, and chunks of prompts beside them: more delays those that decode. Default: 256. */
  readonly maxBatchTokens?: number | undefined;
  /** Sequences that run at once at most. Default: 64. */
  readonly maxRunning?: number | undefined;
  /** Requests that wait at most; one more is refused. Default: 256. */
  readonly maxQueue?: number | undefined;
  /** Bytes for keys and values. Default: a quarter of the free memory. */
  readonly kvMemory?: number | undefined;
  /** Bytes of adapters in memory at most; those that no request uses leave by recency. Default: an eighth of the free memory. */
  readonly adapterMemory?: number | undefined;
  /** Threads of the engine. Default: those of the model. */
  readonly threads?: number | undefined;
}

/** Where serving stands. */
export interface ServingStats {
  /** Requests that wait for their first pass. */
  readonly waiting: number;
  /** Requests that have blocks. */
  readonly running: number;
  /** Most that may wait. */
  readonly maxQueue: number;
  /** Blocks of keys and values: all, those that requests hold, and those that wait to be found again. */
  readonly blocks: { readonly total: number; readonly used: number; readonly cached: number };
  /** Tokens of prompts that were looked up among the blocks that others left, and how many were found. */
  readonly cache: { readonly lookedUp: number; readonly found: number };
  /** Sequences that lost their blocks and were computed again. */
  readonly preemptions: number;
  /** Passes of the model so far. */
  readonly steps: number;
  /** Names of the adapters that are registered, which are in memory, and how many bytes those take. */
  readonly adapters: {
    readonly registered: readonly string[];
    readonly resident: readonly string[];
    readonly bytes: number;
  };
  /** Tensors of the engine thread that are alive. */
  readonly tensors: number;
  /** Tokens of prompts and answers so far, by the adapter's name; '' is the base, '(mixture)' all mixtures. */
  readonly tokens: Readonly<Record<string, { readonly prompt: number; readonly generated: number }>>;
}

/** How an adapter is registered. */
export interface AddAdapterOptions {
  /** Replaces an adapter of the same name, also while requests use it: these end with the one that they began with. Default: false. */
  readonly replace?: boolean | undefined;
  /** Loads it now, so that one that does not fit is refused; else it is loaded for its first request. Default: true. */
  readonly load?: boolean | undefined;
  /** Keeps it in memory once it is loaded, whatever else needs the room. Default: false. */
  readonly pin?: boolean | undefined;
}
