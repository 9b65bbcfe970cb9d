import type { TaskHead, TaskName } from '../nn/index.ts';
import { causalLm } from './causal-lm.ts';
import { embedding } from './embedding.ts';
import { imageClassification } from './image-classification.ts';
import { questionAnswering } from './question-answering.ts';
import { sequenceClassification } from './sequence-classification.ts';
import type { Task, TaskOptions } from './task.ts';
import { tokenClassification } from './token-classification.ts';

/** The tasks by name; a new one is a file and a line here. */
export const tasks = {
  'causal-lm': causalLm,
  'sequence-classification': sequenceClassification,
  'token-classification': tokenClassification,
  'question-answering': questionAnswering,
  'image-classification': imageClassification,
  embedding,
} as const satisfies Record<TaskName, (head: TaskHead, options: TaskOptions) => Pick<Task, 'head' | 'rows'>>;

/** The task of a head. @throws GraftError 'usage' for options that do not apply to it */
export const taskOf = (head: TaskHead, options: TaskOptions = {}): Task =>
  tasks[head.name](head, options) as unknown as Task;
