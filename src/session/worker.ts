/** The engine thread: runs one job at a time, except for those that wait for others' turns, and posts what happens. */
import { parentPort } from 'node:worker_threads';
import { fileError, GraftError } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import type { JobContext } from './job-context.ts';
import { besideOthers, jobs } from './jobs/index.ts';
import type { JobReply, JobRequest } from './protocol.ts';
import { inTurn } from './turns.ts';

const port = parentPort!;
const post = (reply: JobReply) => port.postMessage(reply);

port.on('message', (request: JobRequest) => {
  if (besideOthers.has(request.job)) void run(request);
  else void inTurn(() => run(request));
});

async function run({ id, job, args, stop }: JobRequest): Promise<void> {
  const stopRequested = () => Atomics.load(stop, 0) !== 0;
  const context: JobContext<unknown> = {
    emit: (event) => post({ type: 'event', id, event }),
    stopRequested,
    throwIfStopped() {
      if (stopRequested()) throw new GraftError('interrupted', `${job} was stopped`);
    },
  };
  try {
    context.throwIfStopped();
    post({ type: 'started', id });
    await startEngine({ log: (line) => post({ type: 'log', line }) });
    const act = jobs[job] as (args: unknown, context: JobContext<unknown>) => unknown;
    const result = await act(args, context);
    post({ type: 'result', id, result });
  } catch (error) {
    const known = GraftError.of(fileError(error, (error as NodeJS.ErrnoException | null)?.path ?? '', 'used'));
    post({ type: 'error', id, error: known.toJSON() });
  }
}
