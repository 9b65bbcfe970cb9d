import { GraftError } from '../base/index.ts';
import type { Adapter } from '../methods/index.ts';

/** What may need all gradients of a step at once. */
interface NeedsGradients {
  readonly adapter?: Pick<Adapter, 'regularisation' | 'readsGradients'> | undefined;
  readonly maxGradNorm?: number | undefined;
  /** Processes that take a step together. Default: 1. */
  readonly processes?: number;
}

/** @throws GraftError 'usage' for what needs all gradients of a step at once, where the backward pass frees each of them */
export function requireNoWholeGradients(
  { adapter, maxGradNorm, processes = 1 }: NeedsGradients,
  place = 'train.optimizer',
): void {
  const refuse = (why: string, hint: string) => {
    throw new GraftError('usage', `${why}, and the optimizer frees each gradient in the backward pass`, {
      place,
      hint,
    });
  };
  if (maxGradNorm !== undefined) {
    refuse(
      'max_grad_norm clips all gradients together',
      'Remove max_grad_norm and set optimizer.clip_grad_value, use adalomo, which bounds each update itself, or adamw',
    );
  }
  if (processes > 1) refuse('several processes add their gradients up', 'Run one process, or use adamw');
  if (adapter?.regularisation) refuse('the method adds a term of its own to the loss', 'Use adamw');
  if (adapter?.readsGradients) refuse('the method reads the gradients after each update', 'Use adamw');
}
