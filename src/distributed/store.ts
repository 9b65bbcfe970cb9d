/** The key-value store of a group, through which its processes meet, and tell each other why they fail. */
import { hostname } from 'node:os';
import { type ErrorJson, GraftError } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import type { RankPlacement } from './launch-environment.ts';

/** Milliseconds for a process that failed to write why, and for all others to answer the alarm. */
const failureLimit = 500;
const answerLimit = 3000;
/** Milliseconds that a process waits at most once it is known that another has failed. */
const alarmLimit = 10_000;
/** Milliseconds between two looks at whether a process failed while others wait for it to begin. */
const lookInterval = 1000;
/** Milliseconds that rank 0, which hosts the store, stays at most for the others to have read what is in it. */
const leaveLimit = 5000;

/** Why a run failed, as one process tells the others. */
interface Failure {
  /** Undefined: this is what a process found out about others. */
  readonly rank?: number | undefined;
  readonly error: ErrorJson;
}

/** What to do where two runs have one port. */
export const portHint = 'Choose another port: MASTER_PORT, or `graft launch --master HOST:PORT`';

/** Key of what rank 0 says of its run, before the names of runs: processes of another run find it too. */
const runKey = 'run';

/** A run, as rank 0 says it. */
interface Meeting {
  readonly run: string;
  readonly pid: number;
  readonly host: string;
}

/** The store of a group, seen by one of its processes. */
export class GroupStore {
  readonly placement: RankPlacement;
  /** Of the keys of this group: a store may have those of earlier attempts, and be found by other runs. */
  readonly prefix: string;
  /** Number of the process group in the engine. */
  readonly id: number;

  /** @throws GraftError 'environment' where the store cannot be hosted or reached within `timeout` milliseconds */
  constructor(placement: RankPlacement, timeout: number) {
    this.placement = placement;
    const { master, rank, hostsStore, run, attempt } = placement;
    this.prefix = `${run}/${attempt}`;
    const server = hostsStore && rank === 0;
    try {
      this.id = currentEngine().native.storeOpen(master.host, master.port, server, rank, timeout);
    } catch (cause) {
      throw notOpened(placement, server, timeout, cause as Error);
    }
  }

  /**
   * Waits for the run's rank 0. Nothing is written before this: a process of another run disturbs none.
   * @throws GraftError 'environment' where another run meets here
   */
  meet(milliseconds: number): void {
    const { rank, run, master } = this.placement;
    const { native } = currentEngine();
    if (rank === 0) {
      const meeting: Meeting = { run, pid: process.pid, host: hostname() };
      native.storeSet(this.id, runKey, JSON.stringify(meeting));
      return;
    }
    const text = this.#asked(() => native.storeGet(this.id, runKey, milliseconds));
    if (text === null) return; // who else is missing is said together
    const meeting = JSON.parse(text) as Meeting;
    if (meeting.run === run) return;
    throw new GraftError(
      'environment',
      `another run meets here: its rank 0 is process ${meeting.pid} on ${meeting.host}`,
      {
        place: `${master.host}:${master.port}`,
        hint: portHint,
      },
    );
  }

  /** Asks the store. @throws GraftError 'state' where the process that hosts it has gone */
  #asked<T>(ask: () => T): T {
    try {
      return ask();
    } catch (cause) {
      const { rank, hostsStore } = this.placement;
      throw hostsStore && rank !== 0 ? gone([0], undefined, cause) : cause;
    }
  }

  set(key: string, value: string): void {
    this.#asked(() => currentEngine().native.storeSet(this.id, `${this.prefix}/${key}`, value));
  }

  /** Sets a key that has no value yet. @returns the value that it has now */
  setOnce(key: string, value: string): string {
    return this.#asked(() => currentEngine().native.storeSetOnce(this.id, `${this.prefix}/${key}`, value));
  }

  /** The value of a key, or undefined where it is not set within so many milliseconds. */
  get(key: string, milliseconds = 0): string | undefined {
    return (
      this.#asked(() => currentEngine().native.storeGet(this.id, `${this.prefix}/${key}`, milliseconds)) ?? undefined
    );
  }

  /**
   * The value of a key that another process sets when it begins, or undefined where it does not within so many milliseconds.
   * @throws the error of a process that fails meanwhile
   */
  awaited(key: string, milliseconds: number): string | undefined {
    const deadline = performance.now() + milliseconds;
    for (;;) {
      const left = Math.max(0, deadline - performance.now());
      const value = this.get(key, Math.min(lookInterval, left));
      if (value !== undefined || left === 0) return value;
      const failure = this.failure();
      if (failure) throw failure;
    }
  }

  /** The error of the process that failed first, as this one reports it. */
  failure(): GraftError | undefined {
    try {
      const failure = this.#failure(0);
      return failure && told(failure);
    } catch {
      return undefined; // the store has gone
    }
  }

  #failure(milliseconds: number): Failure | undefined {
    const text = this.get('failed', milliseconds);
    return text === undefined ? undefined : (JSON.parse(text) as Failure);
  }

  /**
   * Tells the other processes why this one fails; they end with that error at their next collective. Of several errors the first counts.
   * @param rank whose error it is; undefined: it is about all
   */
  tell(error: GraftError, rank: number | undefined): void {
    try {
      this.setOnce('failed', JSON.stringify({ rank, error: error.toJSON() } satisfies Failure));
      this.set('alarm', '1');
    } catch {
      // The store has gone with the process that hosted it, so the others know already.
    }
  }

  /**
   * Finds out why a collective did not end: the error of a process that failed, or which processes do not answer.
   * @param how the alarm of another process, an error of the connection, or a timeout after so many milliseconds
   * @param awaited how many collectives this process has waited for, the last one included
   * @param otherwise what it is where every process answers
   */
  diagnose(
    how: 'alarm' | 'lost' | { readonly late: number },
    awaited: number,
    cause?: unknown,
    otherwise = new GraftError('state', 'the connection to another process failed', { cause }),
  ): GraftError {
    const { rank, size, hostsStore } = this.placement;
    const late = typeof how === 'object' ? how.late : undefined;
    try {
      // Who raised the alarm is about to say why.
      const failure = this.#failure(how === 'alarm' ? alarmLimit : late === undefined ? failureLimit : 0);
      if (failure) return told(failure);
      this.set('alarm', '1');
      const deadline = performance.now() + answerLimit;
      const others = Array.from({ length: size }, (_, other) => other).filter((other) => other !== rank);
      const answers = new Map<number, number>();
      for (const other of others) {
        const answer = this.get(`present/${other}`, Math.max(0, deadline - performance.now()));
        if (answer !== undefined) answers.set(other, Number(answer));
      }
      const toldMeanwhile = this.#failure(0);
      if (toldMeanwhile) return told(toldMeanwhile);
      const silent = others.filter((other) => !answers.has(other));
      const behind = others.filter((other) => answers.get(other)! < awaited);
      const found = silent.length > 0 ? gone(silent, late, cause) : late === undefined ? otherwise : slow(behind, late);
      this.tell(found, undefined);
      return found;
    } catch (error) {
      return hostsStore && rank !== 0 ? gone([0], late, cause ?? error) : otherwise;
    }
  }

  /**
   * Leaves the store; the process that hosts it waits until the others have left too, except for those that failed.
   * @param error what ended the group, if anything did
   */
  leave(error?: GraftError): void {
    const failedRanks = (error?.data.failedRanks ?? []) as readonly number[];
    const { rank, size, hostsStore } = this.placement;
    try {
      if (!hostsStore || rank !== 0) {
        this.set(`left/${rank}`, '1');
        return;
      }
      const deadline = performance.now() + leaveLimit;
      for (let other = 1; other < size; other++) {
        if (failedRanks.includes(other)) continue;
        if (this.get(`left/${other}`, Math.max(0, deadline - performance.now())) === undefined) return;
      }
    } catch {
      // It has gone already.
    }
  }
}

