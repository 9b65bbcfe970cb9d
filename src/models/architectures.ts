/** The names of transformers' model classes, which stand in `config.json` under `architectures`. */
import type { TaskName } from '../nn/index.ts';

/** How the name of a class ends, by the task that its head is for. */
const suffixes: Readonly<Record<TaskName, string>> = {
  'causal-lm': 'ForCausalLM',
  'sequence-classification': 'ForSequenceClassification',
  'token-classification': 'ForTokenClassification',
  'question-answering': 'ForQuestionAnswering',
  'image-classification': 'ForImageClassification',
  embedding: 'Model',
};

/** The class for a task: `Bert` and token classification → `BertForTokenClassification`. */
export const architectureOf = (stem: string, task: TaskName): string => stem + suffixes[task];

/** The task that a class is for; undefined where its head is one that Graft does not have. */
export function taskOfArchitecture(architecture: string): TaskName | undefined {
  const regular = architecture.replace(/LMHeadModel$/, suffixes['causal-lm']).replace(/WithTeacher$/, '');
  const tasks = Object.entries(suffixes) as [TaskName, string][];
  return tasks.find(([, suffix]) => regular.endsWith(suffix))?.[0];
}
