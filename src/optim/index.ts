export { clipGradients } from './clip.ts';
export type { Optimizer, Placement } from './optimizer.ts';
export { createOptimizer, type OptimizerChoice, optimizerConfig, optimizerSettings, optimizers } from './registry.ts';
export { type ScheduleConfig, scheduleConfig, scheduleFactor } from './schedule.ts';
