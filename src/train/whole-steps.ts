/** The steps of a run whose optimizer updates in the backward pass: without gradient accumulation, all rows of a step are one micro-batch. */
import { freeMemory, GraftError } from '../base/index.ts';
import { tokensOfRow } from '../data/index.ts';
import type { ActivationBytes } from './budget.ts';
import type { Recipe } from './recipe.ts';
import type { TaskRuns } from './task-runs.ts';

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;

/**
 * Returns the tokens of the largest step that is left: all rows of a step are one micro-batch.
 * @param steps number of the first step that is left, and of steps in all
 * @throws GraftError 'usage' where the recipe's micro_tokens are fewer, 'environment' where the activations do not fit into memory
 */
export function largestStep(
  taskRuns: TaskRuns,
  { train }: Recipe,
  { perToken, fixed }: ActivationBytes,
  steps: { readonly from: number; readonly to: number },
): { readonly tokens: number; readonly bytes: number } {
  let [tokens, step] = [0, steps.from];
  for (let at = steps.from; at < steps.to; at++) {
    const { taskRun, index } = taskRuns.taskAt(at);
    const { promptLength } = taskRun.model.ports;
    const sum = taskRun.plan.rowsOf(index).reduce((total, row) => total + tokensOfRow(row, promptLength), 0);
    if (sum > tokens) [tokens, step] = [sum, at];
  }
  const what = `${train.optimizer.type} takes the rows of a step as one micro-batch, and step ${step + 1} has ${tokens} tokens`;
  if (train.micro_tokens !== undefined && tokens > train.micro_tokens) {
    throw new GraftError('usage', `${what}, more than micro_tokens (${train.micro_tokens})`, {
      place: 'train.micro_tokens',
      hint: 'Lower train.batch_size, leave micro_tokens out, or use adamw, which accumulates gradients over micro-batches',
    });
  }
  const [bytes, free] = [tokens * perToken + fixed, freeMemory()];
  if (bytes > free) {
    throw new GraftError(
      'environment',
      `${what}, which take ${gigabytes(bytes)}; ${gigabytes(free)} of memory are free`,
      {
        place: 'train.batch_size',
        hint: `Lower train.batch_size${train.gradient_checkpointing ? '' : ', set train.gradient_checkpointing: true'}, or use adamw`,
        data: { needed: bytes, free },
      },
    );
  }
  return { tokens, bytes };
}

/** What should be known of steps that other optimizers would have cut into micro-batches of `microTokens`. */
export const wholeStepWarnings = (
  { train }: Recipe,
  { tokens, bytes }: { readonly tokens: number; readonly bytes: number },
  microTokens: number,
): string[] =>
  tokens <= microTokens
    ? []
    : [
        `${train.optimizer.type} takes the rows of a step as one micro-batch: the largest step has ${tokens} tokens, which take about ${gigabytes(bytes)} beside the weights. A smaller train.batch_size${train.gradient_checkpointing ? '' : ' or train.gradient_checkpointing: true'} takes less`,
      ];
