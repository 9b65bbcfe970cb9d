/**
 * The lowest blocks of a model, where they compute the same in every step of a run: what they return is computed once for each row,
 * and kept on disk for the next epochs. It is computed for one row at a time, kept or not, since a matrix product gives a row other
 * last bits in another micro-batch: so the losses of a run do not depend on what is kept, bit for bit.
 */
import { createHash } from 'node:crypto';
import { rmSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { type Packed, pack, type Row } from '../data/index.ts';
import type { Group } from '../distributed/index.ts';
import { currentEngine, processor } from '../engine/index.ts';
import { freeDisk, RecordFile } from '../io/index.ts';
import type { Model } from '../nn/index.ts';
import { tokensOf } from '../tasks/index.ts';
import { scope, Tensor } from '../tensor/index.ts';
import { digestOfRows, type RunIdentity } from './identity.ts';
import type { Recipe } from './recipe.ts';
import type { TaskRun, TaskRuns } from './task-runs.ts';

/** Fewer blocks than this share are not worth a pass for each row. */
const leastShare = 1 / 4;
/** What a checkpoint and a result may take, in bytes of the trained parameters: values, two moments, and the values again. */
const savedCopies = 4;
/** And besides: their other files, the log. */
const savedBesides = 1e6;
const floatBytes = 4;

const fileName = 'kept-activations.bin';

/** Says of the key of a parameter that no step of the run trains it. */
export type NeverTrains = (key: string) => boolean;

/** Counts the lowest blocks that compute the same in every step; where they are too few, says why, and whether it is an obstacle. */
function countFixed(
  { list, adapter, host, parameters }: TaskRuns,
  neverTrains: NeverTrains,
): { blocks: number; why?: string; obstacle?: true } {
  // Every tensor that any step trains counts as trained, also while it is frozen.
  const before = [...parameters].map(([key, tensor]) => ({ key, tensor, requiresGrad: tensor.requiresGrad }));
  for (const { key, tensor } of before) tensor.requiresGrad = !neverTrains(key);
  let [untrained, fixed] = [host.layers, host.layers];
  for (const { model, plan } of list) {
    using _ = scope();
    const shortest = plan.trainRows.reduce((least, row) => (row.ids.length < least.ids.length ? row : least));
    const found = model.fixedBlocks(tokensOf(model, pack([shortest])));
    untrained = Math.min(untrained, found.untrained);
    fixed = Math.min(fixed, found.fixed);
  }
  for (const { tensor, requiresGrad } of before) tensor.requiresGrad = requiresGrad;
  const least = Math.max(1, leastShare * host.layers);
  if (untrained < least)
    return { blocks: 0, why: `training: it reaches down to block ${untrained + 1} of ${host.layers}` };
  const changing = adapter.parts.find((part) => !part.frozen && part.beforeStep && !part.changesTrainedOnly);
  if (changing) return { blocks: 0, why: `schedule: ${changing.method} changes with the step`, obstacle: true };
  if (fixed < least)
    return { blocks: 0, why: 'dropout: adapters in frozen blocks draw random numbers', obstacle: true };
  return { blocks: fixed };
}

/**
 * Returns how many of the lowest blocks a run computes for one row at a time, and what should be known about it.
 * @param begun that number of the run to resume; several processes have none, as each meets other rows in every epoch
 * @param neverTrains default: every parameter of the methods is trained in some step
 * @throws GraftError 'usage' where the recipe says that activations are kept, and they cannot be; 'environment' where the disk has
 *   no room for them
 */
export function fixedBlocksOf(
  recipe: Recipe,
  taskRuns: TaskRuns,
  { begun, group: { size } }: { readonly begun: number | undefined; readonly group: Pick<Group, 'size'> },
  neverTrains: NeverTrains = () => false,
): { readonly blocks: number; readonly notes: readonly string[] } {
  const { keep_activations: keep } = recipe.train;
  if (size > 1) {
    if (keep !== true) return { blocks: 0, notes: [] };
    throw new GraftError(
      'usage',
      'activations cannot be kept by several processes: each meets other rows in every epoch',
      {
        place: 'train.keep_activations',
        hint: 'Leave it out, or train in one process',
      },
    );
  }
  const { blocks, why, obstacle } = countFixed(taskRuns, neverTrains);
  // A run keeps to what it began with, as its last bits depend on it.
  if (begun) return { blocks: Math.min(begun, blocks), notes: [] };
  const onePass = taskRuns.steps <= taskRuns.stepsPerEpoch;
  if (begun === undefined && blocks > 0 && !onePass) {
    // Before the run directory says that a run has begun.
    const { dir } = recipe.run;
    const earlier = statSync(join(dir, fileName), { throwIfNoEntry: false })?.size ?? 0; // which is written over
    if (keep === true) requireRoom(dir, roomFor(taskRuns, freeDisk(dir) + earlier));
    return { blocks, notes: [] };
  }
  const reason = why ?? (onePass ? 'one epoch: each row is computed once' : 'the run began without');
  if (keep === true && begun === undefined) {
    throw new GraftError('usage', `activations cannot be kept, because of ${reason}`, {
      place: 'train.keep_activations',
      hint: 'Leave it out; docs/recipe.md says what is kept',
    });
  }
  const isTold = keep !== false && !onePass && (obstacle || !why);
  return { blocks: 0, notes: isTold ? [`activations are not kept, because of ${reason}`] : [] };
}

/** What a run needs to compute and keep them. */
export interface FixedBlocksInput {
  readonly recipe: Recipe;
  readonly taskRuns: TaskRuns;
  readonly identity: RunIdentity;
  readonly threads: number;
  /** Whether an earlier process stopped in the middle of the run. */
  readonly resumed: boolean;
  /** How many of the lowest blocks are fixed. */
  readonly blocks: number;
  /** Is told why the keeping ends. */
  readonly warn: (message: string) => void;
}

/** Bytes of the residual stream of a row. */
const rowBytes = (model: Model, { ids }: Row) => floatBytes * model.width * (ids.length + model.ports.promptLength);

const megabytes = (bytes: number) => `${(bytes / 1e6).toPrecision(3)} MB`;

const rowsOf = ({ plan }: TaskRun): Row[] =>
  [...plan.trainRows, ...plan.heldOut].flatMap((row) => (row.pair ? [row, row.pair] : [row]));

/** Bytes that everything kept takes, those that it may take of what is free, and those that stay free for what the run writes. */
interface Room {
  readonly needed: number;
  readonly room: number;
  readonly reserve: number;
}

function roomFor({ list, parameters, adapter, weightBytes }: TaskRuns, free: number): Room {
  const needed = RecordFile.sizeOf(
    list.flatMap((taskRun) => rowsOf(taskRun).map((row) => rowBytes(taskRun.model, row))),
  );
  const trained = parameters.values().reduce((sum, { nbytes }) => sum + nbytes, 0);
  const reserve = savedBesides + savedCopies * trained + (adapter.writes === 'model' ? weightBytes : 0);
  // Half of what is free, or less where the run needs the room itself.
  return { needed, reserve, room: Math.max(0, Math.min(free / 2, free - reserve)) };
}

const shareText = ({ room, needed }: Room) => `the disk has room for ${megabytes(room)} of ${megabytes(needed)}`;

/** @throws GraftError 'environment' where there is no room for everything */
function requireRoom(dir: string, room: Room): void {
  if (room.room >= room.needed) return;
  throw new GraftError('environment', `activations cannot be kept: ${shareText(room)}`, {
    place: dir,
    hint: 'Free some space, choose another run.dir, or leave train.keep_activations out',
  });
}

/** Everything that decides a bit of what these blocks return. */
function digestOf({ taskRuns: { list }, identity, threads, blocks }: FixedBlocksInput): string {
  const { torch, addon, native } = currentEngine();
  const rows = list.map(({ plan }) => [digestOfRows(plan.trainRows), digestOfRows(plan.heldOut)]);
  const engine = [processor(), native.kernels(), torch.version, basename(dirname(addon))];
  const parts = [identity, rows, blocks, threads, engine];
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 16);
}

