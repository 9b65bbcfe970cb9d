/**
 * GaLore (arXiv 2403.03507): AdamW on gradients of matrices that are projected to a few directions, so that its moments are small. As in
 * the authors' package galore-torch; embeddings, heads, biases and norms keep whole moments, as there.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import { adamw, adamwFields } from './adamw.ts';
import type { OptimizerType, Trained } from './optimizer.ts';

const config = z
  .strictObject({
    rank: z.int().positive().default(128).describe('Directions that the gradient of a matrix is projected to.'),
    update_proj_gap: z
      .int()
      .positive()
      .default(200)
      .describe('Steps of a matrix between two choices of its directions, each a singular value decomposition.'),
    scale: z.number().positive().default(0.25).describe('Factor of the learning rate of projected matrices.'),
    proj_type: z
      .enum(['std', 'reverse_std', 'left', 'right'])
      .default('std')
      .describe(
        'Side of a matrix that is projected. std: its longer side is kept and the shorter one projected; reverse_std: the other way; left: rows; right: columns.',
      ),
    ...adamwFields,
  })
  .describe(
    'AdamW in the leading directions of each gradient (GaLore, arXiv 2403.03507): of a block’s matrix [m, n], m ≥ n, 8·m·rank bytes of moments and 4·n·rank bytes of directions.',
  );

type Config = z.output<typeof config>;

/** Whether columns are projected, to g·Pᵀ [m, r]; else rows, to Pᵀ·g [r, n]. */
const projectsColumns = ([rows = 0, columns = 0]: readonly number[], { proj_type: type }: Config) =>
  type === 'std' ? rows >= columns : type === 'reverse_std' ? rows < columns : type === 'right';

const isProjected = (shape: readonly number[], inBlock: boolean) => inBlock && shape.length === 2;

/** The leading directions of a gradient [m, n]: [r, n] where columns are projected, else [m, r]. */
function directionsOf(grad: Tensor, rank: number, columns: boolean): Tensor {
  const [u, , vh] = ops.linalgSvd(grad, false);
  return columns ? ops.narrow(vh, 0, 0, rank) : ops.narrow(u, 1, 0, rank);
}

/** A step of AdamW without decay. As in galore-torch, eps is added to the second moment's root before that is corrected for its beginning. */
function adamStep(trained: Trained, lr: number, settings: Config): void {
  const step = trained.slots.step!.item() + 1;
  const eps = settings.eps / Math.sqrt(1 - settings.beta2 ** step);
  adamw.update([trained], { lr, weightDecay: 0 }, { ...settings, eps });
}

/** A step from zeros in the directions of the gradient, and back. */
function updateProjected({ parameter, grad, slots }: Trained, lr: number, settings: Config): void {
  using _ = scope();
  const { rank, update_proj_gap, scale } = settings;
  const directions = slots.directions!;
  const columns = projectsColumns(grad.shape, settings);
  if (slots.step!.item() % update_proj_gap === 0) ops.copy_(directions, directionsOf(grad, rank, columns));
  const low = columns ? ops.mm(grad, ops.t(directions)) : ops.mm(ops.t(directions), grad);
  const update = ops.zerosLike(low);
  adamStep({ key: '', parameter: update, grad: low, slots }, lr, settings);
  ops.add_(parameter, columns ? ops.mm(update, directions) : ops.mm(directions, update), { alpha: scale });
}

/** Keeps AdamW's moments: of a block's matrices those of the projected gradient, with the directions; of all else whole ones. */
export const galore: OptimizerType<Config> = {
  name: 'galore',
  config,
  slots(shape, settings, inBlock) {
    if (!isProjected(shape, inBlock)) return adamw.slots(shape, settings, inBlock);
    const [rows, columns] = shape as [number, number];
    const { rank } = settings;
    const [low, directions] = projectsColumns(shape, settings)
      ? [
          [rows, rank],
          [rank, columns],
        ]
      : [
          [rank, columns],
          [rows, rank],
        ];
    return { ...adamw.slots(low, settings, inBlock), directions: { shape: directions, dtype: 'float32' } };
  },
  check({ rank }, parameters) {
    const sides = [...parameters].flatMap(([key, { shape, inBlock }]) =>
      isProjected(shape, inBlock) ? [{ key, shape, side: Math.min(...shape) }] : [],
    );
    if (sides.length === 0) {
      throw new GraftError('usage', 'galore projects the matrices of layers, and none is trained', {
        place: 'train.optimizer',
        hint: 'Take adamw or adamw8bit, or a method that trains layers, such as full',
      });
    }
    const tooSmall = sides.filter(({ side }) => side < rank);
    if (tooSmall.length === 0) return;
    const named = tooSmall.slice(0, 3).map(({ key, shape }) => `${key} [${shape.join(', ')}]`);
    const more = tooSmall.length - named.length;
    throw new GraftError(
      'usage',
      `rank ${rank} is larger than the smaller side of ${tooSmall.length} of ${sides.length} matrices: ${named.join(', ')}${more > 0 ? ` and ${more} more` : ''}`,
      {
        place: 'train.optimizer',
        hint: `The largest rank that works here is ${Math.min(...sides.map(({ side }) => side))}; memory is saved by much smaller ones`,
      },
    );
  },
  update(group, { lr, weightDecay }, settings) {
    for (const trained of group) {
      (trained.slots.directions ? updateProjected : adamStep)(trained, lr, settings);
      // Decay comes after the step, as in galore-torch.
      if (weightDecay > 0) ops.mulScalar_(trained.parameter, 1 - lr * weightDecay);
    }
  },
};
