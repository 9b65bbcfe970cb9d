/** How processes meet: each says who it is, all compare, then they connect. */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { hostname, networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import { ConnectedGroup } from './connected.ts';
import { type JoinedGroup, oneProcess } from './group.ts';
import type { RankPlacement } from './launch-environment.ts';
import { GroupStore, isLoopback, portHint, ranks, seconds } from './store.ts';

/** What a process says of itself when it joins. */
interface Greeting {
  readonly size: number;
  readonly graft: string;
  readonly libtorch: string;
  readonly host: string;
  readonly pid: number;
  readonly address: string;
}

const alone: JoinedGroup = { ...oneProcess, failed: GraftError.of, [Symbol.dispose]() {} };

/** Names of network interfaces, by which a user says where to listen. */
const interfaceVariable = 'GLOO_SOCKET_IFNAME';

/**
 * Meets the other processes and connects to them. Blocks this thread until all are there.
 * @param placement undefined: this process is alone
 * @throws GraftError 'environment' where some do not come within the timeout, by rank; 'mismatch' where they are of other versions
 */
export function joinGroup(placement: RankPlacement | undefined): JoinedGroup {
  if (!placement || placement.size === 1) return alone;
  const { rank, size, timeout } = placement;
  const began = performance.now();
  const left = () => Math.max(0, timeout - (performance.now() - began));
  const store = new GroupStore(placement, timeout);
  const { native } = currentEngine();
  let isMember = false;
  try {
    store.meet(left());
    takeRank(store);
    isMember = true;
    store.set(`greeting/${rank}`, JSON.stringify(greetingOf(placement)));
    const all = greetings(store, left());
    const problem = incompatible(all);
    if (problem) {
      store.tell(problem, undefined);
      throw problem;
    }
    const address = process.env[interfaceVariable] ? null : listeningAddress(all, rank);
    const name = `graft-${store.prefix}-${rank}`;
    let outcome: 'done' | 'alarm' | 'late';
    try {
      outcome = native.groupConnect(store.id, size, address, timeout, store.prefix, name);
    } catch (cause) {
      throw store.diagnose('lost', 0, cause, notConnected(store, cause));
    }
    if (outcome !== 'done')
      throw store.diagnose(outcome === 'late' ? 'lost' : outcome, 0, undefined, notConnected(store));
    return new ConnectedGroup(store, name);
  } catch (error) {
    const known =
      error instanceof GraftError && error.kind !== 'engine' ? error : (store.failure() ?? notConnected(store, error));
    if (isMember) {
      store.tell(known, rank);
      store.leave(known);
    }
    native.groupClose(store.id, false);
    throw known;
  }
}

/** Where nobody says more: every process is there, so the network does not let them connect. */
function notConnected({ placement }: GroupStore, cause?: unknown): GraftError {
  return new GraftError('environment', 'the processes met, but cannot connect to each other', {
    place: `${placement.master.host}:${placement.master.port}`,
    hint: `Check that firewalls let them, and name the network interface in ${interfaceVariable} where there are several`,
    cause,
  });
}

/** @throws GraftError where another process has this rank: that one goes on, as if this one had never come */
function takeRank(store: GroupStore): void {
  const { rank } = store.placement;
  const own = { id: randomUUID(), pid: process.pid, host: hostname() };
  const first = JSON.parse(store.setOnce(`rank/${rank}`, JSON.stringify(own))) as typeof own;
  if (first.id === own.id) return;
  throw new GraftError('usage', `two processes have rank ${rank}: ${at(first)} and ${at(own)}`, {
    hint: `Give every process a rank of its own. Where the first is of another run: ${portHint}`,
  });
}

function greetingOf({ size, master }: RankPlacement): Greeting {
  const { native, torch } = currentEngine();
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as { version: string };
  return {
    size,
    graft: version,
    libtorch: torch.version,
    host: hostname(),
    pid: process.pid,
    address: addressOfInterface() ?? native.addressTowards(master.host, master.port),
  };
}

/** The address of the interface that the user names. @throws GraftError where this machine does not have it */
function addressOfInterface(): string | undefined {
  const all = networkInterfaces();
  const addresses = process.env[interfaceVariable]?.split(',').map((name) => {
    const address = all[name]?.[0]?.address;
    if (address !== undefined) return address;
    throw new GraftError('environment', `${hostname()} has no network interface ${name} with an address`, {
      place: interfaceVariable,
      hint: `Name one of ${Object.keys(all).join(', ')}, or leave the variable out: the interface that leads to rank 0 is taken`,
    });
  });
  return addresses?.[0];
}

/** What every process says of itself, by rank. */
function greetings(store: GroupStore, limit: number): Greeting[] {
  const { size, rank, source } = store.placement;
  const deadline = performance.now() + limit;
  const texts = Array.from({ length: size }, (_, other) =>
    store.awaited(`greeting/${other}`, Math.max(0, deadline - performance.now())),
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

/** Why processes cannot work together; undefined: they can. */
function incompatible(all: readonly Greeting[]): GraftError | undefined {
  const [first] = all as [Greeting];
  for (const [what, field] of [
    ['Graft', 'graft'],
    ['LibTorch', 'libtorch'],
    ['processes in all', 'size'],
  ] as const) {
    const other = all.findIndex((greeting) => greeting[field] !== first[field]);
    if (other < 0) continue;
    return new GraftError(
      'mismatch',
      `rank 0 has ${what} ${first[field]} (${at(first)}), but rank ${other} has ${what} ${all[other]![field]} (${at(all[other]!)})`,
      { hint: field === 'size' ? 'Start all with the same number' : 'Install the same version on every host' },
    );
  }
  return undefined;
}

/**
 * The address at which this process listens: that of the interface that leads to rank 0. On the machine of rank 0 that is one which no other
 * machine reaches, where the host's name means the machine itself there; then that of the interface which leads to another machine.
 */
function listeningAddress(all: readonly Greeting[], rank: number): string {
  const { address } = all[rank]!;
  const elsewhere = all.find((greeting) => !isLoopback(greeting.address));
  if (!isLoopback(address) || !elsewhere) return address;
  try {
    return currentEngine().native.addressTowards(elsewhere.address, 1);
  } catch (cause) {
    throw new GraftError('environment', `rank ${rank} has no network route to ${elsewhere.address}`, {
      place: at(all[rank]!),
      hint: `Name the host of rank 0 by an address of its network (MASTER_ADDR, --master), or set ${interfaceVariable}`,
      cause,
    });
  }
}

const at = ({ host, pid }: Pick<Greeting, 'host' | 'pid'>) => `process ${pid} on ${host}`;
