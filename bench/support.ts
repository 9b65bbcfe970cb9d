/** Shared by the benchmarks: running Graft and the peer in their own processes, summaries, a table of bars, a last line of JSON. */
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { cacheDir, GraftError, packageRoot } from '../src/base/index.ts';
import { processor } from '../src/engine/index.ts';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';

const folders: string[] = [];
process.on('exit', () => {
  for (const dir of folders) rmSync(dir, { recursive: true, force: true });
});
// Without a handler, a signal ends the process without running its exit handlers.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

/** Returns a new temporary folder; it is deleted when the process ends. */
export function workFolder(): string {
  const dir = mkdtempSync(join(tmpdir(), 'graft-bench-'));
  folders.push(dir);
  return dir;
}

/** Runs a program to its end and returns the JSON of its last line. An error shows the end of its stderr. */
function lastLine(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const log = join(workFolder(), 'log');
  const descriptor = openSync(log, 'w');
  const { status, stdout, signal } = spawnSync(command, args, {
    cwd: packageRoot,
    encoding: 'utf8',
    maxBuffer: 2 ** 30,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', descriptor],
  });
  closeSync(descriptor);
  if (status !== 0) {
    const errorText = readFileSync(log, 'utf8').trim().split('\n').slice(-5).join('\n');
    throw new GraftError('environment', `${basename(args[0] ?? command)} ended with ${signal ?? status}: ${errorText}`);
  }
  const line = stdout.trim().split('\n').at(-1)!;
  return line.startsWith('{') ? (JSON.parse(line) as Record<string, unknown>) : {};
}

/** Runs `graft …` as a user does. */
export const graft = (...args: string[]) => lastLine(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args]);

/** Returns the Python that has the peer: `GRAFT_PEER`, or the environment that `npm run proof:peer` installs. */
export function peerPython(): string {
  const python = process.env.GRAFT_PEER ?? cacheDir('peer', 'venv', 'bin', 'python');
  if (existsSync(python)) return python;
  throw new GraftError('environment', `the peer to compare with was not found at ${python}`, {
    hint: 'Run `npm run proof:peer` once (about 5 GB), or set GRAFT_PEER to a Python that has torch, transformers and peft',
  });
}

const peerScript = (name: string) => (name.includes('/') ? name : join(import.meta.dirname, 'peer', name));
const offline = { HF_HUB_OFFLINE: '1', TOKENIZERS_PARALLELISM: 'false' };

/** Runs a script of bench/peer, or another one that takes the same options. */
export const peer = (script: string, ...args: string[]) =>
  lastLine(peerPython(), [peerScript(script), ...args], offline);

/** The same in several processes, under the peer's torchrun. */
export const torchrun = (processes: number, script: string, ...args: string[]) =>
  lastLine(
    peerPython(),
    ['-m', 'torch.distributed.run', '--nproc-per-node', String(processes), '--standalone', peerScript(script), ...args],
    offline,
  );

/** Returns the benchmark model for both sides: the path that Graft loads, and a Hugging Face directory with the same weights. */
export function bothModels(model: string | undefined): { ours: string; theirs: string } {
  const ours = model ?? fetchSmolLM2();
  if (!ours.endsWith('.gguf')) return { ours, theirs: ours };
  const theirs = cacheDir('peer', `${basename(ours, '.gguf')}-float32`);
  if (!existsSync(theirs)) {
    const part = `${theirs}.part`;
    mkdirSync(cacheDir('peer'), { recursive: true });
    peer('model.py', '--gguf', ours, '--out', part);
    spawnSync('mv', [part, theirs]);
  }
  return { ours, theirs };
}

/** Returns a generator of integers below `n` (mulberry32), so that batches are the same on every machine. */
export function integers(seed: number): (n: number) => number {
  let state = seed >>> 0;
  return (n) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * n);
  };
}

export interface BatchShape {
  readonly mode: 'ragged' | 'fixed';
  readonly rows: number;
  readonly steps: number;
  readonly vocab: number;
  readonly seed: number;
}

