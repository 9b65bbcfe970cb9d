export { type ClassCount, classCounts, classNotes } from './class-counts.ts';
export { imageTools } from './image-rows.ts';
export { tokensOf } from './input.ts';
export { labelOf, labelsIn } from './labels.ts';
export { batchesOf, type EvalResult, type MeasureOptions, measure, type OnBatch, predict } from './measure.ts';
export { type Metric, wilson } from './metrics.ts';
export { taskOf, tasks } from './registry.ts';
export type { Confusion, Task, TaskMetrics, TaskOptions } from './task.ts';
export { type TaskRowOptions, taskRows } from './task-rows.ts';
