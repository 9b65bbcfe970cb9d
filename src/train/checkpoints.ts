import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError } from '../base/index.ts';
import { openSafetensors, readJsonObject, recoverDirectory, writeDirectory, writeSafetensors } from '../io/index.ts';
import { readTensor } from '../models/index.ts';
import type { Optimizer } from '../optim/index.ts';
import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

/** The state of a run beside its tensors: with both, it resumes as if it had never stopped. */
export interface RunState {
  /** Optimizer steps done. */
  readonly step: number;
  /** Lowest loss on the held-out rows so far. */
  readonly best: number | null;
  /** Measurements since then. */
  readonly stale: number;
  /** A stop was requested before all held-out rows were measured after this step: the resumed run begins with them. */
  readonly unmeasured?: boolean;
  /** Fingerprint of the recipe: a run is resumed under the same recipe only. */
  readonly recipe: string;
}

const nameOf = (step: number) => `step-${String(step).padStart(7, '0')}`;

/** Writes `dir/step-…` aside and renames it: a reader sees a whole checkpoint or none. Returns its path. */
export function saveCheckpoint(
  dir: string,
  state: RunState,
  parameters: ReadonlyMap<string, Tensor>,
  optimizer: Optimizer,
  keep: number,
): string {
  const path = join(dir, nameOf(state.step));
  const listed = (tensors: ReadonlyMap<string, Tensor>) =>
    [...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() }));
  writeDirectory(path, (work) => {
    writeSafetensors(join(work, 'parameters.safetensors'), listed(parameters));
    writeSafetensors(join(work, 'optimizer.safetensors'), listed(optimizer.state));
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

/** Fills parameters and optimizer from a checkpoint. @throws GraftError 'mismatch' when it is of another model or method */
export function restoreCheckpoint(path: string, parameters: ReadonlyMap<string, Tensor>, optimizer: Optimizer): void {
  fill(join(path, 'parameters.safetensors'), parameters);
  fill(join(path, 'optimizer.safetensors'), optimizer.state);
}

function fill(file: string, tensors: ReadonlyMap<string, Tensor>): void {
  using source = openSafetensors(file);
  for (const [name, tensor] of tensors) {
    const entry = source.entries.get(name);
    if (!entry || entry.format !== tensor.dtype || entry.shape.join() !== tensor.shape.join()) {
      throw new GraftError('mismatch', `the checkpoint has no ${name} [${tensor.shape.join(', ')}]`, { place: file });
    }
    noGrad(() => {
      using _ = scope();
      ops.copy_(tensor, readTensor(source, name));
    });
  }
}
