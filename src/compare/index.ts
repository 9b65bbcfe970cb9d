export { type Comparison, compareSchema, contenders, readComparison } from './comparison.ts';
export { page, table } from './page.ts';
export { type Outcome, type Results, runComparison } from './run.ts';
