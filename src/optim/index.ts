export { clipGradients, gradientNorm, normOfGradients, scaleGradients } from './clip.ts';
export type { BackwardUpdates, Optimizer, Placement } from './optimizer.ts';
export {
  createOptimizer,
  isDivisible,
  isInBackward,
  type OptimizerChoice,
  optimizerConfig,
  optimizerSettings,
  optimizers,
} from './registry.ts';
export { type ScheduleConfig, scheduleConfig, scheduleFactor } from './schedule.ts';
