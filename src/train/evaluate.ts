import { GraftError } from '../base/index.ts';
import type { Model } from '../nn/index.ts';
import { noGrad, scope } from '../tensor/index.ts';
import { batchLoss, type MicroBatch } from './step.ts';

/** Mean loss over all predicted tokens of `batches`, in nats; no gradient, no dropout, one micro-batch in memory. */
export function evaluateLoss(model: Model, batches: readonly MicroBatch[]): { loss: number; tokens: number } {
  let sum = 0;
  let predicted = 0;
  noGrad(() => {
    for (const batch of batches) {
      using _ = scope();
      sum += batchLoss(model, batch).item();
      predicted += batch.predicted;
    }
  });
  if (!Number.isFinite(sum)) throw new GraftError('numeric', 'the loss on the rows to measure is not finite');
  return { loss: sum / predicted, tokens: predicted };
}
