/** Runs of several processes, and of the same recipe in one, for test/parity/ranks.test.ts and others. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { ErrorJson } from '../../src/base/index.ts';
import { type LaunchOptions, launch, Session } from '../../src/session/index.ts';
import type { Tensor } from '../../src/tensor/index.ts';
import type { RecipeInput, TrainEvent, TrainResult } from '../../src/train/index.ts';
import { golden, numbers, readTensors, relativeError } from '../support.ts';
import { freePort, rankVariables } from './ranks.ts';

export const lora = { type: 'lora', r: 4, lora_alpha: 8, target_modules: 'all-linear' } as const;

/** 20 steps of the golden batches: rows of different lengths. In float32, since rounding to bfloat16 turns the last bits of a sum into more. */
export const recipe = (dir: string, more: object = {}, train: object = {}): RecipeInput =>
  ({
    model: golden('models', 'llama3'),
    method: lora,
    data: { train: golden('train', 'batches.jsonl'), format: 'batches' },
    ...more,
    train: { lr: 1e-3, steps: 20, threads: 1, precision: 'float32', ...train },
    run: { dir },
  }) as RecipeInput;

let session: Session | undefined;

/** A run of one process. `close` ends what it ran in. */
export function alone(input: RecipeInput): Promise<TrainResult> {
  session ??= new Session();
  return session.train(input);
}

/** Processes that stand ready, by their number: starting them takes longer than most of the runs. */
const standing = new Map<number, { readonly child: ChildProcess; readonly lines: AsyncIterator<string> }[]>();

/** What a standing process tells of a run. */
interface Outcome {
  readonly result: TrainResult;
  readonly events: TrainEvent[];
  readonly error?: ErrorJson;
}

/** The run of several standing processes, and its events. `launched` starts new ones, as a user does. */
export async function together(ranks: number, input: RecipeInput): Promise<Outcome> {
  const outcomes = await outcomesOf(ranks, input);
  for (const { error } of outcomes) assert.equal(error, undefined);
  return outcomes[0]!;
}

/** The errors of a run of several standing processes that ends with one in each. */
export async function refusedTogether(ranks: number, input: RecipeInput): Promise<ErrorJson[]> {
  const outcomes = await outcomesOf(ranks, input);
  return outcomes.map(({ error }) => error ?? assert.fail('a process has no error'));
}

async function outcomesOf(ranks: number, input: RecipeInput): Promise<Outcome[]> {
  const processes =
    standing.get(ranks) ??
    Array.from({ length: ranks }, (_, rank) => {
      const child = spawn(process.execPath, [join(import.meta.dirname, 'standing-rank.ts')], {
        stdio: ['pipe', 'pipe', 'inherit'],
        env: { ...process.env, ...rankVariables(rank, ranks, 60) },
      });
      return { child, lines: createInterface(child.stdout)[Symbol.asyncIterator]() };
    });
  standing.set(ranks, processes);
  const port = await freePort();
  return Promise.all(
    processes.map(async ({ child, lines }) => {
      child.stdin!.write(`${JSON.stringify({ port, recipe: input })}\n`);
      const { value } = await lines.next();
      return JSON.parse(value ?? assert.fail('the process has ended'));
    }),
  );
}

/** Ends the processes of `together` and the session of `alone`. */
export async function close(): Promise<void> {
  for (const { child } of [...standing.values()].flat()) child.stdin!.end();
  standing.clear();
  await session?.[Symbol.asyncDispose]();
  session = undefined;
}

const quiet = { log: () => {}, timeout: 60 };

export async function launched(
  options: LaunchOptions,
  onEvent: (event: TrainEvent) => void = () => {},
): Promise<TrainResult> {
  const running = launch({ ...quiet, ...options });
  for await (const event of running) onEvent(event);
  return await running;
}

export function assertLosses(actual: TrainResult, expected: TrainResult, what: string): void {
  assert.equal(actual.losses.length, expected.losses.length, what);
  for (const [i, loss] of actual.losses.entries()) {
    const want = expected.losses[i]!;
    assert.ok(
      Math.abs(loss / want - 1) <= 1e-5,
      `${what}: the loss of step ${i + 1} is ${loss}, and ${want} of one process`,
    );
  }
}

