/** The messages between a session and its engine thread. */
import type { ErrorJson } from '../base/index.ts';
import type { JobContext } from './job-context.ts';
import type { jobs } from './jobs/index.ts';

type Jobs = typeof jobs;

export type JobName = keyof Jobs;
export type JobArgs<K extends JobName> = Parameters<Jobs[K]>[0];
export type JobResult<K extends JobName> = Awaited<ReturnType<Jobs[K]>>;
export type JobEvent<K extends JobName> = Parameters<Jobs[K]>[1] extends JobContext<infer E> ? E : never;

/** A way to stop what is running. */
export interface Abortable {
  /**
   * Stops the job: generation within a token, training within a step (with a checkpoint), everything else within a batch. While a
   * model loads or downloads, the stop waits for that to end. The job rejects with a GraftError of kind 'interrupted', whose
   * `cause` is the signal's reason.
   */
  readonly signal?: AbortSignal | undefined;
}

/** Runs a job in the engine thread. */
export type RunJob = <K extends JobName>(
  job: K,
  args: JobArgs<K>,
  options?: { onEvent?: (event: JobEvent<K>) => void; signal?: AbortSignal | undefined },
) => Promise<JobResult<K>>;

/** Something slow that happens once: a download, a build. */
export interface LogMessage {
  readonly type: 'log';
  readonly line: string;
}

/** To the engine thread: run a job. */
export interface JobRequest {
  readonly type: 'job';
  readonly id: number;
  readonly job: JobName;
  readonly args: unknown;
  /** One number in shared memory, not 0 once a stop is requested: a busy thread reads no messages. */
  readonly stop: Int32Array;
}

/** From the engine thread: what a job tells, what it came to, or why it failed. */
export type JobReply =
  | { readonly type: 'started'; readonly id: number }
  | { readonly type: 'event'; readonly id: number; readonly event: unknown }
  | { readonly type: 'result'; readonly id: number; readonly result: unknown }
  | { readonly type: 'error'; readonly id: number; readonly error: ErrorJson }
  | LogMessage;
