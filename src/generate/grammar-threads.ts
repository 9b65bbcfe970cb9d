/**
 * The grammars of a model that answers many requests, in threads of their own: to compile one takes up to seconds, in which the thread that
 * computes would answer nobody. A thread compiles while no answer of it runs; compiled grammars cannot leave it, so it serves their answers.
 */
import { Worker } from 'node:worker_threads';
import { type ErrorJson, GraftError } from '../base/index.ts';
import type { TokenFilter } from './request.ts';
import type { VocabularyTokens } from './xgrammar.ts';

/** Threads at most: of more new grammars at a time, some wait for answers to end. */
const maxThreads = 3;

/** Grammars whose thread is remembered; a thread that has let one go compiles it again. */
const kept = 32;

/** Milliseconds in which a thread has to say what may follow a token. */
const patienceMs = 5_000;

export type GrammarCall =
  /** Begins an answer, whose state is in shared memory (`FilterState`); compiles the grammar where that is not done. */
  | { readonly type: 'begin'; readonly answer: number; readonly ebnf: string; readonly state: Int32Array }
  | { readonly type: 'accept'; readonly answer: number; readonly id: number }
  | { readonly type: 'end'; readonly answer: number };

/** That an answer has begun, or why not. */
export interface GrammarBegun {
  readonly answer: number;
  readonly error?: ErrorJson;
}

/** Places in the state of an answer: how many tokens were accepted, whether the grammar is at its end, whether it failed; then the allowed tokens. */
export const FilterState = { accepted: 0, ended: 1, failed: 2, allowed: 3 } as const;

interface Thread {
  readonly worker: Worker;
  /** What it has compiled, the one used last at the end. */
  readonly grammars: Set<string>;
  readonly begun: Map<number, { resolve(): void; reject(error: unknown): void }>;
  /** Answers that run or begin. */
  users: number;
  isCompiling: boolean;
  isLost: boolean;
}

export class GrammarThreads {
  readonly #tokens: () => VocabularyTokens;
  #vocabulary: VocabularyTokens | undefined;
  #threads: Thread[] = [];
  /** The thread that compiles next, once its answers have ended; new ones do not use it. */
  #reserved: Thread | undefined;
  #changed: (() => void)[] = [];
  #nextAnswer = 0;

  constructor(tokens: () => VocabularyTokens) {
    this.#tokens = tokens;
  }

