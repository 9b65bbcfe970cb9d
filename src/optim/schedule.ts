import { z } from 'zod';

export const scheduleConfig = z.strictObject({
  type: z
    .enum(['constant', 'linear', 'cosine'])
    .default('constant')
    .describe('Course of the learning rate after the warm-up: it stays, or falls to 0 at the last step.'),
  warmup_steps: z.int().nonnegative().optional().describe('Steps over which the learning rate rises from 0.'),
  warmup_ratio: z.number().min(0).max(1).optional().describe('The same as a share of all steps; warmup_steps wins.'),
});

export type ScheduleConfig = z.infer<typeof scheduleConfig>;

/**
 * What the learning rate is multiplied with at step `step` (0-based) of `total`: the shapes of transformers'
 * `get_constant/linear/cosine_schedule_with_warmup`.
 */
export function scheduleFactor(config: ScheduleConfig, step: number, total: number): number {
  const warmup = config.warmup_steps ?? Math.ceil((config.warmup_ratio ?? 0) * total);
  if (step < warmup) return step / Math.max(1, warmup);
  if (config.type === 'constant') return 1;
  const done = (step - warmup) / Math.max(1, total - warmup);
  if (config.type === 'linear') return Math.max(0, 1 - done);
  return Math.max(0, 0.5 * (1 + Math.cos(Math.PI * done)));
}
