import { GraftError } from '../base/index.ts';
import type { Packed } from '../data/index.ts';
import { dealt } from '../distributed/index.ts';
import type { Adapter } from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import { normOfGradients, type Optimizer, scaleGradients } from '../optim/index.ts';
import { type Task, taskOf, tokensOf } from '../tasks/index.ts';
import { detachFromScopes, manualSeed, mixSeed, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import type { ActiveLayers } from './active.ts';
import { type Sharding, unsharded } from './sharding.ts';
import { requireNoWholeGradients } from './whole-gradients.ts';

/** One micro-batch: rows end to end. */
export type MicroBatch = Packed;

/** What an optimizer step works on. */
export interface StepInput {
  /** The model that is trained. */
  readonly model: Model;
  /** Default: that of the model's head. */
  readonly task?: Task;
  /** The trained parameters by key. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** The optimizer of the parameters. */
  readonly optimizer: Optimizer;
  /** Returns the final hidden states [N, C] of a micro-batch. Default: a forward pass of the model. */
  readonly hidden?: (batch: MicroBatch) => Tensor;
  /** The method's own term of the loss, and its action after the update. */
  readonly adapter?: Pick<Adapter, 'regularisation' | 'afterStep' | 'readsGradients'>;
  /** The layers that train: they learn the loss and the gradients. */
  readonly layers?: Pick<ActiveLayers, 'observe'> | undefined;
  /** The micro-batches of the step, of all processes. */
  readonly batches: readonly MicroBatch[];
  /** How the parameters are divided among the processes that take the step together, each of which runs some of the micro-batches. Default: this process is alone. */
  readonly sharding?: Sharding;
  /** The learning rate of the step. */
  readonly lr: number;
  /** Clips the 2-norm of all gradients together to this value; undefined: no clipping. */
  readonly maxGradNorm: number | undefined;
  /** Seed of the run; together with `step` and the number of the micro-batch it decides the dropout. */
  readonly seed: number;
  /** Number of this step, from 0. */
  readonly step: number;
}

/** What an optimizer step tells. */
export interface StepResult {
  /** Mean over the units of the whole step (predicted tokens, rows, or their weights), plus the term that a method adds. */
  readonly loss: number;
  /** The term that a method adds. */
  readonly penalty?: number;
  /** 2-norm of all gradients before clipping. */
  readonly gradNorm: number;
  /** Tokens of all micro-batches. */
  readonly tokens: number;
  /** Units of the loss. */
  readonly predicted: number;
}

/** The sum of the losses of one micro-batch: a scalar that can be differentiated. */
export const batchLoss = (
  model: Model,
  batch: MicroBatch,
  task = taskOf(model.task),
  hidden = model.hidden(tokensOf(model, batch)),
): Tensor => task.lossSum(model, hidden, batch);

/** Adds the term that a method adds to the loss, once a step, to `sum`, and its gradients to those of the parameters. */
function regularise(adapter: NonNullable<StepInput['adapter']>, sum: Tensor): void {
  using _ = scope();
  const term = adapter.regularisation!();
  if (term.requiresGrad) term.backward();
  noGrad(() => ops.add_(sum, term));
}

/** Reads scalars in one go. */
function readAll(scalars: readonly Tensor[]): number[] {
  using _ = scope();
  return noGrad(() => [
    ...(ops.stack(scalars.map((scalar) => ops.toCopy(scalar, { dtype: 'float64' }))).data() as Float64Array),
  ]);
}

/** @throws GraftError 'numeric' where the loss or the norm of the gradients is not finite */
function requireFiniteStep(step: number, loss: number, gradNorm?: number): void {
  if (Number.isFinite(loss) && (gradNorm === undefined || Number.isFinite(gradNorm))) return;
  throw new GraftError('numeric', `the ${Number.isFinite(loss) ? 'gradient' : 'loss'} is not finite`, {
    place: `step ${step + 1}`,
    data: { step: step + 1, loss: String(loss), gradNorm: String(gradNorm) },
  });
}

/**
 * One optimizer step. The loss is the sum over all units of all micro-batches, divided by their number: however the step is cut, the gradient is the same.
 * @throws GraftError 'numeric' when the loss or a gradient is not finite; the parameters are then as before, but those that an optimizer
 * has updated in the backward pass. 'usage' where such an optimizer is given several micro-batches, or what needs all gradients at once
 */
export function trainStep(input: StepInput): StepResult {
  const { model, parameters, optimizer, batches, step, sharding = unsharded(parameters) } = input;
  const { group } = sharding;
  const task = input.task ?? taskOf(model.task);
  const predicted = batches.reduce((sum, b) => sum + task.units(b), 0);
  if (predicted === 0) throw new GraftError('input', `step ${step + 1} has nothing to predict`);
  if (optimizer.inBackward) {
    requireNoWholeGradients({ ...input, processes: group.size });
    if (batches.length > 1) {
      throw new GraftError(
        'usage',
        `step ${step + 1} has ${batches.length} micro-batches, and the optimizer updates in the backward pass of each`,
        { hint: 'Make the rows of a step one micro-batch' },
      );
    }
  }
  using updates = optimizer.inBackward?.(input.lr);
  const owners = dealt(
    batches.map(({ ids }) => ids.length),
    group.size,
  );
  const mine = batches.map((_, micro) => micro).filter((micro) => owners[micro] === group.rank);
  const rounds = Math.max(...[...Map.groupBy(owners, (owner) => owner).values()].map(({ length }) => length));
  // Sums and norms stay where the model is until the step reads them, once: a read waits for all that was computed before.
  using own = detachFromScopes(ops.zeros([], { dtype: 'float64' }));
  using ofMethod = detachFromScopes(ops.zeros([], { dtype: 'float64' }));
  try {
    const runMicro = (micro: number) => {
      const batch = batches[micro]!;
      using _ = scope();
      manualSeed(mixSeed(input.seed, step, micro));
      const sum = batchLoss(model, batch, task, input.hidden?.(batch));
      noGrad(() => ops.add_(own, sum));
      if (!sum.requiresGrad) {
        throw new GraftError('usage', 'nothing that trains in this step changes the loss', {
          place: `step ${step + 1}`,
          hint: 'Let a part of the model train that the task computes with',
        });
      }
      if (updates) requireFiniteStep(step, own.item());
      ops.mulScalar(sum, 1 / predicted).backward();
    };
    for (let round = 0; round < rounds; round++) {
      const micro = mine[round];
      sharding.during(micro === undefined ? undefined : () => runMicro(micro));
    }
    // The method's own term counts once, and its gradients travel with those of the rows.
    if (input.adapter?.regularisation)
      sharding.besides(group.rank === 0 ? () => regularise(input.adapter!, ofMethod) : undefined);
    sharding.sumGradients();
    using ownNorm = updates ? undefined : normOfGradients(sharding.owned.values());
    const [ownLoss, ownPenalty, ownGradNorm = 0] = readAll([own, ofMethod, ...(ownNorm ? [ownNorm] : [])]);
    const agreed = group.agree({ loss: ownLoss!, penalty: ownPenalty! });
    // From here on every process does the same, with all gradients or with those of its own parameters.
    const penalty = input.adapter?.regularisation && agreed.penalty[0];
    const loss = agreed.loss.reduce((a, b) => a + b) / predicted + (penalty ?? 0);
    input.layers?.observe(step, loss, updates ?? sharding);
    const gradNorm = updates ? (updates.gradNorm() ?? 0) : sharding.norm(ownGradNorm);
    if (!updates) scaleGradients(sharding.owned.values(), gradNorm, input.maxGradNorm);
    requireFiniteStep(step, loss, gradNorm);
    if (!updates) optimizer.step(input.lr);
    sharding.shareUpdates();
    input.adapter?.afterStep?.(step);
    const tokens = batches.reduce((sum, b) => sum + b.ids.length, 0);
    return { loss, ...(penalty !== undefined && { penalty }), gradNorm, tokens, predicted };
  } finally {
    for (const parameter of [...parameters.values(), ...sharding.owned.values()]) parameter.grad = undefined;
  }
}
