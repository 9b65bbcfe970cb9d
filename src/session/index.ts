export { type LogEvent, Session } from './session.ts';
