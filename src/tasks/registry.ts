import type { TaskHead, TaskName } from '../nn/index.ts';
import { causalLm } from './causal-lm.ts';
import { sequenceClassification } from './sequence-classification.ts';
import type { Task, TaskOptions } from './task.ts';

/** Every task; a new one is a file and a line here. */
export const tasks = {
  'causal-lm': causalLm,
  'sequence-classification': sequenceClassification,
} as const satisfies Partial<Record<TaskName, (head: TaskHead, options: TaskOptions) => Task>>;

/** The task that a head is for. @throws GraftError 'usage' for options that do not fit it */
export function taskOf(head: TaskHead, options: TaskOptions = {}): Task {
  return (tasks as unknown as Record<TaskName, (head: TaskHead, options: TaskOptions) => Task>)[head.name](
    head,
    options,
  );
}
