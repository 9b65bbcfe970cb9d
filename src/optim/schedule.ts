import { z } from 'zod';

export const scheduleConfig = z.strictObject({
  type: z
    .enum(['constant', 'linear', 'cosine'])
    .default('constant')
    .describe('Learning-rate schedule after the warmup: constant, or decaying to 0 at the last step (linear, cosine).'),
  warmup_steps: z
    .int()
    .nonnegative()
    .optional()
    .describe('Number of warmup steps, over which the learning rate rises linearly from 0.'),
  warmup_ratio: z
    .number()
    .min(0)
    .max(1)
    .optional()
    .describe('Warmup steps as a fraction of all steps; warmup_steps takes precedence.'),
});

/** A learning-rate schedule, under the names of the recipe's `train` section; `type` is its field `schedule`. */
export type ScheduleConfig = z.infer<typeof scheduleConfig>;

/**
 * Returns the factor of the learning rate at step `step` (from 0) of `total`, as in transformers'
 * `get_constant/linear/cosine_schedule_with_warmup`.
 */
export function scheduleFactor(config: ScheduleConfig, step: number, total: number): number {
  const warmup = config.warmup_steps ?? Math.ceil((config.warmup_ratio ?? 0) * total);
  if (step < warmup) return step / Math.max(1, warmup);
  if (config.type === 'constant') return 1;
  const progress = (step - warmup) / Math.max(1, total - warmup);
  if (config.type === 'linear') return Math.max(0, 1 - progress);
  return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
}
