export type { MemoryPlan } from './doctor.ts';
export { type LogEvent, Session } from './session.ts';