/**
 * Writes random rows, one optimizer step on each line. ragged: 32 to 256 tokens, the second half predicted; fixed: 256 tokens,
 * all predicted. Returns the file's path.
 */
export function writeBatches(dir: string, { mode, rows, steps, vocab, seed }: BatchShape): string {
  const below = integers(seed);
  const lines = Array.from({ length: steps }, () => ({
    rows: Array.from({ length: rows }, () => {
      const length = mode === 'ragged' ? 32 + below(225) : 256;
      const ids = Array.from({ length }, () => 3 + below(vocab - 3));
      const start = mode === 'ragged' ? length >> 1 : 1;
      return { ids, labels: ids.map((id, i) => (i < start ? -100 : id)) };
    }),
  }));
  const file = join(dir, `${mode}-${rows}x${steps}-${seed}.jsonl`);
  writeFileSync(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
  return file;
}

export interface TrainOptions {
  readonly model: string;
  readonly batches: string;
  readonly dir: string;
  readonly quantize?: string;
  readonly adapter?: string;
  readonly threads?: number;
  readonly set?: readonly string[];
  /** Default: LoRA r=8 on all linear layers. */
  readonly method?: Readonly<Record<string, unknown>>;
  /** Resume the run in the directory. Default: start from scratch. */
  readonly resume?: boolean;
}

/** Writes the recipe that both sides train by (AdamW at 1e-4, no weight decay) and returns its path. */
export function writeRecipe(options: TrainOptions): string {
  const { model, batches, dir, quantize, adapter, threads = 2 } = options;
  const file = `${dir}.json`;
  const recipe = {
    model,
    method: options.method ?? { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' },
    data: { train: batches, format: 'batches' },
    train: { lr: 1e-4, weight_decay: 0, threads, seed: 0 },
    run: { dir },
    ...(quantize && { quantize }),
    ...(adapter && { adapter }),
  };
  writeFileSync(file, JSON.stringify(recipe)); // JSON is YAML
  return file;
}

export interface Trained {
  readonly losses: number[];
  readonly tokens_per_s: number;
  readonly peak_rss_mb: number;
  readonly resumed_from?: number;
}

export function graftTrain(options: TrainOptions): Trained {
  const set = (options.set ?? []).flatMap((pair) => ['--set', pair]);
  const fresh = options.resume ? [] : ['--fresh'];
  return graft('train', writeRecipe(options), '--json', ...fresh, ...set) as unknown as Trained;
}

export const round = (x: number): number => +x.toPrecision(4);

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export const spread = (values: readonly number[]) => ({
  median: round(median(values)),
  least: round(Math.min(...values)),
  most: round(Math.max(...values)),
});

/** A measured figure and the bar that it has to reach. */
export interface Bar {
  readonly what: string;
  readonly got: number;
  readonly bar: number;
  readonly better: 'less' | 'more';
}

/** Prints each figure with its bar, then everything as one line of JSON. Sets exit code 1 if a bar is missed. */
export function report(bench: string, bars: readonly Bar[], details: object): void {
  const met = ({ got, bar, better }: Bar) => (better === 'less' ? got <= bar : got >= bar);
  const width = Math.max(...bars.map(({ what }) => what.length));
  for (const bar of bars) {
    const sign = bar.better === 'less' ? '≤' : '≥';
    console.log(`${met(bar) ? 'met   ' : 'missed'}  ${bar.what.padEnd(width)}  ${round(bar.got)} (${sign} ${bar.bar})`);
  }
  const mkl = process.env.GRAFT_MKL ?? 'for this processor';
  const machine = {
    processor: processor().model,
    mkl,
    load_average: loadavg().map(round),
    date: new Date().toISOString(),
  };
  console.log(JSON.stringify({ bench, machine, bars: bars.map((bar) => ({ ...bar, met: met(bar) })), ...details }));
  if (!bars.every(met)) process.exitCode = 1;
}
