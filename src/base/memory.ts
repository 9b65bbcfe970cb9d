import { readFileSync } from 'node:fs';
import { totalmem } from 'node:os';

/**
 * Returns how many bytes this process can still allocate: the memory that the system reports as available (free, and cache
 * that can be dropped), within the limit of its container.
 */
export function freeMemory(): number {
  const available = process.availableMemory();
  const limit = process.constrainedMemory();
  // Under a limit, Node counts the cache of files that were read as taken.
  return limit > 0 && limit < totalmem() ? Math.min(limit, available + cacheOfContainer()) : available;
}

/** Bytes of files that this process's control group has in the system's cache, in either version of Linux's control groups. */
function cacheOfContainer(): number {
  try {
    const groups = readFileSync('/proc/self/cgroup', 'utf8');
    const [first, second] = [/^\d+:memory:(.*)$/m.exec(groups), /^0::(.*)$/m.exec(groups)];
    const dir = first ? `/sys/fs/cgroup/memory${first[1]}` : `/sys/fs/cgroup${second![1]}`;
    const stat = readFileSync(`${dir}/memory.stat`, 'utf8');
    const bytesOf = (name: string) =>
      Number(new RegExp(`^${first ? 'total_' : ''}${name} (\\d+)$`, 'm').exec(stat)![1]);
    return bytesOf('active_file') + bytesOf('inactive_file');
  } catch {
    return 0;
  }
}
