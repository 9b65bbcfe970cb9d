export { type Arrival, arrivals, type LoadShape } from './plan.ts';
export { type LoadResult, type LoadTarget, modelsOf, runLoad } from './run.ts';
export { type LoadSummary, type Percentiles, summarize } from './summary.ts';
