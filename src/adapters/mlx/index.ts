export { mlxUpdates } from './convert.ts';
