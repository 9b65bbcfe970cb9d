/** The names of transformers' model classes: `architectures` of `config.json`. */
import type { TaskName } from '../nn/index.ts';

/** The end of a class's name for each task. */
const suffixes: Readonly<Record<TaskName, string>> = {
  'causal-lm': 'ForCausalLM',
  'sequence-classification': 'ForSequenceClassification',
  'token-classification': 'ForTokenClassification',
  'question-answering': 'ForQuestionAnswering',
  'image-classification': 'ForImageClassification',
  embedding: 'Model',
};

/** Returns the name of the class for a task: `Bert` and token classification → `BertForTokenClassification`. */
export const architectureOf = (stem: string, task: TaskName): string => stem + suffixes[task];

/** Returns the task of a class; undefined where Graft does not have it. */
export function taskOfArchitecture(architecture: string): TaskName | undefined {
  const regular = architecture.replace(/LMHeadModel$/, suffixes['causal-lm']).replace(/WithTeacher$/, '');
  const tasks = Object.entries(suffixes) as [TaskName, string][];
  return tasks.find(([, suffix]) => regular.endsWith(suffix))?.[0];
}
