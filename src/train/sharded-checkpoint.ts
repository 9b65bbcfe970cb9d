/** Checkpoints of several processes that each write what they keep: a safetensors file of each, and an index as large models have. */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { dealt, type Group } from '../distributed/index.ts';
import { writeSafetensors } from '../io/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { type RunState, writeCheckpoint } from './checkpoints.ts';
import type { PartOfParameter, Sharding } from './sharding.ts';
import { placeOf } from './shared-state.ts';

/** What a process keeps, by the names of a checkpoint. Of a whole tensor that several have, the first writes it. */
type Shares = Readonly<Record<'parameters' | 'optimizer', ReadonlyMap<string, Tensor>>>;

const digits = (number: number) => String(number).padStart(5, '0');

/**
 * Writes `dir/step-…` aside, and renames it when every process has written its share. Every process has to call this, and has the directory.
 * @returns its path, on rank 0
 * @throws GraftError 'environment' where this process does not see the directory
 */
export function saveShares(
  sharding: Sharding,
  dir: string,
  state: RunState,
  optimizer: ReadonlyMap<string, Tensor>,
  keep: number,
): string {
  const shares = { parameters: sharding.owned, optimizer };
  if (sharding.group.rank > 0) {
    writeShares(sharding, undefined, shares);
    return '';
  }
  return writeCheckpoint(dir, state, keep, (work) => writeShares(sharding, work, shares));
}

/** @param folder on rank 0 */
function writeShares({ group, parts }: Sharding, folder: string | undefined, shares: Shares): void {
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
    const whole = new WholeTensors(group, shares[part], parts);
    const tensors = whole.written.map(([name, shape]) => {
      const { dtype } = shares[part].get(name)!;
      return { name, dtype, shape, bytes: () => whole.bytes(name) };
    });
    if (tensors.length > 0) writeSafetensors(join(work, fileOf(group.rank)), tensors);
    whole.finish();
    if (group.rank > 0) continue;
    const map = Object.fromEntries(Array.from(whole.writers, ([name, rank]) => [name, fileOf(rank)]));
    writeFileSync(join(work, `${part}.safetensors.index.json`), JSON.stringify({ weight_map: map }, null, 1));
  }
  group.barrier();
}

/** Tensors that each process writes some of, and that processes put together where several have parts. */
class WholeTensors {
  readonly #group: Group;
  readonly #kept: ReadonlyMap<string, Tensor>;
  /** Of each tensor, the bytes that each process has; of whole ones those of the process that writes it. */
  readonly #holders = new Map<string, number[]>();
  /** The process that writes each tensor. */
  readonly writers = new Map<string, number>();
  /** The names and shapes of those that this process writes. */
  readonly written: (readonly [name: string, shape: readonly number[]])[];
  #areAllWritten = false;

  /** Every process has to call this, and `finish` once it has written its tensors. */
  constructor(group: Group, kept: ReadonlyMap<string, Tensor>, parts: ReadonlyMap<string, PartOfParameter>) {
    this.#group = group;
    this.#kept = kept;
    const shapeOf = (name: string, tensor: Tensor) => placeOf(parts, name, tensor).shape;
    const divided = new Map<string, number[]>();
    const own = Array.from(kept, ([name, tensor]) => {
      const whole = shapeOf(name, tensor).reduce((a, b) => a * b, 1);
      return { name, bytes: tensor.nbytes, whole: (tensor.nbytes / tensor.numel) * whole };
    });
    const sizes: number[] = [];
    for (const [rank, list] of group.collect(own).entries())
      for (const { name, bytes, whole } of list) {
        if (bytes === whole) {
          if (this.writers.has(name)) continue;
          this.writers.set(name, rank);
          this.#holders.set(name, [...Array(rank).fill(0), bytes]);
          continue;
        }
        const holders = divided.get(name) ?? [];
        if (holders.length === 0) sizes.push(whole);
        divided.set(name, holders);
        holders[rank] = bytes;
      }
    // A process writes only what it has a part of: so it knows the type.
    const writers = dealt(sizes, group.size);
    for (const [i, [name, holders]] of [...divided].entries()) {
      const ranks = [...holders.keys()].filter((rank) => holders[rank]);
      this.#holders.set(name, holders);
      this.writers.set(name, ranks.includes(writers[i]!) ? writers[i]! : ranks[i % ranks.length]!);
    }
    this.written = [...kept].flatMap(([name, tensor]) =>
      this.writers.get(name) === group.rank ? [[name, shapeOf(name, tensor)] as const] : [],
    );
  }

  /** Returns the bytes of a tensor that this process writes. */
  bytes(name: string): Uint8Array {
    const has = this.#holders.get(name)!.filter((bytes) => bytes > 0).length;
    return has === 1 ? this.#kept.get(name)!.bytes() : this.#put(name);
  }

  /** Gives the other processes the parts that they still ask for. */
  finish(): void {
    while (!this.#areAllWritten) this.#put('');
  }

  /** Every process says which tensor it writes next, and gets its parts. @param wanted empty: none */
  #put(wanted: string): Uint8Array {
    using _ = scope();
    const all = this.#group.collect(wanted);
    this.#areAllWritten = all.every((name) => name === '');
    if (this.#areAllWritten) return new Uint8Array();
    const ranks = [...all.keys()];
    const parts = all.map((name) => this.#kept.get(name));
    const asBytes = (tensor: Tensor) => ops.viewAs(ops.reshape(tensor, [tensor.numel]), 'uint8');
    return noGrad(() => {
      const sent = parts.flatMap((tensor) => (tensor ? [asBytes(tensor)] : []));
      const holders = this.#holders.get(wanted);
      return this.#group
        .exchange(
          sent.length > 0 ? ops.cat(sent) : Tensor.empty([0], 'uint8'),
          parts.map((tensor) => tensor?.nbytes ?? 0),
          ranks.map((rank) => holders?.[rank] ?? 0),
        )
        .bytes();
    });
  }
}
