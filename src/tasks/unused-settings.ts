/** Settings of a recipe, or of a command, that only some tasks read. */
import type { TaskName } from '../nn/index.ts';

const withClasses = ['sequence-classification', 'token-classification', 'image-classification'] as const;
const ofText = ['causal-lm', 'sequence-classification', 'token-classification', 'embedding'] as const;

const tasksThatRead: Readonly<Record<string, readonly TaskName[]>> = {
  stride: ['question-answering'],
  train_on: ['causal-lm'],
  truncate: ofText,
  max_length: [...ofText, 'question-answering'],
  temperature: ['embedding'],
  labels: withClasses,
  class_weights: withClasses,
};

/** A note on each setting that was asked for and that the task does not read. @param asked names of the settings */
export const unusedSettings = (asked: readonly string[], task: TaskName): string[] =>
  asked.flatMap((name) => {
    const readers = tasksThatRead[name];
    return !readers || readers.includes(task) ? [] : [`${name} is not used: it is for ${readers.join(', ')}`];
  });
