export { type LogEvent, Session } from './client.ts';
export type { MemoryPlan } from './jobs/index.ts';
