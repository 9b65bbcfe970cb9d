/**
 * Training speed and peak memory compared with PEFT, and speed as a share of a float32 matmul baseline. Both sides run in their own
 * processes and alternate (A B A B …); ratios are computed within a round, and their medians are reported.
 *   npm run proof:train -- [--model FILE.gguf|DIR] [--rounds 3] [--rows 8] [--steps 6] [--seed 0] [--no-fixed]
 *                          [--precision auto] [--peer-script FILE.py]
 * The baseline: the products that every implementation needs, (4 · linear weights · tokens + 4 · head weights · predicted tokens)
 * FLOP (one product with each frozen weight forward and one backward), at the rate of a float32 product of 1,024 rows measured in the same
 * round.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fromWire } from '../src/base/index.ts';
import { readJson } from '../src/io/index.ts';
import type { TrainEvent } from '../src/train/index.ts';
import {
  bothModels,
  graft,
  graftTrain,
  median,
  peer,
  report,
  spread,
  type Trained,
  workFolder,
  writeBatches,
} from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    rows: { type: 'string', default: '8' },
    steps: { type: 'string', default: '6' },
    seed: { type: 'string', default: '0' },
    'no-fixed': { type: 'boolean', default: false },
    precision: { type: 'string', default: 'auto' },
    'peer-script': { type: 'string', default: 'train.py' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const config = readJson(join(theirs, 'config.json')) as Record<string, number>;
const shape = { vocab: config.vocab_size!, steps: Number(args.steps), seed: Number(args.seed) };
const ragged = writeBatches(dir, { ...shape, mode: 'ragged', rows: Number(args.rows) });
const fixed = writeBatches(dir, { ...shape, mode: 'fixed', rows: 4, steps: Math.min(4, shape.steps) });

/** Returns the FLOP of the products with frozen weights, and the tokens, over all steps but the first. */
function baselineWork(batches: string): { flop: number; tokens: number } {
  const { hidden_size: c, intermediate_size: f, num_hidden_layers: layers, num_attention_heads: heads } = config;
  const kv = config.num_key_value_heads ?? heads!;
  const d = config.head_dim ?? c! / heads!;
  const linear = layers! * (2 * c! * heads! * d + 2 * c! * kv * d + 3 * c! * f!);
  const head = c! * config.vocab_size!;
  const rows = readFileSync(batches, 'utf8')
    .trim()
    .split('\n')
    .slice(1)
    .flatMap((line) => (JSON.parse(line) as { rows: { ids: number[]; labels: number[] }[] }).rows);
  const tokens = rows.reduce((sum, row) => sum + row.ids.length, 0);
  const predicted = rows.reduce((sum, row) => sum + row.labels.slice(1).filter((l) => l >= 0).length, 0);
  return { flop: 4 * linear * tokens + 4 * head * predicted, tokens };
}

const sides = [
  { name: 'graft, ragged', batches: ragged, quantize: 'none' },
  { name: 'graft, ragged, packed', batches: ragged, quantize: 'keep' },
  { name: 'peft, ragged', batches: ragged },
  ...(args['no-fixed']
    ? []
    : [
        { name: 'graft, fixed', batches: fixed, quantize: 'none' },
        { name: 'peft, fixed', batches: fixed },
      ]),
].filter(({ quantize }) => quantize !== 'keep' || ours.endsWith('.gguf'));

const set = [`train.precision=${args.precision}`];
const rounds: { runs: Record<string, Trained & { share: number }>; gemm: number[] }[] = [];
const weightBytes: Record<string, number> = {};
for (let r = 0; r < Number(args.rounds); r++) {
  const runs: Record<string, Trained & { share: number }> = {};
  const rates: number[] = [];
  const gemm = () => {
    const { gemm } = graft('doctor', '--json') as { gemm: { float32: number } };
    rates.push(gemm.float32);
    return gemm.float32;
  };
  for (const { name, batches, quantize } of sides) {
    const { flop, tokens } = baselineWork(batches);
    if (!quantize) {
      const run = peer(args['peer-script'], '--model', theirs, '--batches', batches) as unknown as Trained;
      runs[name] = { ...run, share: 0 };
    } else {
      const before = gemm();
      const out = join(dir, `run-${name.replaceAll(/\W+/g, '-')}`);
      const run = graftTrain({ model: ours, batches, dir: out, quantize, set });
      const rate = (1e9 * (before + gemm())) / 2;
      runs[name] = { ...run, share: (run.tokens_per_s * flop) / tokens / rate };
      const [first] = readFileSync(join(out, 'events.jsonl'), 'utf8').split('\n', 1);
      weightBytes[name] = (fromWire(JSON.parse(first!)) as Extract<TrainEvent, { type: 'start' }>).weightBytes;
    }
    const { tokens_per_s, peak_rss_mb, share } = runs[name];
    const baseline = share ? `, ${share.toFixed(2)} of the baseline` : '';
    console.error(
      `round ${r + 1}: ${name}: ${tokens_per_s.toFixed(0)} tokens/s, peak ${peak_rss_mb.toFixed(0)} MB${baseline}`,
    );
  }
  rounds.push({ runs, gemm: rates });
}

const ratio = (a: string, b: string, of: 'tokens_per_s' | 'peak_rss_mb') =>
  median(rounds.map(({ runs }) => runs[a]![of] / runs[b]![of]));
const [mine, packed] = ['graft, ragged', 'graft, ragged, packed'];
const speed = ratio(mine, 'peft, ragged', 'tokens_per_s');
const share = median(rounds.map(({ runs }) => runs[mine]!.share));
const memory = ratio(mine, 'peft, ragged', 'peak_rss_mb');
report(
  'train',
  [
    { what: 'ragged: tokens/s compared with PEFT', got: speed, bar: 2.5, better: 'more' },
    { what: 'ragged: share of a float32 matmul baseline', got: share, bar: 0.7, better: 'more' },
    { what: 'ragged: peak memory compared with PEFT', got: memory, bar: 0.25, better: 'less' },
    ...(weightBytes[packed]
      ? [
          {
            what: 'packed weights: tokens/s compared with float32',
            got: ratio(packed, mine, 'tokens_per_s'),
            bar: 0.85,
            better: 'more' as const,
          },
          {
            what: 'packed weights: bytes compared with float32',
            got: weightBytes[packed] / weightBytes[mine]!,
            bar: 0.25,
            better: 'less' as const,
          },
        ]
      : []),
    ...(args['no-fixed']
      ? []
      : [
          {
            what: 'fixed 256-token rows: tokens/s compared with PEFT',
            got: ratio('graft, fixed', 'peft, fixed', 'tokens_per_s'),
            bar: 1.5,
            better: 'more' as const,
          },
        ]),
  ],
  {
    rounds: rounds.length,
    precision: args.precision,
    gemm_gflops: spread(rounds.flatMap(({ gemm }) => gemm)),
    weight_bytes: weightBytes,
    sides: Object.fromEntries(
      sides.map(({ name, quantize }) => [
        name,
        {
          tokens_per_s: spread(rounds.map(({ runs }) => runs[name]!.tokens_per_s)),
          peak_rss_mb: spread(rounds.map(({ runs }) => runs[name]!.peak_rss_mb)),
          ...(quantize && { share_of_floor: spread(rounds.map(({ runs }) => runs[name]!.share)) }),
        },
      ]),
    ),
  },
);
