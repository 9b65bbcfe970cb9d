/** The engine thread: runs one job at a time, except for those that wait for others' turns, and posts what happens. */
import { parentPort } from 'node:worker_threads';
import { fileError, GraftError } from '../base/index.ts';
import { deviceOf, startEngine } from '../engine/index.ts';
import { useDevice } from '../tensor/index.ts';
import type { JobContext } from './job-context.ts';
import { besideOthers, jobs } from './jobs/index.ts';
import type { JobReply, JobRequest } from './protocol.ts';
import { residentDevice } from './resident.ts';
import { inTurn } from './turns.ts';

const port = parentPort!;
const post = (reply: JobReply) => port.postMessage(reply);

port.on('message', (request: JobRequest) => {
  if (besideOthers.has(request.job)) void run(request);
  else void inTurn(() => run(request));
});

/** The device that a job works on: that of its model, or what its arguments name. What is written is computed on the processor. */
function deviceNamed(args: unknown): string {
  const { modelId, device } = args as { modelId?: number; device?: string };
  return (modelId === undefined ? device : residentDevice(modelId)) ?? 'cpu';
}

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
    const device = deviceNamed(args);
    await startEngine({ log: (line) => post({ type: 'log', line }), cuda: device !== 'cpu' });
    // Jobs beside others wait for their turns, which set the device of their model.
    using _ = besideOthers.has(job) ? undefined : useDevice(deviceOf(device));
    const act = jobs[job] as (args: unknown, context: JobContext<unknown>) => unknown;
    const result = await act(args, context);
    post({ type: 'result', id, result });
  } catch (error) {
    const known = GraftError.of(fileError(error, (error as NodeJS.ErrnoException | null)?.path ?? '', 'used'));
    post({ type: 'error', id, error: known.toJSON() });
  }
}
