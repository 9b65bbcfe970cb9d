/** Processes under a hard limit of memory, which counts the pages of files that they read too: a control group of Linux. */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { GraftError, packageRoot } from '../src/base/index.ts';

/** Files of a control group, in the first and in the second version of them. */
const versions = [
  {
    root: '/sys/fs/cgroup/memory',
    limits: ['memory.limit_in_bytes', 'memory.memsw.limit_in_bytes'],
    ofProcesses: /^total_rss (\d+)$/m,
    reached: (dir: string) => Number(readFileSync(join(dir, 'memory.failcnt'), 'utf8')),
    max: 'memory.max_usage_in_bytes',
  },
  {
    root: '/sys/fs/cgroup',
    limits: ['memory.max'],
    ofProcesses: /^anon (\d+)$/m,
    reached: (dir: string) => Number(/^max (\d+)$/m.exec(readFileSync(join(dir, 'memory.events'), 'utf8'))?.[1]),
    max: 'memory.peak',
  },
] as const;

/** How a program ended under a limit. */
export interface Limited {
  /** Of its exit; null: the system ended it. */
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Most memory at a time in MiB: with pages of files, and of the process itself (looked at ten times a second). */
  readonly peakMb: number;
  readonly ownPeakMb: number;
  /** How often the limit made the system free pages. */
  readonly reached: number;
}

let groups = 0;

/**
 * Runs a program under a limit.
 * @throws GraftError 'environment' where this user may not limit memory
 */
export async function limited(
  bytes: number,
  command: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Promise<Limited> {
  const version = versions.find(({ root, max }) => existsSync(join(root, 'cgroup.procs')) && (max !== 'memory.peak' || hasMemory(root)));
  if (!version) throw new GraftError('environment', 'this system has no control groups that limit memory', { hint: 'Run it on Linux, as root' });
  const dir = join(version.root, `graft-offload-${process.pid}-${groups++}`);
  try {
    mkdirSync(dir);
    const [limit, withSwap] = version.limits;
    writeFileSync(join(dir, limit), String(bytes));
    const swap = version.max === 'memory.peak' ? 'memory.swap.max' : withSwap!;
    if (existsSync(join(dir, swap))) writeFileSync(join(dir, swap), version.max === 'memory.peak' ? '0' : String(bytes));
  } catch (cause) {
    throw new GraftError('environment', 'a control group could not be made', { place: dir, hint: 'Run it as root', cause });
  }
  // The shell enters the group, and then becomes the program.
  const child = spawn('sh', ['-c', 'echo $$ > "$0/cgroup.procs"; exec "$@"', dir, ...command], {
    cwd: packageRoot,
    env: { ...process.env, ...env },
  });
  let [stdout, stderr, ownPeak] = ['', '', 0];
  child.stdout.on('data', (text) => {
    stdout += text;
  });
  child.stderr.on('data', (text) => {
    stderr += text;
  });
  const watch = setInterval(() => {
    const own = version.ofProcesses.exec(readFileSync(join(dir, 'memory.stat'), 'utf8'))?.[1];
    ownPeak = Math.max(ownPeak, Number(own));
  }, 100);
  const status = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject).on('close', resolve);
  });
  clearInterval(watch);
  const mebibytes = (size: number) => Math.round(size / 2 ** 20);
  const peakMb = mebibytes(Number(readFileSync(join(dir, version.max), 'utf8')));
  const reached = version.reached(dir);
  for (let tries = 0; ; tries++) {
    try {
      rmdirSync(dir);
      break;
    } catch (error) {
      if (tries === 50) throw error;
      await sleep(100); // the group is in use until its last process is gone
    }
  }
  return { status, stdout, stderr, peakMb, ownPeakMb: mebibytes(ownPeak), reached };
}

const hasMemory = (root: string) =>
  existsSync(join(root, 'cgroup.subtree_control')) &&
  readFileSync(join(root, 'cgroup.subtree_control'), 'utf8').includes('memory');
