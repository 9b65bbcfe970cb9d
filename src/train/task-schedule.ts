/** The task that a step is for, and how many steps of that task came before. */
export interface ScheduledStep {
  readonly task: number;
  readonly index: number;
}

/**
 * The schedule of tasks with these shares: each step is for the task that is furthest behind its share of the steps so far, the
 * first of equals. It depends on the shares alone, so a resumed or extended run has the same schedule as one that was never stopped.
 * @returns the task of step number `step`, 0-based
 */
export function taskSchedule(shares: readonly number[]): (step: number) => ScheduledStep {
  const done = shares.map(() => 0);
  const scheduled: ScheduledStep[] = [];
  return (step) => {
    while (scheduled.length <= step) {
      const behind = shares.map((share, k) => share * (scheduled.length + 1) - done[k]!);
      const task = behind.indexOf(Math.max(...behind));
      scheduled.push({ task, index: done[task]!++ });
    }
    return scheduled[step]!;
  };
}
