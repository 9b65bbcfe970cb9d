/**
 * What quantisation-aware training is good for: e-mails as language are learned with LoRA in float, and with the rounding of each
 * format. Held-out losses of the float model, of the float model rounded afterwards, and of the one that was trained rounded; the
 * share of the gap between the first two that training closes.
 *   npm run proof:qat -- [--model FILE.gguf|DIR] [--formats int4,q4_0,int3,int2] [--seeds 3] [--train 600] [--held-out 200] [--epochs 2]
 * A rounded model is measured as its adapter with the settings of the rounding: the same numbers as merged and written in the format.
 */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chooseMails } from '../tools/fetch/emails.ts';
import { fetchMails, fetchSmolLM2, type Mail } from '../tools/fetch/fetch.ts';
import { type Bar, graft, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    formats: { type: 'string', default: 'int4,q4_0,int3,int2' },
    seeds: { type: 'string', default: '3' },
    train: { type: 'string', default: '600' },
    'held-out': { type: 'string', default: '200' },
    epochs: { type: 'string', default: '2' },
  },
});
const model = args.model ?? fetchSmolLM2();
const dir = workFolder();
const half = (text: string) => Math.round(Number(text) / 2);
const mails = chooseMails(fetchMails(), { train: half(args.train), heldOut: half(args['held-out']) });
for (const [name, list] of Object.entries(mails) as [string, Mail[]][]) {
  const text = (mail: Mail) => `${mail.subject}\n${mail.body}`.slice(0, 600);
  writeFileSync(join(dir, `${name}.jsonl`), list.map((mail) => `${JSON.stringify({ text: text(mail) })}\n`).join(''));
}

const lora = { type: 'lora', r: 16, lora_alpha: 32, target_modules: 'all-linear' };
const rounding = (format: string) => ({ type: 'qat', weight: format });

/** Trains with a list of methods; returns the adapter. */
function train(name: string, method: readonly object[], seed: number): string {
  const recipe = {
    model,
    method,
    data: { train: join(dir, 'train.jsonl') },
    train: { lr: 5e-4, schedule: 'cosine', warmup_ratio: 0.05, batch_size: 8, epochs: Number(args.epochs), seed },
    run: { dir: join(dir, name) },
  };
  writeFileSync(join(dir, `${name}.json`), JSON.stringify(recipe));
  return (graft('train', join(dir, `${name}.json`), '--json') as { adapter: string }).adapter;
}

/** The loss on the held-out e-mails, a token. */
const heldOutLoss = (adapter: string): number =>
  (
    graft(
      'eval',
      '--model',
      model,
      '--quantize',
      'none',
      '--adapter',
      adapter,
      '--data',
      join(dir, 'heldOut.jsonl'),
      '--json',
    ) as {
      loss: number;
    }
  ).loss;

/** A copy of an adapter that was trained in float, rounded. */
function rounded(adapter: string, name: string, format: string): string {
  const copy = join(dir, name);
  mkdirSync(copy);
  cpSync(adapter, copy, { recursive: true });
  writeFileSync(join(copy, 'graft.json'), JSON.stringify({ settings: [rounding(format)] }));
  return copy;
}

const results: Record<string, { float: number; after: number; trained: number; closed: number }[]> = {};
for (let seed = 0; seed < Number(args.seeds); seed++) {
  const floatAdapter = train(`float-${seed}`, [lora], seed);
  const float = heldOutLoss(floatAdapter);
  for (const format of args.formats.split(',')) {
    const after = heldOutLoss(rounded(floatAdapter, `${format}-after-${seed}`, format));
    const trained = heldOutLoss(train(`${format}-${seed}`, [lora, rounding(format)], seed));
    const closed = (after - trained) / (after - float);
    results[format] = [...(results[format] ?? []), { float, after, trained, closed }];
    console.error(
      `seed ${seed}, ${format}: float ${float.toFixed(4)}, rounded afterwards ${after.toFixed(4)}, trained rounded ${trained.toFixed(4)}: ${(100 * closed).toFixed(0)} % of the gap closed`,
    );
  }
}
const mean = (list: readonly number[]) => list.reduce((a, b) => a + b, 0) / list.length;
const bars = Object.entries(results).map(
  ([format, list]): Bar => ({
    what: `${format}: share of the gap that training closes`,
    got: mean(list.map(({ closed }) => closed)),
    bar: /[23]/.test(format) ? 0.7 : 0.5,
    better: 'more',
  }),
);
const rounds = (list: readonly Record<string, number>[]) =>
  list.map((each) => Object.fromEntries(Object.entries(each).map(([key, value]) => [key, round(value)])));
report('qat', bars, Object.fromEntries(Object.entries(results).map(([format, list]) => [format, rounds(list)])));
