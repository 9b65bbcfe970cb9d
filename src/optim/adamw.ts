/** The AdamW optimizer (arXiv 1711.05101, algorithm 2), with LibTorch's fused step. */
import { z } from 'zod';
import { detachFromScopes, noGrad, ops, Tensor } from '../tensor/index.ts';
import type { Optimizer } from './optimizer.ts';

export const adamwConfig = z.strictObject({
  beta1: z.number().min(0).lt(1).default(0.9).describe('AdamW: decay rate of the running mean of the gradient.'),
  beta2: z
    .number()
    .min(0)
    .lt(1)
    .default(0.999)
    .describe('AdamW: decay rate of the running mean of the squared gradient.'),
  eps: z
    .number()
    .positive()
    .default(1e-8)
    .describe('AdamW: constant added to the denominator, for numerical stability.'),
  weight_decay: z
    .number()
    .nonnegative()
    .default(0)
    .describe('Weight decay of matrices, times the learning rate (decoupled); biases and norms are never decayed.'),
});

/** The settings of AdamW, under the names of the recipe's `train` section. */
export type AdamWConfig = z.infer<typeof adamwConfig>;

/**
 * Returns an AdamW optimizer of these parameters. Its state is two moments of the size of each parameter, in float32, and a
 * step count.
 * @param rateFactor the factor of the learning rate for the parameter of this key
 */
export function adamw(
  parameters: ReadonlyMap<string, Tensor>,
  config: Partial<AdamWConfig> = {},
  rateFactor: (key: string) => number = () => 1,
): Optimizer {
  const complete = adamwConfig.parse(config);
  const entries = [...parameters].map(([key, parameter]) => ({
    key,
    parameter,
    decay: parameter.shape.length > 1 ? complete.weight_decay : 0,
    rateFactor: rateFactor(key),
    expAvg: detachFromScopes(noGrad(() => ops.zerosLike(parameter))),
    expAvgSq: detachFromScopes(noGrad(() => ops.zerosLike(parameter))),
    step: detachFromScopes(Tensor.from(new Float32Array(1), [])),
  }));

  type Entry = (typeof entries)[number];
  const groups = Map.groupBy(entries, (entry) => `${entry.decay} ${entry.rateFactor}`)
    .values()
    .toArray();

  return {
    step(lr) {
      noGrad(() => {
        for (const group of groups) {
          const [{ decay, rateFactor }] = group as [Entry];
          // As in torch, a parameter without a gradient is skipped: no decay, its moments and step count stay.
          const withGrad = group.map((e) => ({ ...e, grad: e.parameter.grad })).filter((e) => e.grad !== undefined);
          if (withGrad.length === 0) continue;
          ops.addScalarToEach(
            withGrad.map((e) => e.step),
            1,
          );
          ops.fusedAdamW_(
            withGrad.map((e) => e.parameter),
            withGrad.map((e) => e.grad!),
            withGrad.map((e) => e.expAvg),
            withGrad.map((e) => e.expAvgSq),
            [],
            withGrad.map((e) => e.step),
            {
              lr: lr * rateFactor,
              beta1: complete.beta1,
              beta2: complete.beta2,
              weightDecay: decay,
              eps: complete.eps,
              amsgrad: false,
              maximize: false,
            },
          );
          for (const e of withGrad) e.grad!.dispose();
        }
      });
    },

    state: new Map(
      entries.flatMap(({ key, expAvg, expAvgSq, step }) => [
        [`${key}.exp_avg`, expAvg] as const,
        [`${key}.exp_avg_sq`, expAvgSq] as const,
        [`${key}.step`, step] as const,
      ]),
    ),

    [Symbol.dispose]() {
      for (const { expAvg, expAvgSq, step } of entries) for (const t of [expAvg, expAvgSq, step]) t.dispose();
    },
  };
}
