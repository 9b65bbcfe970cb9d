/** The steps of a run whose optimizer updates in the backward pass: without gradient accumulation, all rows of a step are one micro-batch. */
import { GraftError } from '../base/index.ts';
import { tokensOfRow } from '../data/index.ts';
import type { Recipe } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

/**
 * Returns the tokens of the largest step that is left.
 * @param steps number of the first step that is left, and of steps in all
 * @throws GraftError 'usage' where the recipe's micro_tokens are fewer
 */
export function largestStep(
  taskRuns: TaskRuns,
  { train }: Recipe,
  steps: { readonly from: number; readonly to: number },
): number {
  let [tokens, step] = [0, steps.from];
  for (let at = steps.from; at < steps.to; at++) {
    const { taskRun, index } = taskRuns.taskAt(at);
    const { promptLength } = taskRun.model.ports;
    const sum = taskRun.plan.rowsOf(index).reduce((total, row) => total + tokensOfRow(row, promptLength), 0);
    if (sum > tokens) [tokens, step] = [sum, at];
  }
  if (train.micro_tokens === undefined || tokens <= train.micro_tokens) return tokens;
  throw new GraftError(
    'usage',
    `${train.optimizer.type} takes the rows of a step as one micro-batch, and step ${step + 1} has ${tokens} tokens, more than micro_tokens (${train.micro_tokens})`,
    {
      place: 'train.micro_tokens',
      hint: 'Lower train.batch_size, leave micro_tokens out, or use adamw, which accumulates gradients over micro-batches',
    },
  );
}

/** What should be known of steps that other optimizers would have cut into micro-batches. */
export const wholeStepWarning = ({ train }: Recipe, { memory }: TaskRuns, tokens: number): string =>
  `${train.optimizer.type} takes the rows of a step as one micro-batch: the largest step has ${tokens} tokens, and activations take about ${memory.activationsMb} MB. A smaller train.batch_size${train.gradient_checkpointing ? '' : ' or train.gradient_checkpointing: true'} takes less`;
