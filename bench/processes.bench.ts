/**
 * Training in several processes on one machine, at each stage of ZeRO, compared with PEFT under PyTorch's DDP and FSDP2 (Gloo) with as many
 * processes and threads, and with Graft's own single process with as many cores. All sides alternate within a round; ratios are of one round,
 * and their medians are reported. Stages 0 to 2 stand beside DDP, which holds whole weights as they do; stage 3 beside FSDP2. The bars for one
 * process and for waiting are those of two processes. PEFT takes 6 GB a process for four rows of its own, and half of that for two.
 *   npm run proof:processes -- [--model FILE.gguf|DIR] [--ranks 2] [--threads 1] [--stages 0,1,2,3] [--rounds 3] [--rows 8] [--steps 6] [--seed 0]
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { readJson } from '../src/io/index.ts';
import {
  type Bar,
  bothModels,
  graft,
  median,
  peerPython,
  report,
  round,
  spread,
  type Trained,
  torchrun,
  workFolder,
  writeBatches,
  writeRecipe,
} from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    ranks: { type: 'string', default: '2' },
    threads: { type: 'string', default: '1' },
    stages: { type: 'string', default: '0,1,2,3' },
    rounds: { type: 'string', default: '3' },
    rows: { type: 'string', default: '8' },
    steps: { type: 'string', default: '6' },
    seed: { type: 'string', default: '0' },
  },
});
peerPython(); // fails before the other side is measured
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const [ranks, threads, stages] = [+args.ranks, +args.threads, args.stages.split(',').map(Number)];
const batches = writeBatches(dir, { mode: 'ragged', rows: +args.rows, steps: +args.steps, vocab, seed: +args.seed });

interface Measured extends Trained {
  /** Share of the run's training time that its processes waited in collectives, their mean. */
  readonly waiting?: number;
}

function inOneProcess(): Measured {
  const recipe = writeRecipe({ model: ours, batches, dir: join(dir, 'one'), threads: ranks * threads });
  return graft('train', recipe, '--json', '--fresh') as unknown as Trained;
}

interface RankReport {
  readonly peak_rss_mb: number;
  readonly wait_s: number;
}

function inProcesses(stage: number): Measured {
  const recipe = writeRecipe({ model: ours, batches, dir: join(dir, `stage-${stage}`), threads });
  const set = ['--set', `train.zero.stage=${stage}`];
  const run = graft('launch', '--nproc', String(ranks), recipe, '--json', '--fresh', ...set);
  const { ranks: each, seconds, ...trained } = run as unknown as Trained & { ranks: RankReport[]; seconds: number };
  return {
    ...trained,
    peak_rss_mb: Math.max(...each.map((rank) => rank.peak_rss_mb)),
    waiting: each.reduce((sum, { wait_s }) => sum + wait_s, 0) / each.length / seconds,
  };
}

const peerRun = (wrap: string) => (): Measured =>
  torchrun(
    ranks,
    'sharded.py',
    '--model',
    theirs,
    '--batches',
    batches,
    '--wrap',
    wrap,
    '--threads',
    String(threads),
  ) as unknown as Trained;

const sides: Record<string, () => Measured> = {
  'one process': inOneProcess,
  ...Object.fromEntries(stages.map((stage) => [`stage ${stage}`, () => inProcesses(stage)])),
  'PEFT, DDP': peerRun('ddp'),
  'PEFT, FSDP2': peerRun('fsdp'),
};
const rounds: Record<string, Measured>[] = [];
for (let r = 0; r < +args.rounds; r++) {
  const runs: Record<string, Measured> = {};
  for (const [name, run] of Object.entries(sides)) {
    runs[name] = run();
    const { tokens_per_s, peak_rss_mb, waiting } = runs[name];
    const wait = waiting === undefined ? '' : `, ${(100 * waiting).toFixed(0)} % waiting`;
    console.error(
      `round ${r + 1}: ${name}: ${tokens_per_s.toFixed(0)} tokens/s, ${peak_rss_mb.toFixed(0)} MB a process${wait}`,
    );
  }
  rounds.push(runs);
}

const ratio = (a: string, b: string, of: 'tokens_per_s' | 'peak_rss_mb') =>
  median(rounds.map((runs) => runs[a]![of] / runs[b]![of]));
const first = rounds[0]!;
const apart = (name: string) =>
  Math.max(...first[name]!.losses.map((loss, i) => Math.abs(loss / first['one process']!.losses[i]! - 1)));
const bars = stages.flatMap((stage): Bar[] => {
  const [name, other] = [`stage ${stage}`, stage === 3 ? 'PEFT, FSDP2' : 'PEFT, DDP'];
  return [
    { what: `${name}: tokens/s of ${other}`, got: ratio(name, other, 'tokens_per_s'), bar: 2, better: 'more' },
    {
      what: `${name}: peak memory of a process of ${other}`,
      got: ratio(name, other, 'peak_rss_mb'),
      bar: 0.5,
      better: 'less',
    },
    // With more processes than cores, they wait for each other's turn.
    ...(stage < 3 && ranks === 2
      ? [
          {
            what: `${name}: tokens/s of one process`,
            got: ratio(name, 'one process', 'tokens_per_s'),
            bar: 0.8,
            better: 'more' as const,
          },
        ]
      : []),
    ...(stage >= 2 && ranks === 2
      ? [
          {
            what: `${name}: share of time waiting`,
            got: median(rounds.map((runs) => runs[name]!.waiting!)),
            bar: stage === 2 ? 0.15 : 0.35,
            better: 'less' as const,
          },
        ]
      : []),
    { what: `${name}: losses apart from one process, relative`, got: apart(name), bar: 1e-5, better: 'less' },
  ];
});
report('processes', bars, {
  ranks,
  threads,
  rounds: rounds.length,
  losses_of_peer_apart: round(Math.max(apart('PEFT, DDP'), apart('PEFT, FSDP2'))),
  sides: Object.fromEntries(
    Object.keys(sides).map((name) => [
      name,
      {
        tokens_per_s: spread(rounds.map((runs) => runs[name]!.tokens_per_s)),
        peak_rss_mb: spread(rounds.map((runs) => runs[name]!.peak_rss_mb)),
        ...(first[name]!.waiting !== undefined && { waiting: spread(rounds.map((runs) => runs[name]!.waiting!)) }),
      },
    ]),
  ),
});
