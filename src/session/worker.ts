/** The engine thread: runs one job at a time and posts what happens. */
import { parentPort, workerData } from 'node:worker_threads';
import { fileError, GraftError } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import { jobs } from './jobs/index.ts';

export interface JobRequest {
  readonly id: number;
  readonly job: keyof typeof jobs;
  readonly args: unknown;
}

const port = parentPort!;
const { stop } = workerData as { stop: Int32Array };
let queue: Promise<void> = Promise.resolve();

port.on('message', ({ id, job, args }: JobRequest) => {
  queue = queue.then(async () => {
    try {
      await startEngine({ log: (line) => port.postMessage({ id, event: { type: 'log', line } }) });
      const stopNow = () => Atomics.load(stop, 0) === id + 1;
      const run = jobs[job] as (args: unknown, emit: (event: unknown) => void, stopNow: () => boolean) => unknown;
      const result = await run(args, (event) => port.postMessage({ id, event }), stopNow);
      port.postMessage({ id, result });
    } catch (error) {
      const known = GraftError.of(fileError(error, (error as NodeJS.ErrnoException | null)?.path ?? '', 'used'));
      port.postMessage({ id, error: known.toJSON() });
    }
  });
});
