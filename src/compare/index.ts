export { type Comparison, compareSchema, readComparison } from './comparison.ts';
export { type Contender, contenders } from './contenders.ts';
export { page } from './page.ts';
export { holm, mcnemarExact, type PairedTest, pairedTests, type Verdict } from './pairs.ts';
export { type Outcome, type Results, runComparison } from './runner.ts';
export { resultTables, type Table, table } from './tables.ts';