export class FixedBlocks implements Disposable {
  readonly blocks: number;
  /** Bytes that the file may have in the end; 0: nothing is kept. */
  readonly bytes: number = 0;
  /** What should be known before the first step. */
  readonly notes: readonly string[] = [];
  readonly #warn: (message: string) => void;
  /** The number of each row's record. */
  readonly #numbers = new Map<Row, number>();
  /** Bytes that stay free on the disk. */
  readonly #reserve: number;
  #file: RecordFile | undefined;
  /** Memory in which the stream of a batch is put together. */
  #values = new Float32Array();
  /** Rows that were read since one was computed again to compare. */
  #sinceCompared = Number.POSITIVE_INFINITY;

  /**
   * Returns the fixed blocks of a run that has some; what an earlier run kept in its directory is deleted where nothing is kept now.
   * @throws GraftError 'environment' where everything must be kept (`train.keep_activations: true`) and the disk has no room
   */
  static of(input: FixedBlocksInput): FixedBlocks | undefined {
    const { recipe, blocks } = input;
    if (blocks === 0 || !recipe.train.keep_activations) rmSync(join(recipe.run.dir, fileName), { force: true });
    return blocks > 0 ? new FixedBlocks(input) : undefined;
  }

  private constructor(input: FixedBlocksInput) {
    const { recipe, taskRuns, blocks, warn } = input;
    const { list } = taskRuns;
    this.blocks = blocks;
    this.#warn = warn;
    for (const row of list.flatMap(rowsOf)) this.#numbers.set(row, this.#numbers.size);
    this.#reserve = roomFor(taskRuns, 0).reserve;
    const { keep_activations: keep } = recipe.train;
    const { dir } = recipe.run;
    if (!keep) return;
    let file: RecordFile | undefined;
    try {
      file = new RecordFile(join(dir, fileName), digestOf(input));
    } catch (error) {
      if (keep === true) throw error;
      this.notes = [`activations are not kept: ${(error as Error).message}`];
      return;
    }
    const room = roomFor(taskRuns, freeDisk(dir) + file.size);
    try {
      if (keep === true) requireRoom(dir, room);
    } catch (error) {
      file.remove();
      throw error;
    }
    const notes = room.room < room.needed ? [`activations are not kept of every row: ${shareText(room)}`] : [];
    if (file.replaced)
      notes.push('the kept activations are of other rows, weights or another engine: they are computed again');
    else if (input.resumed && file.count === 0) notes.push('the kept activations are gone: they are computed again');
    this.notes = notes;
    this.bytes = Math.min(room.room, room.needed);
    this.#file = file;
  }

