/**
 * What kept activations save: e-mails are classified in words by LoRA on the last third of the blocks, or by training these whole, three
 * epochs, with `train.keep_activations` and without, in turn. Seconds of each epoch, and whether every loss is equal bit for bit. Beside them the
 * first epoch of a run of one epoch, which computes rows in micro-batches and not one at a time.
 *   npm run proof:kept -- [--model FILE.gguf|DIR] [--method lora|full] [--train 200] [--layers 10] [--rounds 2] [--threads 2]
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fromWire } from '../src/base/index.ts';
import type { TrainEvent } from '../src/train/index.ts';
import { chooseMails, mailRow } from '../tools/fetch/emails.ts';
import { fetchMails, fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { graft, median, report, round, spread, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    method: { type: 'string', default: 'lora' },
    train: { type: 'string', default: '200' },
    layers: { type: 'string', default: '10' },
    rounds: { type: 'string', default: '2' },
    threads: { type: 'string', default: '2' },
  },
});
const model = args.model ?? fetchSmolLM2();
const dir = workFolder();
const rows = join(dir, 'train.jsonl');
const mails = chooseMails(fetchMails(), { train: Math.round(Number(args.train) / 2), heldOut: 0 });
writeFileSync(rows, mails.train.map((mail) => `${mailRow(mail)}\n`).join(''));
const blocks = 30;
const layers = Number(args.layers);
const lora = {
  type: 'lora',
  r: 8,
  target_modules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
  layers_to_transform: Array.from({ length: layers }, (_, i) => blocks - layers + i),
};
const method = args.method === 'full' ? [{ type: 'full' }, { type: 'layerwise', policy: 'last', layers }] : lora;

interface Measured {
  readonly losses: readonly number[];
  /** Seconds of all steps of each epoch. */
  readonly epochs: readonly number[];
  readonly start: Extract<TrainEvent, { type: 'start' }>;
  readonly tokens: number;
}

function train(name: string, settings: object): Measured {
  const recipe = {
    model,
    method,
    data: { train: rows },
    train: { lr: 2e-4, batch_size: 8, epochs: 3, threads: Number(args.threads), ...settings },
    run: { dir: join(dir, name), checkpoint_every: 1e6 },
  };
  writeFileSync(join(dir, `${name}.json`), JSON.stringify(recipe));
  const { losses } = graft('train', join(dir, `${name}.json`), '--json') as { losses: number[] };
  const lines = readFileSync(join(dir, name, 'events.jsonl'), 'utf8')
    .trim()
    .split('\n');
  const events = lines.map((line) => fromWire(JSON.parse(line)) as TrainEvent);
  const steps = events.filter((event) => event.type === 'step');
  const byEpoch = Map.groupBy(steps, ({ epoch }) => Math.ceil(epoch - 1e-9));
  const epochs = [...byEpoch.values()].map((list) => list.reduce((sum, { seconds }) => sum + seconds, 0));
  const tokens = byEpoch.get(1)!.reduce((sum, each) => sum + each.tokens, 0);
  console.error(`${name}: ${epochs.map((seconds) => seconds.toFixed(1)).join(', ')} s an epoch`);
  return { losses, epochs, start: events.find((event) => event.type === 'start')!, tokens };
}

const [kept, without, packed]: Measured[][] = [[], [], []];
for (let i = 0; i < Number(args.rounds); i++) {
  without!.push(train(`without-${i}`, { keep_activations: false }));
  kept!.push(train(`kept-${i}`, {}));
  packed!.push(train(`micro-batches-${i}`, { epochs: 1 }));
}
const later = ({ epochs }: Measured) => epochs.slice(1).reduce((sum, seconds) => sum + seconds, 0);
const ratios = kept!.map((run, i) => later(without![i]!) / later(run));
const all = [...without!, ...kept!];
const different = all.flatMap(({ losses }) => losses.filter((loss, i) => !Object.is(loss, all[0]!.losses[i])));
const first = (runs: readonly Measured[]) => median(runs.map(({ epochs }) => epochs[0]!));
const { start, tokens } = kept![0]!;
report(
  'kept',
  [
    { what: 'epochs 2 and 3, times as fast as without', got: median(ratios), bar: 1.8, better: 'more' },
    { what: 'losses that differ', got: different.length, bar: 0, better: 'less' },
    { what: 'losses compared', got: kept![0]!.losses.length * all.length, bar: 100, better: 'more' },
  ],
  {
    ratio: spread(ratios),
    seconds_an_epoch: {
      kept: kept!.map(({ epochs }) => epochs.map(round)),
      without: without!.map(({ epochs }) => epochs.map(round)),
      micro_batches: packed!.map(({ epochs }) => epochs.map(round)),
    },
    later_epochs_against_micro_batches: round((2 * first(packed!)) / median(kept!.map(later))),
    first_epoch_a_row_at_a_time: round(first(without!) / first(packed!)),
    fixed_blocks: start.fixedBlocks,
    kept_mb: round(start.keptBytes! / 1e6),
    mean_tokens_of_a_row: round(tokens / start.rows),
    precision: start.precision,
  },
);