/** The saved tensors of two runs by their names in the second. By their order: keys may hold the name of the run's directory. */
function* savedPairs(actual: string, expected: string): Generator<[key: string, got: Tensor, want: Tensor]> {
  for (const name of readdirSync(expected).filter((file) => file.endsWith('.safetensors'))) {
    const [got, want] = [actual, expected].map((dir) => readTensors(join(dir, name)).tensors);
    assert.equal(got!.size, want!.size);
    const values = [...got!.values()];
    for (const [i, [key, tensor]] of [...want!].entries()) yield [key, values[i]!, tensor];
  }
}

/** Compares the saved tensors. @returns how many numbers were compared */
export function assertWeights(actual: string, expected: string, what: string, tolerance = 1e-5): number {
  let compared = 0;
  for (const [key, got, want] of savedPairs(actual, expected)) {
    const error = relativeError(numbers(got), numbers(want));
    assert.ok(error <= tolerance, `${what}: ${key} differs by ${error}`);
    compared += want.numel;
  }
  return compared;
}

/** The largest relative differences of two runs, and how many saved numbers were compared. */
export function differenceOf(actual: TrainResult, expected: TrainResult) {
  const pairs = [...savedPairs(actual.adapter, expected.adapter)];
  return {
    losses: Math.max(...actual.losses.map((loss, i) => Math.abs(loss / expected.losses[i]! - 1))),
    weights: Math.max(...pairs.map(([, got, want]) => relativeError(numbers(got), numbers(want)))),
    numbers: pairs.reduce((sum, [, , { numel }]) => sum + numel, 0),
  };
}

/** What the runs of several processes are compared with one process for: the recipe's fields, and those of its `train`. */
export const methods: readonly (readonly [name: string, more: object, train?: object])[] = [
  ['lora', {}],
  ['full', { method: { type: 'full' } }, { lr: 1e-4 }],
  ['prefix', { method: { type: 'prefix', num_virtual_tokens: 3 } }],
  ['bottleneck', { method: { type: 'bottleneck', reduction_factor: 4 } }, { lr: 1e-4 }],
  [
    'layers in turn',
    {
      method: [
        { type: 'full' },
        {
          type: 'layerwise',
          policy: 'schedule',
          rules: [
            { freeze: 0, plateau: 3, min_fall: 2 },
            { freeze: 1, gradient_norm: 50, window: 2, for: 3 },
          ],
        },
      ],
    },
    { lr: 1e-4 },
  ],
  ['qat and lora', { method: [{ type: 'qat', weight: 'int8', group_size: 4, over: 'base' }, lora] }],
  [
    'clipping, decay and a schedule',
    {},
    { max_grad_norm: 0.5, weight_decay: 0.1, schedule: 'cosine', warmup_steps: 3 },
  ],
  // Its own term of the loss counts once, and it reads the gradients that all processes have: stage 2 is refused.
  ['adalora', { method: { type: 'adalora', init_r: 4, target_r: 2, target_modules: ['q_proj', 'v_proj'] } }],
  ['gradient checkpointing', {}, { gradient_checkpointing: true }],
  // As many micro-batches with any number of processes draw the same dropout.
  ['dropout', { method: { ...lora, lora_dropout: 0.2 } }, { micro_tokens: 1 }],
];

/** The process id of a rank that this process, or another, has launched; of `together`'s processes none. */
export function processOf(rank: number, launcher = process.pid): number {
  const children = spawnSync('ps', ['-o', 'pid=', '--ppid', String(launcher)], { encoding: 'utf8' }).stdout;
  const found = children
    .split('\n')
    .map(Number)
    .filter((pid) => pid > 0 && existsSync(`/proc/${pid}/environ`))
    .filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('graft.js'))
    .find((pid) => readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0').includes(`RANK=${rank}`));
  assert.ok(found, `rank ${rank} runs`);
  return found;
}

/** Launches a run and calls `act` once, after step `step`. */
export const interruptedAt = (step: number, act: () => void) => {
  let isDone = false;
  return (event: TrainEvent) => {
    if (isDone || event.type !== 'step' || event.step < step) return;
    isDone = true;
    act();
  };
};

// Rows enough that a run lasts longer than a signal takes.
const long = { steps: 80, batch_size: 8, micro_tokens: 64 };
const longRows = Array.from({ length: 64 }, (_, i) => ({
  ids: Array.from({ length: 24 }, (_, t) => 3 + ((i * 31 + t * t * 7) % 90)),
}));
export const longRun = (dir: string, train: object = {}): RecipeInput => {
  const input = recipe(dir, { data: { train: longRows, format: 'tokens' } }, { ...long, ...train });
  return { ...input, run: { dir, checkpoint_every: 10 } };
};
