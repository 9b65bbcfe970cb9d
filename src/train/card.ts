/** What the model card of a run's adapter says. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { writeModelCard } from '../adapters/index.ts';
import { nameOfSource } from '../data/index.ts';
import type { Metric } from '../tasks/index.ts';
import type { SavedResult } from './events.ts';
import { type Recipe, recipesOf } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/** Fields of the section `train` that say nothing about the result. */
const ofTheMachine = ['threads', 'micro_tokens', 'gradient_checkpointing', 'keep_activations', 'zero'];
const digits = (x: number) => Number(x.toPrecision(4)).toString();
const score = ({ name, value, low, high, count, of }: Metric) => ({
  name,
  value: `${digits(value)} (${digits(low)} to ${digits(high)})`,
  of: `${count} ${of}`,
});

/** Writes the cards of the adapters that a run saved. */
export function writeCards(recipe: Recipe, modelPath: string, { list, adapter }: TaskRuns, saved: SavedResult): void {
  if (adapter.writes !== 'adapter') return;
  for (const [i, [name, { data, task, train, quantize }]] of recipesOf(recipe).entries()) {
    const { plan, model } = list[i]!;
    const dir = join(saved.adapter, name ?? '');
    if (!existsSync(dir)) continue;
    const { evalLoss, evalMetrics } = name === undefined ? saved : saved.tasks![name]!;
    const used = Object.entries(train).filter(([field, value]) => value !== undefined && !ofTheMachine.includes(field));
    const choices = [recipe.method].flat();
    const methods = choices.map(({ type }) => type);
    writeModelCard(dir, {
      methods,
      base: recipe.model,
      basePath: modelPath,
      data: `${plan.rows} rows to learn from, of ${nameOfSource(data.train, 'rows in memory')}; ${plan.heldOut.length} rows held out${data.eval === undefined ? '' : `, of ${nameOfSource(data.eval, 'rows in memory')}`}.`,
      settings: {
        task: task ?? model.task.name,
        ...(model.task.labels.length > 0 && { labels: model.task.labels }),
        ...Object.fromEntries(
          choices.flatMap(({ type, ...fields }) =>
            Object.entries(fields)
              .filter(([, value]) => value !== undefined && value !== null)
              .map(([field, value]) => [`${type}.${field}`, value]),
          ),
        ),
        ...Object.fromEntries(used),
        quantize,
        max_length: data.max_length,
        ...(data.truncate && { truncate: data.truncate }),
        'saved after step': saved.savedStep,
      },
      scores: [
        ...(evalLoss === null ? [] : [{ name: 'loss', value: digits(evalLoss), of: `${plan.heldOut.length} rows` }]),
        ...evalMetrics.map(score),
      ],
    });
  }
}
