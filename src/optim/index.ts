export { clipGradients } from './clip.ts';
export type { BackwardUpdates, Optimizer } from './optimizer.ts';
export { createOptimizer, isInBackward, type OptimizerChoice, optimizerConfig, optimizers } from './registry.ts';
export { type ScheduleConfig, scheduleConfig, scheduleFactor } from './schedule.ts';
