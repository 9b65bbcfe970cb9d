/** How processes meet: each says who it is, all compare, then they connect. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import { ConnectedGroup } from './connected.ts';
import { type JoinedGroup, oneProcess } from './group.ts';
import type { RankPlacement } from './launch-environment.ts';
import { GroupStore, ranks, seconds } from './store.ts';

/** What a process says of itself when it joins. */
interface Greeting {
  readonly id: string;
  readonly size: number;
  readonly graft: string;
  readonly libtorch: string;
  readonly host: string;
  readonly pid: number;
  readonly address: string;
}

const isLoopback = (address: string) => address.startsWith('127.') || address === '::1';

const alone: JoinedGroup = { ...oneProcess, failed: GraftError.of, [Symbol.dispose]() {} };

/**
 * Meets the other processes and connects to them. Blocks this thread until all are there.
 * @param placement undefined: this process is alone
 * @throws GraftError 'environment' where some do not come within the timeout, by rank; 'mismatch' where they are of other versions
 */
export function joinGroup(placement: RankPlacement | undefined): JoinedGroup {
  if (!placement || placement.size === 1) return alone;
  const { rank, size, master, timeout, attempt } = placement;
  const began = performance.now();
  const store = new GroupStore(placement, timeout);
  const { native, torch } = currentEngine();
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string };
  const greeting: Greeting = {
    id: randomUUID(),
    size,
    graft: version,
    libtorch: torch.version,
    host: hostname(),
    pid: process.pid,
    address: native.addressTowards(master.host, master.port),
  };
  try {
    store.set(`greeting/${rank}`, JSON.stringify(greeting));
    const all = greetings(store, timeout - (performance.now() - began));
    compare(all, rank, greeting);
    // Gloo listens at the address of the interface that leads to rank 0, unless the user names another interface.
    const address = process.env.GLOO_SOCKET_IFNAME ? null : greeting.address;
    const name = `graft-${attempt}-${rank}-${greeting.id}`;
    native.groupConnect(store.id, size, address, timeout, name);
    return new ConnectedGroup(store, name);
  } catch (error) {
    const known =
      error instanceof GraftError && error.kind !== 'engine'
        ? error
        : new GraftError('environment', 'the processes met, but cannot connect to each other', {
            place: `${master.host}:${master.port}`,
            hint: 'Check that firewalls let them, and name the network interface in GLOO_SOCKET_IFNAME where there are several',
            cause: error,
          });
    store.tell(known);
    store.leave();
    native.groupClose(store.id, true);
    throw known;
  }
}

/** What every process says of itself, by rank. */
function greetings(store: GroupStore, limit: number): Greeting[] {
  const { size, rank, source } = store.placement;
  const deadline = performance.now() + limit;
  const texts = Array.from({ length: size }, (_, other) =>
    store.get(`greeting/${other}`, Math.max(0, deadline - performance.now())),
  );
  const missing = texts.flatMap((text, other) => (text === undefined ? [other] : []));
  if (missing.length > 0)
    throw new GraftError(
      'environment',
      `${ranks(missing)} of ${size} did not start within ${seconds(store.placement.timeout)}`,
      { hint: `This is rank ${rank}, as ${source} says. Start every process, or raise the timeout` },
    );
  return texts.map((text) => JSON.parse(text!) as Greeting);
}

/** @throws GraftError for processes that cannot work together */
function compare(all: readonly Greeting[], rank: number, own: Greeting): void {
  const same = all[rank]!;
  if (same.id !== own.id)
    throw new GraftError('usage', `two processes have rank ${rank}: ${at(same)} and ${at(own)}`, {
      hint: 'Give every process a rank of its own',
    });
  const [first] = all as [Greeting];
  for (const [what, field] of [
    ['Graft', 'graft'],
    ['LibTorch', 'libtorch'],
    ['processes in all', 'size'],
  ] as const) {
    const other = all.findIndex((greeting) => greeting[field] !== first[field]);
    if (other < 0) continue;
    throw new GraftError(
      'mismatch',
      `rank 0 has ${what} ${first[field]} (${at(first)}), but rank ${other} has ${what} ${all[other]![field]} (${at(all[other]!)})`,
      { hint: field === 'size' ? 'Start all with the same number' : 'Install the same version on every host' },
    );
  }
  const hidden = all.findIndex(({ address }) => isLoopback(address));
  if (hidden >= 0 && all.some(({ address }) => !isLoopback(address)))
    throw new GraftError(
      'environment',
      `rank ${hidden} would listen at ${all[hidden]!.address}, which other hosts cannot reach`,
      {
        place: at(all[hidden]!),
        hint: 'Name the host of rank 0 by an address of its network (MASTER_ADDR, --master), or set GLOO_SOCKET_IFNAME',
      },
    );
}

const at = ({ host, pid }: Greeting) => `process ${pid} on ${host}`;
