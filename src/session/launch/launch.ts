/** Starts the processes of a run on this machine, and ends with what the run came to. */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { nodeEnvironment } from '../../distributed/index.ts';
import { prepareEngine, processor } from '../../engine/index.ts';
import {
  isParsed,
  parseRecipe,
  type Recipe,
  type RecipeInput,
  type RunOptions,
  type TrainEvent,
  type TrainResult,
  withBatchOf,
} from '../../train/index.ts';
import { split } from '../options.ts';
import type { Abortable } from '../protocol.ts';
import { Running } from '../running.ts';
import { RankProcess } from './rank-process.ts';

/** What is launched. */
export interface LaunchOptions extends Pick<RunOptions, 'fresh' | 'moreEpochs'>, Abortable {
  /** The fields of a recipe file (docs/recipe.md), with rows in memory wherever it names a file, or what `readRecipe` returns. */
  readonly recipe: RecipeInput | Recipe;
  /** How many processes to start on this machine. Default: what Kubeflow Trainer says (PET_NPROC_PER_NODE). */
  readonly ranks?: number | undefined;
  /** How many machines take part, each with a launcher and as many processes. Default: what PET_NNODES says, else 1. */
  readonly nodes?: number | undefined;
  /** Number of this machine, from 0. Default: what PET_NODE_RANK says, else 0. */
  readonly nodeRank?: number | undefined;
  /** Where the processes meet, HOST:PORT: on machine 0, at a free port. Default: what PET_MASTER_ADDR says; on one machine any port. */
  readonly master?: string | undefined;
  /** How often the processes are started again after one of them ended unexpectedly. They go on from the last checkpoint. Default: 0. */
  readonly maxRestarts?: number | undefined;
  /** Seconds that a process waits for the others: to begin, and in each step. Default: 300. */
  readonly timeout?: number | undefined;
  /** Is given a line for each that a process prints. Default: printed on stderr. */
  readonly log?: ((line: string) => void) | undefined;
}

const schema: z.ZodType<Omit<LaunchOptions, 'recipe'>> = z.strictObject({
  signal: z.instanceof(AbortSignal).optional(),
  ranks: z.int().positive().optional(),
  nodes: z.int().positive().optional(),
  nodeRank: z.int().nonnegative().optional(),
  master: z.string().optional(),
  maxRestarts: z.int().nonnegative().optional(),
  timeout: z.int().positive().optional(),
  fresh: z.boolean().optional(),
  moreEpochs: z.number().positive().optional(),
  log: z.custom<(line: string) => void>((value) => typeof value === 'function').optional(),
});

/** Milliseconds for the other processes to end by themselves once one has failed: they find out why, and say so. */
const grace = 10_000;

/** How many ports are tried where nothing says which. */
const portLimit = 5;

/** Kinds of errors that come again however often the processes are started. */
const lasting: ReadonlySet<string> = new Set(['usage', 'input', 'mismatch', 'numeric', 'interrupted']);

/**
 * Trains a recipe with several processes on this machine, as `graft launch` does: each takes a share of every step. Await it for the
 * result, or iterate over the events of the run.
 * @throws GraftError as `Session.train` does; of several failures, the one that led to the others
 */
export function launch({ recipe, ...options }: LaunchOptions): Running<TrainEvent, TrainResult> {
  return new Running(async (tell) => {
    const { args, signal } = split(schema, options as Omit<LaunchOptions, 'recipe'>, 'launch');
    const log = args.log ?? ((line: string) => console.error(line));
    const place = placeOf(args);
    const parsed = isParsed(recipe) ? recipe : parseRecipe(recipe);
    const { cores } = processor();
    if (place.perNode > cores)
      log(
        `note: ${place.perNode} processes on ${cores} cores: they take turns, so a step is no faster than with ${cores}, and each has a model in memory`,
      );
    // Once, and not by every process at the same time.
    await prepareEngine(log);
    const dir = mkdtempSync(join(tmpdir(), 'graft-launch-'));
    try {
      const file = join(dir, 'recipe.json');
      // The processes read it again: the rows of a step are no default then, but what the configuration of DeepSpeed comes to.
      const complete = withBatchOf(parsed, place.nodes * place.perNode);
      // Of several tasks, `data` is that of the first, which the file of a recipe does not repeat.
      const fields = complete.tasks ? { ...complete, data: undefined } : complete;
      writeFileSync(file, JSON.stringify(fields, plainOnly));
      // Other machines have a launcher each, which share no name.
      const run = place.nodes === 1 ? randomUUID() : '';
      let lostPorts = 0;
      for (let attempt = 0; ; attempt++) {
        const again = attempt > 0 ? { fresh: undefined, moreEpochs: undefined } : {};
        const outcome = await runOnce(file, { ...args, ...again }, { ...place, run, attempt }, tell, log, signal);
        if (!(outcome instanceof GraftError)) return outcome;
        // Between the choice of a port and its use another program can take it.
        if (!place.master && isPortBusy(outcome) && ++lostPorts < portLimit) {
          attempt--;
          continue;
        }
        const left = (args.maxRestarts ?? 0) - attempt;
        if (left <= 0 || lasting.has(outcome.kind) || signal?.aborted) throw outcome;
        log(`note: ${outcome.message} The processes are started again (${left} of ${args.maxRestarts} restarts left)`);
      }
    } finally {
      rmSync(dir, { recursive: true, force: true });
    }
  });
}

