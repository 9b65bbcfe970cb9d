import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import {
  openSafetensors,
  readJsonObject,
  recoverDirectory,
  type WeightSource,
  writeDirectory,
  writeSafetensors,
} from '../io/index.ts';
import type { Optimizer } from '../optim/index.ts';
import { host, type Tensor } from '../tensor/index.ts';

/** The state of a run beside its tensors: with both, it resumes as if it had never stopped. */
export interface RunState {
  /** Optimizer steps done. */
  readonly step: number;
  /** Steps of the whole run, and how many of them the recipe gave when they were decided: the run may have been extended. */
  readonly end: { readonly recipe: number; readonly steps: number };
  /** The measurement with the lowest loss on the held-out rows so far, and whether the parameters of its step were saved. */
  readonly best: { readonly step: number; readonly loss: number; readonly saved: boolean } | null;
  /** Measurements since then. */
  readonly stale: number;
  /** A stop was requested before all held-out rows were measured after this step: the resumed run begins with them. */
  readonly unmeasured?: boolean;
  /** Digest of the held-out rows; null where there are none. Losses on other rows are not comparable with `best`. */
  readonly heldOut: string | null;
}

/** What an optimizer keeps, as it is saved: tensors of this process, or of others. */
export interface StateToSave {
  readonly state: ReadonlyMap<string, Pick<Tensor, 'dtype' | 'shape' | 'bytes'>>;
}

const nameOf = (step: number) => `step-${String(step).padStart(7, '0')}`;

/** Writes `dir/step-…` aside and renames it: a reader sees a whole checkpoint or none. Returns its path. */
export function saveCheckpoint(
  dir: string,
  state: RunState,
  parameters: ReadonlyMap<string, Tensor>,
  optimizer: StateToSave,
  keep: number,
): string {
  const listed = (tensors: StateToSave['state']) =>
    [...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() }));
  // Parameters are written from their own memory: copies would stay until they are collected. The optimizer's state may be freed before.
  const ofParameters = [...parameters].map(([name, tensor]) => {
    const { dtype, shape } = tensor;
    return { name, dtype, shape, bytes: () => (tensor.device === host ? tensor.memory() : tensor.bytes()) };
  });
  return writeCheckpoint(dir, state, keep, (work) => {
    writeSafetensors(join(work, 'parameters.safetensors'), ofParameters);
    writeSafetensors(join(work, 'optimizer.safetensors'), listed(optimizer.state));
  });
}

/** As `saveCheckpoint`, of the tensors that `writeTensors` writes into a folder. */
export function writeCheckpoint(
  dir: string,
  state: RunState,
  keep: number,
  writeTensors: (work: string) => void,
): string {
  const path = join(dir, nameOf(state.step));
  writeDirectory(path, (work) => {
    writeTensors(work);
    writeFileSync(join(work, 'state.json'), JSON.stringify(state));
  });
  // Under another name first: killed while removing, a run leaves no part of a checkpoint under a checkpoint's name.
  for (const old of checkpoints(dir).slice(0, -keep)) renameSync(join(dir, old), join(dir, `.${old}.removed`));
  for (const name of readdirSync(dir)) {
    if (name.endsWith('.removed')) rmSync(join(dir, name), { recursive: true, force: true });
  }
  return path;
}

/** Names of the whole checkpoints, oldest first. */
function checkpoints(dir: string): string[] {
  if (!existsSync(dir)) return [];
  const names = readdirSync(dir).filter((name) => /^step-\d{7}$/.test(name));
  return names.filter((name) => existsSync(join(dir, name, 'state.json'))).sort();
}

/** The newest checkpoint of `dir`, or undefined. */
export function lastCheckpoint(dir: string): { path: string; state: RunState } | undefined {
  const name = checkpoints(dir).at(-1);
  if (!name) return undefined;
  const path = join(dir, name);
  recoverDirectory(path);
  return { path, state: readJsonObject(join(path, 'state.json')) as unknown as RunState };
}

/**
 * Fills parameters from a checkpoint, in place: a second copy of them would double the memory of a large run.
 * @throws GraftError 'mismatch' when it is of another model or method
 */
export const restoreParameters = (path: string, parameters: ReadonlyMap<string, Tensor>): void =>
  fill(path, 'parameters', () => parameters);

/** Fills an optimizer that keeps all state, in place. @throws GraftError 'mismatch' as `restoreParameters` */
export const restoreOptimizer = (path: string, optimizer: Optimizer): void =>
  fill(path, 'optimizer', (names) => {
    optimizer.prepare(names);
    return optimizer.state;
  });

/** Opens what a checkpoint has of the parameters or of the optimizer, in one file, or in one of each process with an index. */
export function openPart(path: string, part: 'parameters' | 'optimizer'): WeightSource {
  const index = join(path, `${part}.safetensors.index.json`);
  return openSafetensors(existsSync(index) ? index : join(path, `${part}.safetensors`));
}

function fill(
  path: string,
  part: 'parameters' | 'optimizer',
  tensorsFor: (names: Iterable<string>) => ReadonlyMap<string, Tensor>,
): void {
  using source = openPart(path, part);
  const file = source.path;
  const tensors = tensorsFor(source.entries.keys());
  for (const [name, tensor] of tensors) {
    const entry = source.entries.get(name);
    if (!entry || entry.format !== tensor.dtype || entry.shape.join() !== tensor.shape.join()) {
      throw new GraftError('mismatch', `the checkpoint has no ${name} [${tensor.shape.join(', ')}]`, { place: file });
    }
    tensor.fillBytes((bytes) => source.read(name, bytes));
  }
  const unknown = [...source.entries.keys()].filter((name) => !tensors.has(name));
  if (unknown.length === 0) return;
  throw new GraftError('mismatch', `the checkpoint holds ${unknown[0]}, which this run does not train`, {
    place: file,
  });
}
