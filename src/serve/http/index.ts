export { httpApp } from './app.ts';
export { sendEvents } from './sse.ts';