  /** Returns `Model.hidden` of a packed batch. */
  hidden(model: Model, batch: Packed): Tensor {
    const count = batch.rows.reduce((sum, row) => sum + rowBytes(model, row), 0) / floatBytes;
    if (this.#values.length < count) this.#values = new Float32Array(count);
    const values = this.#values.subarray(0, count);
    let at = 0;
    for (const row of batch.rows) {
      const bytes = rowBytes(model, row);
      this.#fill(new Uint8Array(values.buffer, at, bytes), model, row);
      at += bytes;
    }
    const stream = Tensor.from(values, [count / model.width, model.width]);
    return model.hiddenFrom(this.blocks, stream, tokensOf(model, batch));
  }

  /** Writes what the blocks return for a row into `to`. */
  #fill(to: Uint8Array, model: Model, row: Row): void {
    const number = this.#numbers.get(row)!;
    if (this.#file?.read(number, to)) {
      // One row of each pass over them is computed again: it is noticed where something changes that must not.
      if (this.#sinceCompared++ < this.#numbers.size) return;
      this.#sinceCompared = 0;
      const now = this.#compute(model, row);
      if (Buffer.compare(now, to) === 0) return;
      to.set(now);
      this.#drop('what is kept is not what the frozen blocks compute now');
      return;
    }
    to.set(this.#compute(model, row));
    this.#keep(number, to);
  }

  #compute(model: Model, row: Row): Uint8Array {
    using _ = scope();
    const { pair: _pair, ...alone } = row;
    return model.streamBefore(this.blocks, tokensOf(model, pack([alone]))).bytes();
  }

  #keep(number: number, bytes: Uint8Array): void {
    this.makeRoom(bytes.byteLength);
    if (!this.#file || this.#file.sizeWith(bytes.byteLength) > this.bytes) return;
    try {
      this.#file.append(number, bytes);
    } catch (error) {
      this.#drop((error as Error).message);
    }
  }

  /** Deletes what is kept where the disk has no room left for what the run itself has to write. */
  makeRoom(more = 0): void {
    if (this.#file && freeDisk(dirname(this.#file.path)) < this.#reserve + more) this.#drop('the disk is nearly full');
  }

  #drop(why: string): void {
    this.remove();
    this.#warn(`activations are no longer kept, and are computed again in each epoch: ${why}`);
  }

  /** Deletes what is kept. */
  remove(): void {
    this.#file?.remove();
    this.#file = undefined;
  }

  [Symbol.dispose](): void {
    this.#file?.[Symbol.dispose]();
    this.#file = undefined;
  }
}
