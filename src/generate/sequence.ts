import type { EndReason } from './request.ts';

/** What a scheduler has to know of a request. */
export interface SequenceOptions {
  readonly promptIds: readonly number[];
  /** The number of the adapter; 0: the base alone. */
  readonly adapter: number;
  /** Sequences of one batch key may share a pass. */
  readonly batchKey: string;
  /** What decides keys and values besides the ids: base, the adapter's content, task. */
  readonly contentKey: string;
  /** Whose share of the machine it takes. */
  readonly shareKey: string;
  /** Virtual tokens in front of the row. */
  readonly virtual: number;
  readonly maxNewTokens: number;
  readonly eosIds: ReadonlySet<number>;
  /** When it ends in any case, on the clock of `Scheduler.plan`. */
  readonly deadline?: number | undefined;
}

/** One row in flight: numbers only. */
export class Sequence implements SequenceOptions {
  readonly promptIds: readonly number[];
  readonly adapter: number;
  readonly batchKey: string;
  readonly contentKey: string;
  readonly shareKey: string;
  readonly virtual: number;
  readonly maxNewTokens: number;
  readonly eosIds: ReadonlySet<number>;
  readonly deadline: number | undefined;
  /** Prompt and answer. */
  readonly ids: number[];
  /** Ids whose keys and values are in blocks. */
  computed = 0;
  blocks: number[] = [];
  /** Full blocks that are published, and the key of the next. */
  published = 0;
  parent: string;
  /** Ids of the prompt that were found in others' blocks when it was first admitted; undefined before. */
  cachedTokens: number | undefined;
  /** Order of arrival, by the scheduler. */
  arrival = 0;
  cancelled = false;
  ended: EndReason | undefined;

  constructor(options: SequenceOptions) {
    this.promptIds = options.promptIds;
    this.adapter = options.adapter;
    this.batchKey = options.batchKey;
    this.contentKey = options.contentKey;
    this.shareKey = options.shareKey;
    this.virtual = options.virtual;
    this.maxNewTokens = options.maxNewTokens;
    this.eosIds = options.eosIds;
    this.deadline = options.deadline;
    this.ids = [...options.promptIds];
    this.parent = options.contentKey;
  }

  /** Ids of the answer. */
  get newTokens(): number {
    return this.ids.length - this.promptIds.length;
  }

  /** Slots that are filled. */
  get filled(): number {
    return this.computed === 0 ? 0 : this.virtual + this.computed;
  }

  /** Ids that the next passes read. */
  get pending(): number {
    return this.ids.length - this.computed;
  }
}
