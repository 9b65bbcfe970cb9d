/** Checkpoints of several processes: rank 0 reads and writes them, whole, whatever process keeps which state. */
import { GraftError } from '../base/index.ts';
import type { Group } from '../distributed/index.ts';
import type { WeightSource } from '../io/index.ts';
import type { Optimizer } from '../optim/index.ts';
import { type DType, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { openPart, restoreOptimizer, type StateToSave } from './checkpoints.ts';
import type { PartOfParameter, Sharding } from './sharding.ts';

interface Named {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** Gives every process the parameters of rank 0. */
export function shareParameters(group: Group, parameters: ReadonlyMap<string, Tensor>): void {
  if (group.size === 1) return;
  noGrad(() => {
    for (const parameter of parameters.values()) group.broadcast(parameter);
  });
}

/**
 * Fills the optimizers of all processes from a checkpoint that rank 0 reads, one tensor at a time.
 * @param path of the checkpoint, on rank 0
 * @throws GraftError 'mismatch' where it holds something that no process keeps, or lacks something
 */
export function restoreState({ group, parts }: Sharding, path: string | undefined, optimizer: Optimizer): void {
  if (group.size === 1) {
    restoreOptimizer(path!, optimizer);
    return;
  }
  using source = group.rank === 0 ? openPart(path!, 'optimizer') : undefined;
  const stored = storedIn(group, source);
  optimizer.prepare(stored.map(({ name }) => name));
  const { state } = optimizer;
  const shapes = Array.from(state, ([name, tensor]) => [name, placeOf(parts, name, tensor).shape.join()] as const);
  const kept = new Map(group.collect(shapes).flat());
  for (const { name, shape } of stored)
    if (kept.get(name) !== shape.join())
      throw new GraftError('mismatch', `the checkpoint holds ${name}, which this run does not train`, { place: path });
  const missing = [...kept.keys()].find((name) => !stored.some((entry) => entry.name === name));
  if (missing !== undefined) throw new GraftError('mismatch', `the checkpoint has no ${missing}`, { place: path });
  giveStored(group, source, stored, state, parts);
}

/**
 * The place of what a process keeps in what a checkpoint has by this name.
 * @param parts the parameters of which it has parts, by key. What its optimizer keeps for one is of the shape of the part, or one number
 * @param name the key of a parameter, or that with the name of what the optimizer keeps: `KEY.SLOT`
 */
export function placeOf(
  parts: ReadonlyMap<string, PartOfParameter>,
  name: string,
  { shape }: Pick<Tensor, 'shape'>,
): PartOfParameter {
  const part = parts.get(name) ?? parts.get(name.slice(0, name.lastIndexOf('.')));
  return part && shape.length > 0 ? part : { shape, from: 0 };
}

/**
 * Fills the parameters that each process keeps from a checkpoint that rank 0 reads, one tensor at a time.
 * @param path of the checkpoint, on rank 0
 * @throws GraftError 'mismatch' where the checkpoint is of another model or method
 */
export function restoreShares(
  { group, kept, parts }: Sharding,
  path: string | undefined,
  parameters: ReadonlyMap<string, Tensor>,
): void {
  using source = group.rank === 0 ? openPart(path!, 'parameters') : undefined;
  const stored = storedIn(group, source);
  const shapes = new Map(stored.map(({ name, dtype, shape }) => [name, `${dtype} ${shape.join()}`]));
  const wrong = [...parameters].find(([key, { dtype, shape }]) => shapes.get(key) !== `${dtype} ${shape.join()}`);
  if (wrong || shapes.size > parameters.size)
    throw new GraftError(
      'mismatch',
      wrong
        ? `the checkpoint has no ${wrong[0]} [${wrong[1].shape.join(', ')}]`
        : 'the checkpoint holds more than this run trains',
      { place: path },
    );
  giveStored(group, source, stored, kept, parts);
}

/** What is in a file that rank 0 has opened. */
const storedIn = (group: Group, source: WeightSource | undefined): readonly Named[] =>
  group.share((): Named[] =>
    Array.from(source!.entries, ([name, { format, shape }]) => ({ name, dtype: format as DType, shape })),
  );

/** Rank 0 reads every tensor, and each process copies what it keeps. */
function giveStored(
  group: Group,
  source: WeightSource | undefined,
  stored: readonly Named[],
  kept: ReadonlyMap<string, Tensor>,
  parts: ReadonlyMap<string, PartOfParameter>,
): void {
  noGrad(() => {
    for (const { name, dtype, shape } of stored) {
      using _ = scope();
      const tensor = Tensor.empty(shape, dtype);
      if (source) tensor.fillBytes((bytes) => source.read(name, bytes));
      group.broadcast(tensor);
      const own = kept.get(name);
      if (!own) continue;
      const { from } = placeOf(parts, name, own);
      ops.copy_(own, ops.view(ops.narrow(ops.view(tensor, [tensor.numel]), 0, from, own.numel), own.shape));
    }
  });
}

/**
 * Calls `save` on rank 0 with the state of all optimizers: the other processes send what only they keep when it is read.
 * Every process has to call this.
 */
export function withWholeState(
  group: Group,
  { state }: Pick<Optimizer, 'state'>,
  save: (state: StateToSave) => void,
): void {
  const kept = group.collect(Array.from(state, ([name, { dtype, shape }]): Named => ({ name, dtype, shape })));
  /** Process `rank` sends a tensor to rank 0, which returns its bytes. */
  const send = (rank: number, { name, dtype, shape }: Named): Uint8Array => {
    using _ = scope();
    const numel = shape.reduce((a, b) => a * b, 1);
    const mine = group.rank === rank ? ops.reshape(state.get(name)!, [numel]) : Tensor.empty([0], dtype);
    const count = (holds: boolean) =>
      Array.from({ length: group.size }, (_, other) => (holds && other === 0 ? numel : 0));
    const receives = Array.from({ length: group.size }, (_, other) => (group.rank === 0 && other === rank ? numel : 0));
    return noGrad(() => group.exchange(mine, count(group.rank === rank), receives)).bytes();
  };
  if (group.rank > 0) {
    for (;;) {
      const asked = group.share((): { rank: number; named: Named } | undefined => undefined);
      if (!asked) return;
      send(asked.rank, asked.named);
    }
  }
  const whole = new Map<string, Pick<Tensor, 'dtype' | 'shape' | 'bytes'>>(state);
  for (const [rank, list] of kept.entries()) {
    for (const named of list) {
      if (whole.has(named.name)) continue;
      const bytes = () => {
        group.share(() => ({ rank, named }));
        return send(rank, named);
      };
      whole.set(named.name, { dtype: named.dtype, shape: named.shape, bytes });
    }
  }
  save({ state: whole });
  group.share(() => undefined);
}
