/** A training process, and what it took in memory against what it announced. */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fromWire, packageRoot } from '../../src/base/index.ts';
import type { RunMemory, TrainEvent, TrainResult } from '../../src/train/index.ts';
import { randomFrom } from './io.ts';

/** Fields of a recipe that decide its memory. */
export interface MemoryCase {
  readonly method: Readonly<Record<string, unknown>> | readonly Readonly<Record<string, unknown>>[];
  readonly quantize?: string;
  readonly train?: Readonly<Record<string, unknown>>;
  /** Default: 3. */
  readonly steps?: number;
  /** Rows of a step, of 200 tokens each. Default: 4. */
  readonly rows?: number;
}

const rowTokens = 200;

/** Trains for some steps in a process of its own. @returns the announced memory, and the peak above the process before, in MiB */
export function trainedMemory(
  dir: string,
  { model, vocab }: { readonly model: string; readonly vocab: number },
  { method, quantize = 'none', train = {}, rows = 4, steps = 3 }: MemoryCase,
): { readonly memory: RunMemory; readonly measuredMb: number; readonly ratio: number } {
  const random = randomFrom(1);
  const row = () => {
    const ids = Array.from({ length: rowTokens }, () => Math.floor(random() * vocab));
    return { ids, labels: ids };
  };
  const data = join(dir, 'rows.jsonl');
  const lines = Array.from({ length: steps }, () => ({ rows: Array.from({ length: rows }, row) }));
  writeFileSync(data, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
  const recipe = join(dir, 'recipe.yaml');
  const fields = { model, method, quantize, data: { train: data, format: 'batches' }, train: { steps, ...train } };
  writeFileSync(recipe, JSON.stringify({ ...fields, run: { dir: join(dir, 'run') } }));
  const command = [join(packageRoot, 'bin', 'graft.js'), 'train', recipe, '--json', '--fresh'];
  const ended = spawnSync(process.execPath, command, { encoding: 'utf8', maxBuffer: 2 ** 26 });
  if (ended.status !== 0) throw new Error(ended.stderr);
  const events = ended.stdout
    .trim()
    .split('\n')
    .map((line) => fromWire(JSON.parse(line)) as TrainEvent);
  const [first] = events;
  if (first?.type !== 'memory') throw new Error(`the first event is not the memory: ${JSON.stringify(first)}`);
  const { type: _, ...memory } = first;
  const measuredMb = (events.at(-1) as unknown as TrainResult).peakRssMb - memory.processMb;
  return { memory, measuredMb, ratio: memory.totalMb / measuredMb };
}
