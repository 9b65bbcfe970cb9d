/** What a job is given beside its arguments. */
export interface JobContext<E = never> {
  /** Sends an event to whoever called. */
  emit(event: E): void;
  /** Whether the caller no longer wants the result: the job then ends as soon as it can. */
  stopRequested(): boolean;
  /** @throws GraftError 'interrupted' where a stop was requested */
  throwIfStopped(): void;
}
