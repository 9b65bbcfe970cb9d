/**
 * One of several processes is killed at a random moment, again and again, at every stage of ZeRO: all end within seconds with its name, and the
 * run goes on with the losses of one that was never killed. Nothing may be half written. One is stopped with SIGSTOP too.
 *   npm run proof:kill-ranks -- [--kills 20] [--seed N]
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { GraftError } from '../src/base/index.ts';
import { startEngine } from '../src/engine/index.ts';
import { openSafetensors } from '../src/io/index.ts';
import type { TrainResult } from '../src/train/index.ts';
import { interruptedAt, launched, longRun, processOf } from '../test/samples/ranks-runs.ts';
import { integers, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: { kills: { type: 'string', default: '20' }, seed: { type: 'string', default: String(Date.now() % 1e6) } },
});
const [kills, seed] = [Number(args.kills), Number(args.seed)];
await startEngine();
const below = integers(seed);
const folder = workFolder();
const ranks = 2;
const recipeOf = (name: string, stage: number) => ({
  ...longRun(join(folder, name), { steps: 120, lr: 1e-4, zero: { stage } }),
  method: { type: 'full' } as const,
});

/** Opens everything that a run left. @returns how many files are damaged */
function damaged(dir: string): number {
  if (!existsSync(dir)) return 0; // killed before it began
  const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return files.filter(({ name, parentPath }) => {
    // What is being written has another name until it is whole.
    if (!name.endsWith('.safetensors') || parentPath.includes('.new-')) return false;
    try {
      openSafetensors(join(parentPath, name))[Symbol.dispose]();
      return false;
    } catch {
      return true;
    }
  }).length;
}

const whole = new Map<number, TrainResult>();
for (const stage of [0, 1, 2, 3])
  whole.set(stage, await launched({ recipe: recipeOf(`whole-${stage}`, stage), ranks }));

let [killed, unnamed, differing, broken, slowest] = [0, 0, 0, 0, 0];
for (let i = 0; killed < kills; i++) {
  const stage = i % 4;
  const recipe = recipeOf(`run-${i}`, stage);
  const rank = below(ranks);
  const [step, after] = [1 + below(110), below(80)];
  let killedAt = 0;
  const kill = () => {
    try {
      process.kill(processOf(rank), 'SIGKILL');
      killedAt = performance.now();
    } catch {} // the run has ended
  };
  const running = launched(
    { recipe, ranks },
    interruptedAt(step, () => setTimeout(kill, after)),
  );
  const outcome = await running.catch((error: unknown) => GraftError.of(error));
  if (killedAt === 0 || !(outcome instanceof GraftError)) continue;
  killed++;
  slowest = Math.max(slowest, (performance.now() - killedAt) / 1e3);
  if (!outcome.message.includes(`rank ${rank} `)) unnamed++;
  broken += damaged(join(folder, `run-${i}`));
  const resumed = await launched({ recipe, ranks });
  const want = whole.get(stage)!.losses;
  if (resumed.losses.length !== want.length || resumed.losses.some((loss, step) => loss !== want[step])) differing++;
  console.log(
    `${killed}: rank ${rank} at stage ${stage} ${after} ms after step ${step}: resumed from step ${resumed.resumedFrom}`,
  );
}

let stopped = 0;
for (const stage of [0, 3]) {
  const stop = interruptedAt(10, () => process.kill(processOf(1), 'SIGSTOP'));
  const running = launched({ recipe: recipeOf(`stopped-${stage}`, stage), ranks, timeout: 20 }, stop);
  const outcome = await running.catch((error: unknown) => GraftError.of(error));
  if (outcome instanceof GraftError && /rank 1/.test(outcome.message)) stopped++;
  console.log(`stage ${stage}, stopped: ${outcome instanceof GraftError ? outcome.message : 'finished'}`);
}
report(
  'kill-ranks',
  [
    { what: 'processes killed', got: killed, bar: kills, better: 'more' },
    { what: 'seconds until all had ended, at most', got: round(slowest), bar: 10, better: 'less' },
    { what: 'killed ranks that were not named', got: unnamed, bar: 0, better: 'less' },
    { what: 'runs whose losses differ after the restart', got: differing, bar: 0, better: 'less' },
    { what: 'files that are half written', got: broken, bar: 0, better: 'less' },
    { what: 'stopped processes that were named', got: stopped, bar: 2, better: 'more' },
  ],
  { seed },
);
