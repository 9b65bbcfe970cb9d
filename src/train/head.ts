import { taskOfAdapter } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import { type Example, nameOfSource, type Row } from '../data/index.ts';
import { headOf, type LoadOptions } from '../models/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { labelsIn, type TaskOptions } from '../tasks/index.ts';
import type { Recipe } from './recipe.ts';

/**
 * The task and labels that a recipe's model is loaded for. The labels are the recipe's, else those of the adapter that it begins
 * from, else those of the checkpoint's own head for this task, else those found in the data.
 * @throws GraftError 'input' where no labels are found
 */
export function headFor(
  recipe: Recipe,
  modelPath: string,
  examples: Iterable<Example>,
): Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> {
  const fromAdapter: Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> = recipe.adapter
    ? taskOfAdapter(recipe.adapter)
    : {};
  const checkpointHead = headOf(modelPath);
  const task = recipe.task ?? fromAdapter.task ?? checkpointHead.name;
  if (task === 'causal-lm' || task === 'embedding' || task === 'question-answering') return { task };
  const found = labelsIn(task, examples);
  const several = found?.multiLabel && { multiLabel: true };
  if (recipe.labels) return { task, labels: recipe.labels.map(String), ...several };
  if (fromAdapter.labels && (fromAdapter.task ?? task) === task)
    return { task, labels: fromAdapter.labels, ...(fromAdapter.multiLabel ? { multiLabel: true } : several) };
  if (checkpointHead.name === task)
    return { task, labels: checkpointHead.labels, ...(checkpointHead.multiLabel ? { multiLabel: true } : several) };
  if (found) return { task, ...found };
  const unused = [...new Set([...examples].flatMap(({ unused = [] }) => unused))].slice(0, 5);
  throw new GraftError('input', `the rows have no labels for ${[task, ...unused].join('; ')}`, {
    place: nameOfSource(recipe.data.train, 'data.train'),
    hint: 'Give each row its label (data.columns says which column has it), or list the classes under labels',
  });
}

/** The options of a recipe's task. Under `balanced`, every class counts the same in total, however many rows it has. */
export function taskOptions(recipe: Recipe, head: TaskHead, rows: readonly Row[]): TaskOptions {
  const { temperature, class_weights: weights } = recipe;
  if (weights !== 'balanced') return { classWeights: weights, temperature };
  if (head.multiLabel || head.labels.length < 2 || head.name === 'question-answering') {
    throw new GraftError('usage', 'class_weights: balanced needs rows that have exactly one class each', {
      place: 'class_weights',
      hint: 'Give a number for each label',
    });
  }
  const counts = head.labels.map(() => 0);
  for (const { labels, target } of rows) {
    for (const c of target ?? labels) if (c >= 0) counts[c]!++;
  }
  const all = counts.reduce((a, b) => a + b, 0);
  const present = counts.filter((n) => n > 0).length;
  const balanced = head.labels.map((label, c) => [label, counts[c]! > 0 ? all / (present * counts[c]!) : 1]);
  return { classWeights: Object.fromEntries(balanced), temperature };
}
