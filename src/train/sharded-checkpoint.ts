/** Checkpoints of several processes that each write what they keep: a safetensors file of each, and an index as large models have. */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import type { Group } from '../distributed/index.ts';
import { writeSafetensors } from '../io/index.ts';
import type { Tensor } from '../tensor/index.ts';
import { type RunState, writeCheckpoint } from './checkpoints.ts';

/** What a process keeps, by the names of a checkpoint. Of a name that several have, the first writes it. */
export type Shares = Readonly<Record<'parameters' | 'optimizer', ReadonlyMap<string, Tensor>>>;

const digits = (number: number) => String(number).padStart(5, '0');

/**
 * Writes `dir/step-…` aside, and renames it when every process has written its share. Every process has to call this, and has the directory.
 * @returns its path, on rank 0
 * @throws GraftError 'environment' where this process does not see the directory
 */
export function saveShares(group: Group, dir: string, state: RunState, shares: Shares, keep: number): string {
  if (group.rank > 0) {
    writeShares(group, undefined, shares);
    return '';
  }
  return writeCheckpoint(dir, state, keep, (work) => writeShares(group, work, shares));
}

/** @param folder on rank 0 */
function writeShares(group: Group, folder: string | undefined, shares: Shares): void {
  const work = group.share(() => folder!);
  if (!existsSync(work))
    throw new GraftError(
      'environment',
      'the run directory of rank 0 is not here, and each process writes its share there',
      {
        place: work,
        hint: 'Set run.dir to a folder that all machines share, or train.zero.stage: 2',
      },
    );
  for (const part of ['parameters', 'optimizer'] as const) {
    const fileOf = (rank: number) => `${part}-${digits(rank + 1)}-of-${digits(group.size)}.safetensors`;
    const writers = new Map<string, number>();
    for (const [rank, names] of group.collect([...shares[part].keys()]).entries())
      for (const name of names) if (!writers.has(name)) writers.set(name, rank);
    const own = [...shares[part]].filter(([name]) => writers.get(name) === group.rank);
    const tensors = own.map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() }));
    if (tensors.length > 0) writeSafetensors(join(work, fileOf(group.rank)), tensors);
    if (group.rank > 0) continue;
    const map = Object.fromEntries(Array.from(writers, ([name, rank]) => [name, fileOf(rank)]));
    writeFileSync(join(work, `${part}.safetensors.index.json`), JSON.stringify({ weight_map: map }, null, 1));
  }
  group.barrier();
}
