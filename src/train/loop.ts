/** The functions that the loop calls of the run around it (design §6). */
export interface LoopParts {
  /** Steps already done, and steps to do in all. */
  readonly from: number;
  readonly steps: number;
  /** Does step number `step` (0-based) and reports it. */
  step(step: number): void;
  /** Whether a stop cut short the measurement after step `from`, which then comes first. */
  readonly unmeasured: boolean;
  /** Measures after `done` steps. Returns 'stop' to end early, 'stopped' where a stop was requested before all was measured. */
  evaluate?(done: number): 'continue' | 'stop' | 'stopped';
  checkpoint(done: number): void;
  /** Whether to measure or save after `done` steps. */
  evaluateNow(done: number): boolean;
  checkpointNow(done: number): boolean;
  /** Whether the run was asked to stop. */
  stopRequested(): boolean;
}

/** Takes steps until all are done, an evaluation says stop, or a stop is requested. A checkpoint follows the evaluation of its step. */
export function trainLoop(parts: LoopParts): 'done' | 'early-stop' | 'stopped' {
  /** What follows a step. Returns why the run ends, or undefined. */
  const afterStep = (done: number) => {
    const last = done === parts.steps;
    const verdict = parts.evaluate && (last || parts.evaluateNow(done)) ? parts.evaluate(done) : 'continue';
    const stopped = verdict === 'stopped' || (!last && parts.stopRequested());
    if (last || stopped || verdict === 'stop' || parts.checkpointNow(done)) parts.checkpoint(done);
    if (verdict === 'stop') return 'early-stop';
    return stopped ? 'stopped' : undefined;
  };
  const reason = parts.unmeasured ? afterStep(parts.from) : undefined;
  if (reason) return reason;
  for (let step = parts.from; step < parts.steps; step++) {
    parts.step(step);
    const reason = afterStep(step + 1);
    if (reason) return reason;
  }
  return 'done';
}
