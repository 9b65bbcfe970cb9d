export { type AdamWConfig, adamw, adamwConfig } from './adamw.ts';
export { clipGradients } from './clip.ts';
export type { Optimizer } from './optimizer.ts';
export { type ScheduleConfig, scheduleConfig, scheduleFactor } from './schedule.ts';
