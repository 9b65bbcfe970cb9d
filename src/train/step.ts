import { GraftError } from '../base/index.ts';
import type { Model } from '../nn/index.ts';
import { clipGradients, type Optimizer } from '../optim/index.ts';
import { manualSeed, mixSeed, scope, Tensor } from '../tensor/index.ts';

/** One micro-batch: rows end to end. `targets[i]` is the id after token i in its row, or −100 where none is learned. */
export interface MicroBatch {
  readonly ids: Int32Array;
  readonly targets: Int32Array;
  readonly positions: Int32Array;
  readonly rowStarts: Int32Array;
  readonly predicted: number;
}

export interface StepInput {
  readonly model: Model;
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly optimizer: Optimizer;
  readonly batches: readonly MicroBatch[];
  readonly lr: number;
  readonly maxGradNorm: number | undefined;
  /** Of the run, and the number of this step: together they decide the dropout. */
  readonly seed: number;
  readonly step: number;
}

export interface StepResult {
  /** Mean over the predicted tokens of the whole step, in nats. */
  readonly loss: number;
  /** 2-norm of all gradients before clipping. */
  readonly gradNorm: number;
  readonly tokens: number;
  readonly predicted: number;
}

const wide = (values: Int32Array) => Tensor.from(BigInt64Array.from(values, BigInt));

/** The sum of the losses of one micro-batch: a scalar that can be differentiated. */
export function batchLoss(model: Model, batch: MicroBatch): Tensor {
  let longest = 0;
  for (const p of batch.positions) longest = Math.max(longest, p + 1);
  const rowStarts = Array.from(batch.rowStarts);
  const hidden = model.hidden({ ids: wide(batch.ids), positions: wide(batch.positions), rowStarts, longest });
  return model.lossSum(hidden, wide(batch.targets));
}

/**
 * One optimizer step. The loss is the sum over all predicted tokens of all micro-batches, divided by their number:
 * however the step is cut, the gradient is the same (design §6).
 * @throws GraftError 'numeric' when the loss or a gradient is not finite; the parameters are then as before
 */
export function trainStep(input: StepInput): StepResult {
  const { model, parameters, optimizer, batches, step } = input;
  const predicted = batches.reduce((sum, b) => sum + b.predicted, 0);
  if (predicted === 0) throw new GraftError('input', `step ${step + 1} has no token to predict`);
  let total = 0;
  try {
    batches.forEach((batch, micro) => {
      using _ = scope();
      manualSeed(mixSeed(input.seed, step, micro));
      const sum = batchLoss(model, batch);
      total += sum.item();
      sum.backward(Tensor.from([1 / predicted], []));
    });
    const loss = total / predicted;
    const gradNorm = clipGradients(parameters.values(), input.maxGradNorm);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new GraftError('numeric', `the ${Number.isFinite(loss) ? 'gradient' : 'loss'} is not finite`, {
        place: `step ${step + 1}`,
        data: { step: step + 1, loss: String(loss), gradNorm: String(gradNorm) },
      });
    }
    optimizer.step(input.lr);
    return { loss, gradNorm, tokens: batches.reduce((sum, b) => sum + b.ids.length, 0), predicted };
  } finally {
    for (const parameter of parameters.values()) parameter.grad = undefined;
  }
}