/** Whether an address leads to this machine only. */
export const isLoopback = (address: string): boolean => address.startsWith('127.') || address === '::1';

export const seconds = (milliseconds: number): string => `${Math.round(milliseconds / 100) / 10} s`;

/** `rank 3`, `ranks 1, 2 and 5`. */
export function ranks(numbers: readonly number[]): string {
  const [last, ...rest] = numbers.toReversed();
  return rest.length === 0 ? `rank ${last}` : `ranks ${rest.toReversed().join(', ')} and ${last}`;
}

/** Why a store cannot be hosted or reached. */
function notOpened(
  { master, rank, hostsStore, source }: RankPlacement,
  server: boolean,
  timeout: number,
  cause: Error,
): GraftError {
  const place = `${master.host}:${master.port}`;
  if (server && /EADDRINUSE/.test(cause.message))
    return new GraftError('environment', 'the port is in use on this machine, so the processes cannot meet there', {
      place,
      hint: portHint,
      data: { busyPort: master.port },
      cause,
    });
  const host = hostsStore ? 'rank 0' : 'the launcher';
  return new GraftError(
    'environment',
    server
      ? 'rank 0 cannot open the port at which the processes meet'
      : `rank ${rank} cannot reach ${host} within ${seconds(timeout)}${whyUnreachable(master)}`,
    {
      place,
      hint: `Check that ${hostsStore ? 'rank 0 runs there' : 'it runs'} and that the port is open; ${source} named it`,
      cause,
    },
  );
}

/** What is wrong with the address of rank 0 as this machine sees it, if anything is. */
function whyUnreachable({ host, port }: RankPlacement['master']): string {
  try {
    const own = currentEngine().native.addressTowards(host, port);
    return isLoopback(own) ? `; on this machine ${host} is this machine itself` : '';
  } catch (error) {
    return `: ${GraftError.of(error).problem}`;
  }
}

/** The error of another process, as this one reports it. */
function told({ rank, error }: Failure): GraftError {
  const original = GraftError.from(error);
  if (rank === undefined) return original;
  const { kind, problem, place, hint } = original;
  return new GraftError(kind, `rank ${rank} failed: ${place ? `${place}: ` : ''}${problem}`, {
    hint,
    data: { failedRanks: [rank], error },
  });
}

function gone(silent: readonly number[], late: number | undefined, cause: unknown): GraftError {
  const who = ranks(silent);
  const problem =
    late === undefined
      ? `${who} ended or cannot be reached any more`
      : `${who} took no part within ${seconds(late)}, and ${silent.length > 1 ? 'do' : 'does'} not answer: stopped, or cut off from the network`;
  return new GraftError('state', problem, {
    hint: `${silent.length > 1 ? 'Their' : 'Its'} own output and the system log (out of memory?) say why; run the same command again to resume from the last checkpoint`,
    data: { failedRanks: silent },
    cause,
  });
}

function slow(behind: readonly number[], late: number): GraftError {
  const who = behind.length > 0 ? ranks(behind) : 'another process';
  return new GraftError('state', `${who} took no part within ${seconds(late)}, but still runs`, {
    hint: 'Where its steps take so long, raise the timeout (--timeout)',
    data: { failedRanks: behind },
  });
}
