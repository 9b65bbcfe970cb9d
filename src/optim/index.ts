export { clipGradients } from './clip.ts';
export type { Optimizer, Placement } from './optimizer.ts';
export { createOptimizer, type OptimizerChoice, optimizerConfig, optimizers } from './registry.ts';
export { type ScheduleConfig, scheduleConfig, scheduleFactor } from './schedule.ts';
