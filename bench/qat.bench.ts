/**
 * What quantisation-aware training is good for: e-mails are learned as language in float, and with the rounding of each format. Held-out
 * losses of the float model, of that model rounded afterwards, and of the one that was trained rounded, both written in the format and read
 * back; the share of the gap between the first two that training closes. It is a comparison (docs/compare.md) of several seeds.
 *   npm run proof:qat -- [--model FILE.gguf|DIR] [--method full|lora] [--lr 2e-4] [--formats int4,q4_0,int3,int2] [--seeds 3]
 *                        [--train 600] [--held-out 200] [--characters 600] [--epochs 2] [--dir DIR]
 * With --dir a run that was stopped is resumed, and its page of results kept.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { fromWire } from '../src/base/index.ts';
import type { Results } from '../src/compare/index.ts';
import { chooseMails, mailText } from '../tools/fetch/emails.ts';
import { fetchMails, fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { type Bar, graft, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    method: { type: 'string', default: 'full' },
    lr: { type: 'string', default: '2e-4' },
    formats: { type: 'string', default: 'int4,q4_0,int3,int2' },
    seeds: { type: 'string', default: '3' },
    train: { type: 'string', default: '600' },
    'held-out': { type: 'string', default: '200' },
    characters: { type: 'string', default: '600' },
    epochs: { type: 'string', default: '2' },
    dir: { type: 'string' },
  },
});
const dir = args.dir ? resolve(args.dir) : workFolder();
mkdirSync(dir, { recursive: true });
const half = (text: string) => Math.round(Number(text) / 2);
const { train, heldOut } = chooseMails(fetchMails(), { train: half(args.train), heldOut: half(args['held-out']) });
for (const [name, mails] of Object.entries({ train, heldOut }))
  writeFileSync(join(dir, `${name}.jsonl`), mails.map((mail) => `${mailText(mail, +args.characters)}\n`).join(''));

const float =
  args.method === 'lora'
    ? { type: 'lora', r: 16, lora_alpha: 32, target_modules: 'all-linear' }
    : { type: args.method };
const formats = args.formats.split(',');
const seeds = Array.from({ length: +args.seeds }, (_, seed) => seed);
const methods = seeds.flatMap((seed) => [
  [`float ${seed}`, { method: float, train: { seed } }] as const,
  ...formats.flatMap((weight) => {
    const rounded = { to: weight, embedding: 'none', ...(weight.startsWith('int') && { group_size: 32 }) };
    return [
      [`${weight} afterwards ${seed}`, { of: `float ${seed}`, rounded }] as const,
      [`${weight} trained ${seed}`, { method: [float, { type: 'qat', weight }], train: { seed }, rounded }] as const,
    ];
  }),
]);
const comparison = {
  model: args.model ?? fetchSmolLM2(),
  data: { train: join(dir, 'train.jsonl'), eval: join(dir, 'heldOut.jsonl') },
  train: {
    lr: +args.lr,
    schedule: 'cosine',
    warmup_ratio: 0.05,
    batch_size: 8,
    epochs: +args.epochs,
    max_grad_norm: 1,
  },
  run: { dir: join(dir, 'compare') },
  compare: {
    title: `E-mails as language, ${args.method}, rounded after training or in training, SmolLM2-135M-Instruct`,
    metric: 'loss',
    methods: Object.fromEntries(methods),
  },
};
writeFileSync(join(dir, 'compare.json'), JSON.stringify(comparison));
const results = fromWire(graft('compare', join(dir, 'compare.json'), '--json')) as unknown as Results;
if (results.failed.length > 0)
  throw new Error(results.failed.map(({ name, reason }) => `${name}: ${reason}`).join('; '));
const losses = new Map(results.outcomes.map(({ name, metric }) => [name, metric.value]));
const rows = formats.flatMap((format) =>
  seeds.map((seed) => {
    const [float, after, trained] = [`float ${seed}`, `${format} afterwards ${seed}`, `${format} trained ${seed}`].map(
      (name) => losses.get(name)!,
    ) as [number, number, number];
    return { format, seed, float, after, trained, closed: (after - trained) / (after - float) };
  }),
);
const shown = rows.map((row) => ({
  ...row,
  ...Object.fromEntries(
    Object.entries(row).flatMap(([key, x]) => (key !== 'seed' && typeof x === 'number' ? [[key, round(x)]] : [])),
  ),
}));
console.table(shown);
const bars = formats.map((format): Bar => {
  const closed = rows.filter((row) => row.format === format).map((row) => row.closed);
  return {
    what: `${format}: share of the gap that training closes`,
    got: closed.reduce((a, b) => a + b, 0) / closed.length,
    bar: /[23]/.test(format) ? 0.7 : 0.5,
    better: 'more',
  };
});
report('qat', bars, { method: args.method, rows: shown });
