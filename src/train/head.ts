import { taskOfAdapter } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import type { Example, Row } from '../data/index.ts';
import { headOf, type LoadOptions } from '../models/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { labelsIn, type TaskOptions } from '../tasks/index.ts';
import type { Recipe } from './recipe.ts';

/**
 * What the model of a recipe is loaded for. The labels are the recipe's, else the adapter's that it begins from, else those of
 * the checkpoint's own head for this task, else those found in the data.
 * @throws GraftError 'input' where there are none
 */
export function headFor(
  recipe: Recipe,
  modelPath: string,
  examples: Iterable<Example>,
): Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> {
  const begun: Pick<LoadOptions, 'task' | 'labels' | 'multiLabel'> = recipe.adapter
    ? taskOfAdapter(recipe.adapter)
    : {};
  const own = headOf(modelPath);
  const task = recipe.task ?? begun.task ?? own.name;
  if (task === 'causal-lm' || task === 'embedding' || task === 'question-answering') return { task };
  const found = labelsIn(task, examples);
  const several = found?.multiLabel && { multiLabel: true };
  if (recipe.labels) return { task, labels: recipe.labels.map(String), ...several };
  if (begun.labels && (begun.task ?? task) === task)
    return { task, labels: begun.labels, ...(begun.multiLabel ? { multiLabel: true } : several) };
  if (own.name === task) return { task, labels: own.labels, ...(own.multiLabel ? { multiLabel: true } : several) };
  if (found) return { task, ...found };
  throw new GraftError('input', `the rows have no labels for ${task}`, {
    place: recipe.data.train,
    hint: 'Give each row its label, or name what the head can say under labels',
  });
}

/** The options of a recipe's task. `balanced`: rows of all classes together count as much as those of any other. */
export function taskOptions(recipe: Recipe, head: TaskHead, rows: readonly Row[]): TaskOptions {
  const { temperature, class_weights: weights } = recipe;
  if (weights !== 'balanced') return { classWeights: weights, temperature };
  if (head.multiLabel || head.labels.length < 2 || head.name === 'question-answering') {
    throw new GraftError('usage', 'only classes of which a row has one can be balanced', {
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