  /**
   * Begins an answer.
   * @param ebnf XGrammar's EBNF, whose first rule is `root`
   * @throws GraftError 'usage' for a grammar that cannot be used
   */
  async begin(ebnf: string): Promise<TokenFilter> {
    const thread = await this.#threadFor(ebnf);
    const answer = this.#nextAnswer++;
    const state = new Int32Array(
      new SharedArrayBuffer(4 * (FilterState.allowed + Math.ceil(this.#vocabulary!.tokens.length / 32))),
    );
    const end = () => {
      if (!thread.isLost) thread.worker.postMessage({ type: 'end', answer } satisfies GrammarCall);
      thread.users--;
      this.#tellChanged();
    };
    try {
      await new Promise<void>((resolve, reject) => {
        thread.begun.set(answer, { resolve, reject });
        if (thread.isLost) reject(lost());
        else thread.worker.postMessage({ type: 'begin', answer, ebnf, state } satisfies GrammarCall);
      });
    } catch (error) {
      // A grammar that cannot be compiled takes all others of the thread with it.
      thread.grammars.clear();
      end();
      throw error;
    } finally {
      thread.begun.delete(answer);
      thread.isCompiling = false;
      this.#tellChanged();
    }
    return new ThreadFilter(thread, answer, state, end);
  }

  /** The thread that has compiled a grammar, or compiles it for this answer, which it counts. */
  async #threadFor(ebnf: string): Promise<Thread> {
    for (;;) {
      const having = this.#threads.filter(({ grammars }) => grammars.has(ebnf));
      const ready = having.find((thread) => !thread.isCompiling && thread !== this.#reserved);
      const idle = this.#threads.find(({ users, isCompiling }) => users === 0 && !isCompiling);
      const free = having.length > 0 ? undefined : (idle ?? this.#newThread());
      const thread = ready ?? free;
      if (thread) {
        if (thread === this.#reserved) this.#reserved = undefined;
        thread.isCompiling = !ready;
        thread.users++;
        remember(thread.grammars, ebnf);
        return thread;
      }
      if (having.length === 0) this.#reserved ??= fewestUsers(this.#threads);
      // Whoever waited for a thread that is reserved has it compile again, or finds it free.
      await new Promise<void>((resolve) => this.#changed.push(resolve));
    }
  }

  #tellChanged(): void {
    if (this.#reserved && (this.#reserved.isLost || this.#reserved.users === 0)) this.#reserved = undefined;
    for (const resolve of this.#changed.splice(0)) resolve();
  }

  #newThread(): Thread | undefined {
    if (this.#threads.length >= maxThreads) return undefined;
    this.#vocabulary ??= this.#tokens();
    const file = import.meta.url.endsWith('.ts') ? './grammar-worker.ts' : './grammar-worker.js';
    const worker = new Worker(new URL(file, import.meta.url), { workerData: this.#vocabulary });
    worker.unref();
    const thread: Thread = {
      worker,
      grammars: new Set(),
      begun: new Map(),
      users: 0,
      isCompiling: false,
      isLost: false,
    };
    worker.on('message', ({ answer, error }: GrammarBegun) => {
      const waiting = thread.begun.get(answer);
      if (error) waiting?.reject(GraftError.from(error));
      else waiting?.resolve();
    });
    const onLost = () => {
      thread.isLost = true;
      this.#threads = this.#threads.filter((other) => other !== thread);
      for (const { reject } of thread.begun.values()) reject(lost());
      this.#tellChanged();
    };
    worker.on('error', onLost);
    worker.on('exit', onLost);
    this.#threads.push(thread);
    return thread;
  }

  /** Ends the threads; answers that run fail. */
  async close(): Promise<void> {
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }
}

const lost = () => new GraftError('engine', 'the thread of the grammars has ended', { place: 'grammar' });

function remember(grammars: Set<string>, ebnf: string): void {
  grammars.delete(ebnf);
  grammars.add(ebnf);
  if (grammars.size > kept) grammars.delete(grammars.values().next().value!);
}

const fewestUsers = (threads: readonly Thread[]): Thread | undefined =>
  threads.filter(({ isCompiling }) => !isCompiling).sort((a, b) => a.users - b.users)[0];

/** Where an answer is in its grammar, as another thread says. */
class ThreadFilter implements TokenFilter {
  readonly #thread: Thread;
  readonly #answer: number;
  readonly #state: Int32Array;
  readonly #end: () => void;
  #accepted = 0;
  #isDisposed = false;

  constructor(thread: Thread, answer: number, state: Int32Array, end: () => void) {
    this.#thread = thread;
    this.#answer = answer;
    this.#state = state;
    this.#end = end;
  }

  allowed(): Int32Array {
    this.#wait();
    return this.#state.subarray(FilterState.allowed);
  }

  /** What the grammar does not allow is said when the next token is asked for. */
  accept(id: number): void {
    this.#accepted++;
    this.#thread.worker.postMessage({ type: 'accept', answer: this.#answer, id } satisfies GrammarCall);
  }

  get ended(): boolean {
    this.#wait();
    return this.#state[FilterState.ended] === 1;
  }

  /** @throws GraftError 'engine' for a token that was not allowed, and where the thread is lost */
  #wait(): void {
    const { accepted, failed } = FilterState;
    let timeouts = 0;
    for (let now = Atomics.load(this.#state, accepted); now !== this.#accepted; ) {
      // The first may mean that the process was stopped, and the thread with it.
      if (this.#thread.isLost || timeouts > 1) throw lost();
      if (Atomics.wait(this.#state, accepted, now, patienceMs) === 'timed-out') timeouts++;
      now = Atomics.load(this.#state, accepted);
    }
    if (this.#state[failed] === 1) throw new GraftError('engine', 'the grammar does not allow the last token');
  }

  [Symbol.dispose](): void {
    if (!this.#isDisposed) this.#end();
    this.#isDisposed = true;
  }
}
