/** Two machines on this one: network namespaces with addresses and names of their own, joined by two cables. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { GraftError, packageRoot } from '../src/base/index.ts';
import type { TrainEvent } from '../src/train/index.ts';

/** Where `ip netns exec` finds the /etc/hosts of a namespace. */
const ownEtc = '/etc/netns';

function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8' });
  if (status === 0) return;
  throw new GraftError('environment', `ip ${args.join(' ')}: ${error?.message ?? stderr.trim()}`, {
    hint: 'This proof makes network namespaces: run it on Linux as root, with iproute2',
  });
}

/** A command that runs, and what came of it. */
export interface Run {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
}

export interface Ended {
  readonly code: number | null;
  readonly seconds: number;
  /** The last line of JSON. */
  readonly document: Record<string, unknown>;
  /** What it said was wrong. */
  readonly sentences: readonly string[];
  readonly stderr: string;
}

/** Runs a command that prints events and a document as JSON lines, as `graft … --json` does. */
export function run(
  command: string,
  args: readonly string[],
  { env = {}, onEvent }: { env?: NodeJS.ProcessEnv; onEvent?: (event: TrainEvent) => void } = {},
): Run {
  const start = performance.now();
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  let document: Record<string, unknown> = {};
  const errors: string[] = [];
  createInterface(child.stdout).on('line', (line) => {
    // mpirun and torchrun pass on what their processes print, which may be anything.
    const from = line.indexOf('{');
    if (from < 0) return;
    const read = JSON.parse(line.slice(from)) as Record<string, unknown>;
    if ('type' in read) onEvent?.(read as unknown as TrainEvent);
    else document = read;
  });
  createInterface(child.stderr).on('line', (line) => errors.push(line));
  const ended = new Promise<Ended>((resolve) => {
    child.on('error', (error) => errors.push(String(error)));
    child.on('close', (code) => {
      const sentences = errors.filter((line) => line.startsWith('graft: ')).map((line) => line.slice(7));
      const seconds = (performance.now() - start) / 1e3;
      resolve({ code, seconds, document, sentences, stderr: errors.join('\n') });
    });
  });
  return { child, ended };
}

/** One of the two machines. */
export class Host {
  readonly namespace: string;
  /** Its addresses, one for each cable. */
  readonly addresses: readonly [string, string];

  /** @param number 0 or 1 */
  constructor(number: number) {
    this.namespace = `graft-${process.pid}-${number}`;
    this.addresses = [`10.77.0.${number + 1}`, `10.78.0.${number + 1}`];
  }

  /** Says what names mean on this machine. */
  names(entries: Readonly<Record<string, string>>): void {
    const lines = Object.entries({ localhost: '127.0.0.1', ...entries }).map(
      ([name, address]) => `${address} ${name}\n`,
    );
    mkdirSync(join(ownEtc, this.namespace), { recursive: true });
    writeFileSync(join(ownEtc, this.namespace, 'hosts'), lines.join(''));
  }

  /** Plugs a cable out or in. */
  plug(state: 'up' | 'down', cable = 0): void {
    ip('-n', this.namespace, 'link', 'set', `eth${cable}`, state);
  }

  /** Bytes that it has sent through a cable. */
  sent(cable: number): number {
    const table = spawnSync('ip', ['netns', 'exec', this.namespace, 'cat', '/proc/net/dev'], {
      encoding: 'utf8',
    }).stdout;
    const line = table.split('\n').find((each) => each.trim().startsWith(`eth${cable}:`));
    return Number(line?.split(':')[1]?.trim().split(/\s+/)[8]);
  }

  /** Runs `graft …` on this machine. @param root the folder of the package there */
  graft(args: readonly string[], more: Parameters<typeof run>[2] & { root?: string } = {}): Run {
    const command = [process.execPath, join(more.root ?? packageRoot, 'bin', 'graft.js'), ...args];
    return run('ip', ['netns', 'exec', this.namespace, ...command], more);
  }
}

/** Makes the two machines; they are removed at the end of the block. */
export function twoHosts(): { readonly hosts: readonly [Host, Host] } & Disposable {
  const hosts = [new Host(0), new Host(1)] as const;
  const remove = () => {
    for (const { namespace } of hosts) {
      spawnSync('ip', ['netns', 'del', namespace]);
      rmSync(join(ownEtc, namespace), { recursive: true, force: true });
    }
  };
  try {
    for (const host of hosts) {
      ip('netns', 'add', host.namespace);
      ip('-n', host.namespace, 'link', 'set', 'lo', 'up');
    }
    for (const cable of [0, 1]) {
      const [one, other] = hosts.map(({ namespace }) => ['name', `eth${cable}`, 'netns', namespace]);
      ip('link', 'add', ...one!, 'type', 'veth', 'peer', ...other!);
      for (const host of hosts) {
        ip('-n', host.namespace, 'address', 'add', `${host.addresses[cable]}/24`, 'dev', `eth${cable}`);
        host.plug('up', cable);
      }
    }
  } catch (error) {
    remove();
    throw error;
  }
  process.on('exit', remove);
  return { hosts, [Symbol.dispose]: remove };
}
