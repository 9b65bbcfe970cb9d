/** Runs groups of real processes on this machine: test/samples/rank.ts, once for each rank. */
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { type ErrorJson, packageRoot } from '../../src/base/index.ts';

/** What a process printed: a value, or an error with the seconds after which it came; nothing where it was killed. */
export interface Outcome {
  readonly value?: Record<string, unknown>;
  readonly error?: ErrorJson;
  readonly seconds?: number;
  readonly signal: NodeJS.Signals | null;
}

export interface Setting {
  readonly size: number;
  readonly timeout?: number;
  readonly port?: number;
  /** Folder of the package that a rank runs; variables that are different for it. */
  readonly roots?: Readonly<Record<number, string>>;
  readonly env?: Readonly<Record<number, NodeJS.ProcessEnv>>;
  /** Ranks that are not started. */
  readonly absent?: readonly number[];
  /** A rank that is started once another has ended. */
  readonly last?: number;
}

export const freePort = () =>
  new Promise<number>((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });

/** The variables by which a process on this machine knows its place, but for the port. @param timeout seconds */
export const rankVariables = (rank: number, size: number, timeout: number) => ({
  RANK: String(rank),
  WORLD_SIZE: String(size),
  LOCAL_RANK: String(rank),
  LOCAL_WORLD_SIZE: String(size),
  MASTER_ADDR: '127.0.0.1',
  GRAFT_TIMEOUT: String(timeout),
});

/** Runs `action` of test/samples/rank.ts in several processes. A process that stops itself is killed once the others have ended. */
export async function runRanks(action: string, failing: number, setting: Setting): Promise<Outcome[]> {
  const { size, timeout = 60, port = await freePort(), roots = {}, env = {}, absent = [], last } = setting;
  const ranks = Array.from({ length: size }, (_, rank) => rank).filter((rank) => !absent.includes(rank));
  const outcomes: Outcome[] = [];
  let left = ranks.length;
  let oneEnded = () => {};
  const afterOne = new Promise<void>((resolve) => {
    oneEnded = resolve;
  });
  await Promise.all(
    ranks.map(async (rank, i) => {
      if (rank === last) await afterOne;
      const file = join(roots[rank] ?? packageRoot, 'test', 'samples', 'rank.ts');
      const child = spawn(process.execPath, [file, action, String(failing)], {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: {
          ...process.env,
          ...rankVariables(rank, size, timeout),
          MASTER_PORT: String(port),
          ...env[rank],
        },
      });
      let text = '';
      child.stdout.on('data', (chunk: Buffer) => {
        text += chunk;
      });
      await new Promise<void>((resolve) => {
        const stopped = action === 'stop' && rank === failing;
        const poll = setInterval(() => stopped && left === 1 && child.kill('SIGKILL'), 100);
        child.on('close', (_code, signal) => {
          clearInterval(poll);
          left--;
          oneEnded();
          outcomes[i] = { ...(text && (JSON.parse(text) as object)), signal };
          resolve();
        });
      });
    }),
  );
  return outcomes;
}
