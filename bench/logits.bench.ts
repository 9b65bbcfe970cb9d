/**
 * Logits of the real model against transformers in float32, and a LoRA adapter carried both ways between Graft and PEFT.
 *   npm run proof:logits -- [--model FILE.gguf|DIR] [--tokens 512] [--seed 0]
 * Rows: a text (the README) and random ids, of `tokens` each.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { tokenizerOf } from '../src/data/index.ts';
import { openSafetensors, readJson } from '../src/io/index.ts';
import { bothModels, graft, graftTrain, integers, peer, report, workFolder, writeBatches } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    tokens: { type: 'string', default: '512' },
    seed: { type: 'string', default: '0' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const below = integers(Number(args.seed));
const tokenizer = tokenizerOf(ours);
const text = [...tokenizer.encode(readFileSync(join(packageRoot, 'README.md'), 'utf8'), { addSpecialTokens: false })];
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const length = Number(args.tokens);
const rows = [
  Array.from({ length }, (_, i) => text[i % text.length]!),
  Array.from({ length }, () => 3 + below(vocab - 3)),
];
const ids = join(dir, 'ids.json');
writeFileSync(ids, JSON.stringify(rows));

function read(file: string): Float32Array[] {
  using source = openSafetensors(file);
  return rows.map((row, i) => {
    const logits = new Float32Array(row.length * vocab);
    source.read(`logits.${i}`, new Uint8Array(logits.buffer));
    return logits;
  });
}

/** Largest and mean difference, and the largest as a share of the largest logit, over all rows. */
function compare(a: readonly Float32Array[], b: readonly Float32Array[]) {
  let [max, sum, count, largest] = [0, 0, 0, 0];
  a.forEach((row, r) => {
    for (let i = 0; i < row.length; i++) {
      const difference = Math.abs(row[i]! - b[r]![i]!);
      max = Math.max(max, difference);
      largest = Math.max(largest, Math.abs(b[r]![i]!));
      sum += difference;
      count++;
    }
  });
  return { max, mean: sum / count, relative: max / largest, count };
}

function both(adapter?: string) {
  const on = adapter ? ['--adapter', adapter] : [];
  const [mine, peers] = [join(dir, 'ours.safetensors'), join(dir, 'theirs.safetensors')];
  graft('logits', '--model', ours, ...on, '--ids', ids, '--out', mine, '--json');
  const keys = peer('logits.py', '--model', theirs, ...on, '--ids', ids, '--out', peers);
  return { mine: read(mine), peers: read(peers), keys };
}

const plain = both();
const base = compare(plain.mine, plain.peers);

const batches = writeBatches(dir, { mode: 'ragged', rows: 4, steps: 5, vocab, seed: Number(args.seed) });
graftTrain({ model: ours, batches, dir: join(dir, 'run'), set: ['train.lr=1e-3'] });
const trained = both(join(dir, 'run', 'adapter'));
const toPeft = compare(trained.mine, trained.peers);
const effect = compare(trained.mine, plain.mine);

const made = join(dir, 'made');
peer('adapter.py', '--model', theirs, '--out', made, '--seed', args.seed);
const loaded = both(made);
const fromPeft = compare(loaded.mine, loaded.peers);
const otherEffect = compare(loaded.mine, plain.mine);

const lost = (keys: Record<string, unknown>) =>
  (keys.missing as string[]).length + (keys.unexpected as string[]).length;
report(
  'logits',
  [
    { what: 'largest difference of a logit', got: base.max, bar: 2e-3, better: 'less' },
    { what: 'mean difference of a logit', got: base.mean, bar: 1e-4, better: 'less' },
    { what: 'adapter trained here, in PEFT: relative difference', got: toPeft.relative, bar: 1e-4, better: 'less' },
    { what: 'adapter made by PEFT, here: relative difference', got: fromPeft.relative, bar: 1e-4, better: 'less' },
    { what: 'missing and unexpected keys', got: lost(trained.keys) + lost(loaded.keys), bar: 0, better: 'less' },
    { what: 'relative change that the trained adapter makes', got: effect.relative, bar: 1e-3, better: 'more' },
  ],
  { logits_compared: base.count, keys: trained.keys.keys, base, toPeft, fromPeft, effect, otherEffect },
);
