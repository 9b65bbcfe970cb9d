/** One process of a launched run: `graft train` with the variables that say which rank it is. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type ErrorJson, fromWire, GraftError, packageRoot } from '../../base/index.ts';
import { runVariable } from '../../distributed/index.ts';
import type { TrainEvent, TrainResult } from '../../train/index.ts';

/** What a process is started with. */
export interface RankSetting {
  readonly rank: number;
  readonly size: number;
  readonly localRank: number;
  readonly localSize: number;
  readonly master: { readonly host: string; readonly port: number };
  /** Name of the run, where this launcher starts all of its processes; otherwise ''. */
  readonly run: string;
  readonly attempt: number;
  /** Seconds that it waits for the others. */
  readonly timeout: number | undefined;
  /** Arguments of `graft`. */
  readonly args: readonly string[];
}

/** The variable that holds the launcher's process id. */
export const launcherVariable = 'GRAFT_LAUNCHER';

/** Variables of launchers that may have started this one: a process has one place only. */
const ofLaunchers = /^(TORCHELASTIC_|PET_|OMPI_|GROUP_|ROLE_)|^(LOCAL_SIZE|CROSS_RANK|CROSS_SIZE)$/;

/** A process of a run. `ended` is its result or its error; it never rejects. */
export class RankProcess {
  readonly rank: number;
  readonly ended: Promise<TrainResult | GraftError | undefined>;
  readonly #child: ChildProcess;
  #isKilled = false;

  constructor(
    { rank, size, localRank, localSize, master, run, attempt, timeout, args }: RankSetting,
    onEvent: (event: TrainEvent) => void,
    log: (line: string) => void,
  ) {
    this.rank = rank;
    const inherited = Object.entries(process.env).filter(([name]) => !ofLaunchers.test(name));
    this.#child = spawn(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        ...Object.fromEntries(inherited),
        RANK: String(rank),
        WORLD_SIZE: String(size),
        LOCAL_RANK: String(localRank),
        LOCAL_WORLD_SIZE: String(localSize),
        MASTER_ADDR: master.host,
        MASTER_PORT: String(master.port),
        [runVariable]: run,
        TORCHELASTIC_RESTART_COUNT: String(attempt),
        [launcherVariable]: String(process.pid),
        ...(timeout !== undefined && { GRAFT_TIMEOUT: String(timeout) }),
      },
    });
    let last: Record<string, unknown> | undefined;
    let lastLine = '';
    createInterface(this.#child.stdout!).on('line', (line) => {
      if (!line.startsWith('{')) return log(`[rank ${rank}] ${line}`);
      const document = fromWire(JSON.parse(line)) as Record<string, unknown>;
      if ('type' in document) onEvent(document as TrainEvent);
      else last = document;
    });
    createInterface(this.#child.stderr!).on('line', (line) => {
      lastLine = line || lastLine;
      // The error of a process is part of its output, and told once all have ended.
      if (!line.startsWith('graft: ')) log(`[rank ${rank}] ${line}`);
    });
    this.ended = new Promise((resolve) => {
      this.#child.on('error', (cause) =>
        resolve(new GraftError('environment', `rank ${rank} could not be started: ${cause.message}`, { cause })),
      );
      this.#child.on('close', (code, signal) => {
        if (code === 0) resolve(last as unknown as TrainResult | undefined);
        else if (last?.error) resolve(GraftError.from(last.error as ErrorJson));
        else resolve(this.#crashed(code, signal, lastLine));
      });
    });
  }

  /** Whether this launcher ended it. */
  get isKilled(): boolean {
    return this.#isKilled;
  }

  /** Asks it to stop after its step. */
  stop(): void {
    this.#child.kill('SIGTERM');
  }

  kill(): void {
    this.#isKilled = true;
    this.#child.kill('SIGKILL');
  }

  #crashed(code: number | null, signal: NodeJS.Signals | null, lastLine: string): GraftError {
    const data = { rank: this.rank, code, signal };
    if (signal)
      return new GraftError('state', `rank ${this.rank} was ended by ${signal}`, {
        hint: `${signal === 'SIGKILL' ? 'The system does so when memory runs out. ' : ''}Run the same command again to resume from the last checkpoint`,
        data,
      });
    const line = lastLine ? `: ${lastLine.replace(/^graft: /, '')}` : '';
    return new GraftError('engine', `rank ${this.rank} ended with exit code ${code}${line}`, { data });
  }
}
