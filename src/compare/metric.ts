/** Whether the tasks of a comparison have the metric that it is about. */
import { GraftError } from '../base/index.ts';
import { resolveModel } from '../io/index.ts';
import { taskOf } from '../tasks/index.ts';
import { readLessons } from '../train/index.ts';
import type { Comparison } from './comparison.ts';

/** The error for a metric that a task does not have. @param names those that it has */
export function noMetric(metric: string | undefined, names: readonly string[]): GraftError {
  if (names.length === 0) {
    return new GraftError('usage', 'the task has no metric to compare methods by', {
      place: 'compare',
      hint: 'Name the possible answers under compare.answers',
    });
  }
  return new GraftError('usage', `the task has no metric '${metric}'`, {
    place: 'compare.metric',
    hint: `It has ${names.join(', ')}`,
  });
}

/**
 * Reads the rows of a comparison, before anything is trained or measured.
 * @throws GraftError 'usage' for a metric that the task of a method does not have
 */
export async function requireMetric({ metric, contenders }: Comparison): Promise<void> {
  if (metric === undefined) return;
  const byTask = new Map([...contenders.values()].map(({ recipe }) => [recipe.task, recipe]));
  for (const recipe of byTask.values()) {
    for (const { head } of await readLessons(recipe, await resolveModel(recipe.model))) {
      const { metricNames } = taskOf({ ...head, name: head.task!, labels: head.labels ?? [] });
      if (!metricNames.includes(metric)) throw noMetric(metric, metricNames);
    }
  }
}
