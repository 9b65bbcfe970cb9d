export { Banks, type MixedAdapter } from './banks.ts';
export type { FactorType } from './takeover.ts';
