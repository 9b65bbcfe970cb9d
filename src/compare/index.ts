export { type Comparison, type Contestant, compareSchema, readComparison } from './comparison.ts';
export { type Contender, contenders } from './contenders.ts';
export { page } from './page.ts';
export { holm, mcnemarExact, type PairedTest, pairedTests, type Verdict } from './pairs.ts';
export { type Failure, type Outcome, type Results, readResults, writeResults } from './results.ts';
export { type MeasuringSession, type OpenSession, runComparison } from './runner.ts';
export { resultTables, type Table, table } from './tables.ts';
