/** Runs that are killed with SIGKILL, and what they have to leave behind. */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { packageRoot } from '../src/base/index.ts';
import { openSafetensors, readJson } from '../src/io/index.ts';

/**
 * Reads all files of finished checkpoints, and of the result if there is one. Returns how many.
 * @throws GraftError for one that is not whole
 */
function readFinishedFiles(out: string): number {
  const checkpoints = join(out, 'checkpoints');
  const folders = existsSync(checkpoints) ? readdirSync(checkpoints).filter((name) => !name.startsWith('.')) : [];
  const results = ['adapter/adapter_model.safetensors', 'model/model.safetensors'].map((file) => join(out, file));
  const files = [
    ...folders.flatMap((name) =>
      ['parameters.safetensors', 'optimizer.safetensors', 'state.json'].map((file) => join(checkpoints, name, file)),
    ),
    ...results.filter((file) => existsSync(file)),
  ];
  for (const file of files) {
    if (file.endsWith('.json')) readJson(file);
    else {
      using source = openSafetensors(file);
      for (const [name, { bytes }] of source.entries) source.read(name, new Uint8Array(bytes));
    }
  }
  return files.length;
}

/** What a run is killed at, and how often. */
export interface Kills {
  readonly recipe: string;
  /** Options of `graft train`. */
  readonly options: readonly string[];
  /** The run's directory. */
  readonly out: string;
  readonly kills: number;
  /** Milliseconds after the first step of a process at which it is killed, drawn anew for each. */
  readonly after: () => number;
}

/**
 * Starts a run again and again, and kills it at a random moment after it has taken a step, so that training is interrupted.
 * @returns steps done at each kill, and the number of files that were read whole
 * @throws Error where the run ends before it was killed often enough
 */
export async function killOften({ recipe, options, out, kills, after }: Kills) {
  const command = [join(packageRoot, 'bin', 'graft.js'), 'train', recipe, '--json', ...options];
  const log = join(out, 'events.jsonl');
  const stepsDone = () => (existsSync(log) ? readFileSync(log, 'utf8').split('"type":"step"').length - 1 : 0);
  const killedAt: number[] = [];
  let filesRead = 0;
  while (killedAt.length < kills) {
    const child = spawn(process.execPath, command, { stdio: 'ignore', cwd: packageRoot });
    const ended = new Promise<boolean>((resolve) => child.once('exit', (_, signal) => resolve(signal === 'SIGKILL')));
    const before = stepsDone();
    while (child.exitCode === null && stepsDone() <= before) await setTimeout(20);
    await setTimeout(after());
    child.kill('SIGKILL');
    if (!(await ended)) throw new Error(`the run ended before it was killed ${kills} times: give it more steps`);
    killedAt.push(stepsDone());
    filesRead += readFinishedFiles(out);
  }
  return { killedAt, filesRead };
}