/** Where the processes of this machine stand. */
interface Place {
  readonly perNode: number;
  readonly nodes: number;
  readonly nodeRank: number;
  /** Undefined: all are on this machine. */
  readonly master: { readonly host: string; readonly port: number } | undefined;
}

/** @throws GraftError 'usage' for numbers that do not fit together */
function placeOf(options: Omit<LaunchOptions, 'recipe'>): Place {
  const environment = nodeEnvironment();
  const nodes = options.nodes ?? environment?.nodes ?? 1;
  const nodeRank = options.nodeRank ?? environment?.nodeRank ?? 0;
  const perNode = options.ranks ?? environment?.perNode;
  const wrong = (problem: string, place: string, hint: string) => new GraftError('usage', problem, { place, hint });
  if (perNode === undefined)
    throw wrong('nothing says how many processes to start', 'launch', 'Give --nproc (in TypeScript: ranks)');
  if (nodeRank >= nodes)
    throw wrong(
      `this is machine ${nodeRank}, but there are ${nodes}`,
      'launch',
      'Number the machines from 0: --node-rank',
    );
  if (options.master === undefined) {
    if (nodes > 1 && !environment?.master)
      throw wrong(
        'several machines need a place to meet',
        'launch',
        'Give --master HOST:PORT with the host of machine 0',
      );
    return { perNode, nodes, nodeRank, master: environment?.master };
  }
  const [, host, port] = /^(.+?)(?::(\d+))?$/.exec(options.master) ?? [];
  if (host === undefined || Number(port ?? 29500) > 65535)
    throw wrong(
      `'${options.master}' is not HOST:PORT`,
      '--master',
      'Give a host name or an address, and a port from 1 to 65535',
    );
  return { perNode, nodes, nodeRank, master: { host, port: Number(port ?? 29500) } };
}

/** @throws GraftError 'usage' for what JSON cannot hold, instead of another value in the recipe of the processes */
function plainOnly(key: string, value: unknown): unknown {
  if (!ArrayBuffer.isView(value) && typeof value !== 'bigint') return value;
  throw new GraftError('usage', 'binary data in memory cannot be given to other processes', {
    place: `recipe, field ${key}`,
    hint: 'Write it to files, and name these in the rows',
  });
}

const freePort = () =>
  new Promise<number>((resolve, reject) => {
    const server = createServer().once('error', reject);
    server.listen(0, () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });

/** Starts every process and waits for all to end. @returns the result, or the failure that led to all others */
async function runOnce(
  file: string,
  { fresh, moreEpochs, timeout }: Omit<LaunchOptions, 'recipe'>,
  { perNode, nodes, nodeRank, master, run, attempt }: Place & { readonly run: string; readonly attempt: number },
  tell: (event: TrainEvent) => void,
  log: (line: string) => void,
  signal: AbortSignal | undefined,
): Promise<TrainResult | GraftError> {
  if (signal?.aborted)
    return new GraftError('interrupted', 'the run was stopped before it began', { cause: signal.reason });
  const more = moreEpochs === undefined ? [] : ['--more-epochs', String(moreEpochs)];
  const args = ['train', file, '--json', ...(fresh ? ['--fresh'] : []), ...more];
  const meeting = master ?? { host: '127.0.0.1', port: await freePort() };
  const processes = Array.from({ length: perNode }, (_, localRank) => {
    const rank = nodeRank * perNode + localRank;
    const setting = {
      rank,
      size: nodes * perNode,
      localRank,
      localSize: perNode,
      master: meeting,
      run,
      attempt,
      timeout,
      args,
    };
    return new RankProcess(setting, tell, log);
  });
  const stop = () => {
    for (const each of processes) each.stop();
  };
  signal?.addEventListener('abort', stop);
  const failures: { process: RankProcess; error: GraftError }[] = [];
  let timer: NodeJS.Timeout | undefined;
  const outcomes = await Promise.all(
    processes.map(async (each) => {
      const outcome = await each.ended;
      if (!(outcome instanceof GraftError)) return outcome;
      if (!each.isKilled) failures.push({ process: each, error: outcome });
      // Where no meeting took place, the others cannot find out why.
      const limit = isPortBusy(outcome) ? 0 : grace;
      timer ??= setTimeout(() => {
        for (const other of processes) other.kill();
      }, limit);
      return undefined;
    }),
  );
  clearTimeout(timer);
  signal?.removeEventListener('abort', stop);
  const error = firstCause(failures.map((failure) => failure.error));
  if (error) {
    if (signal?.aborted && error.kind === 'interrupted') error.cause = signal.reason;
    return error;
  }
  return outcomes[0] ?? new GraftError('engine', 'the processes ended without a result');
}

/** Of several failures the one that led to the others: no place to meet, then one that is not about another process, else the first. */
const firstCause = (errors: readonly GraftError[]): GraftError | undefined =>
  errors.find(isPortBusy) ?? errors.find(({ data }) => data.failedRanks === undefined) ?? errors[0];

const isPortBusy = ({ data }: GraftError) => data.busyPort !== undefined;
