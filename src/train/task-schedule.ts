/** The task that a step is for, and how many steps of that task came before. */
export interface ScheduledStep {
  readonly task: number;
  readonly index: number;
}

/**
 * The schedule of tasks with these shares: each step is for the task that is furthest behind its share of the steps so far, the
 * first of equals. It depends on the shares alone, so a resumed run has the same schedule as one that was never stopped.
 */
export function scheduleTasks(shares: readonly number[], steps: number): ScheduledStep[] {
  const done = shares.map(() => 0);
  return Array.from({ length: steps }, (_, step) => {
    const behind = shares.map((share, k) => share * (step + 1) - done[k]!);
    const task = behind.indexOf(Math.max(...behind));
    return { task, index: done[task]!++ };
  });
}
