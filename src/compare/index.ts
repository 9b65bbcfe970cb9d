export { type Comparison, compareSchema, readComparison } from './comparison.ts';
export { type Contender, contenders } from './contenders.ts';
export { machines, page, table } from './page.ts';
export { type Outcome, type Results, runComparison } from './runner.ts';
