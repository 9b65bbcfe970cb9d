export { isMlx, mlxUpdates } from './updates.ts';
