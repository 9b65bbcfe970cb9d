/** The engine thread: runs one job at a time and posts what happens. */
import { parentPort } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import { jobs } from './jobs.ts';

export interface JobRequest {
  readonly id: number;
  readonly job: keyof typeof jobs;
  readonly args: unknown;
}

const port = parentPort!;
let queue: Promise<void> = Promise.resolve();

port.on('message', ({ id, job, args }: JobRequest) => {
  queue = queue.then(async () => {
    try {
      await startEngine({ log: (line) => port.postMessage({ id, event: { type: 'log', line } }) });
      const run = jobs[job] as (args: unknown, emit: (event: unknown) => void) => unknown;
      const result = await run(args, (event) => port.postMessage({ id, event }));
      port.postMessage({ id, result });
    } catch (error) {
      const json =
        error instanceof GraftError
          ? error.toJSON()
          : { kind: 'engine', message: (error as Error).message, data: { stack: (error as Error).stack } };
      port.postMessage({ id, error: json });
    }
  });
});
