/** AdamW (arXiv 1711.05101, algorithm 2), by LibTorch's fused step. */
import { z } from 'zod';
import { detachFromScopes, noGrad, ops, Tensor } from '../tensor/index.ts';
import type { Optimizer } from './optimizer.ts';

export const adamwConfig = z.strictObject({
  beta1: z.number().min(0).lt(1).default(0.9).describe('AdamW: share of the mean gradient that a step keeps.'),
  beta2: z.number().min(0).lt(1).default(0.999).describe('AdamW: the same for the mean squared gradient.'),
  eps: z.number().positive().default(1e-8).describe('AdamW: added to the root of the mean squared gradient.'),
  weight_decay: z
    .number()
    .nonnegative()
    .default(0)
    .describe('Pull of matrices towards zero, times the learning rate; biases and norms are never decayed.'),
});

export type AdamWConfig = z.infer<typeof adamwConfig>;

/**
 * State is two moments of each parameter's size, in float32, and a step count.
 * @param rate what the learning rate is multiplied with for a parameter
 */
export function adamw(
  parameters: ReadonlyMap<string, Tensor>,
  config: AdamWConfig,
  rate: (key: string) => number = () => 1,
): Optimizer {
  const entries = [...parameters].map(([key, parameter]) => ({
    key,
    parameter,
    decay: parameter.shape.length > 1 ? config.weight_decay : 0,
    rate: rate(key),
    expAvg: detachFromScopes(noGrad(() => ops.zerosLike(parameter))),
    expAvgSq: detachFromScopes(noGrad(() => ops.zerosLike(parameter))),
    step: detachFromScopes(Tensor.from(new Float32Array(1), [])),
  }));

  type Entry = (typeof entries)[number];
  const groups = Map.groupBy(entries, (e) => `${e.decay} ${e.rate}`)
    .values()
    .toArray();

  return {
    step(lr) {
      noGrad(() => {
        for (const group of groups) {
          const [{ decay, rate }] = group as [Entry];
          const live = group.map((e) => ({ ...e, grad: e.parameter.grad })).filter((e) => e.grad !== undefined);
          ops.addScalarToEach(
            live.map((e) => e.step),
            1,
          );
          ops.fusedAdamW_(
            live.map((e) => e.parameter),
            live.map((e) => e.grad!),
            live.map((e) => e.expAvg),
            live.map((e) => e.expAvgSq),
            [],
            live.map((e) => e.step),
            {
              lr: lr * rate,
              beta1: config.beta1,
              beta2: config.beta2,
              weightDecay: decay,
              eps: config.eps,
              amsgrad: false,
              maximize: false,
            },
          );
          for (const e of live) e.grad!.dispose();
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
