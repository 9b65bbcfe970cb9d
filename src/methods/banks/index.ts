export { Banks, type MixedAdapter } from './banks.ts';
export type { FactorType } from './linear-entry.ts';
