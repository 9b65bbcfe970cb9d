/** Which of several tasks a step is for, and how many steps it had before. */
export interface ScheduledStep {
  readonly task: number;
  readonly index: number;
}

/**
 * The turns of tasks with these shares: each step is for the one that is furthest behind its share of the steps so far, the first
 * of equals. It depends on the shares alone, so that a run that goes on from a checkpoint has the turns of one never stopped.
 */
export function scheduleTasks(shares: readonly number[], steps: number): ScheduledStep[] {
  const had = shares.map(() => 0);
  return Array.from({ length: steps }, (_, step) => {
    const behind = shares.map((share, k) => share * (step + 1) - had[k]!);
    const task = behind.indexOf(Math.max(...behind));
    return { task, index: had[task]!++ };
  });
}
