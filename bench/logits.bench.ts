/**
 * Logits of the real model compared with those of transformers in float32, and LoRA adapters exchanged between Graft and PEFT.
 *   npm run proof:logits -- [--model FILE.gguf|DIR] [--tokens 512] [--seed 0]
 * Two rows of `tokens` tokens each: a text (the README), and random ids.
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

/** Reads the logits of each row from a safetensors file. */
function readLogits(file: string): Float32Array[] {
  using source = openSafetensors(file);
  return rows.map((row, i) => {
    const logits = new Float32Array(row.length * vocab);
    source.read(`logits.${i}`, new Uint8Array(logits.buffer));
    return logits;
  });
}

/** Returns the largest and the mean difference over all rows, and the largest one relative to the largest logit. */
function difference(a: readonly Float32Array[], b: readonly Float32Array[]) {
  let [max, sum, count, largest] = [0, 0, 0, 0];
  a.forEach((row, r) => {
    for (let i = 0; i < row.length; i++) {
      const absolute = Math.abs(row[i]! - b[r]![i]!);
      max = Math.max(max, absolute);
      largest = Math.max(largest, Math.abs(b[r]![i]!));
      sum += absolute;
      count++;
    }
  });
  return { max, mean: sum / count, relative: max / largest, count };
}

/** Computes the logits with Graft and with the peer, with the same adapter if one is named. */
function logitsOfBoth(adapter?: string) {
  const adapterArgs = adapter ? ['--adapter', adapter] : [];
  const [mine, peers] = [join(dir, 'ours.safetensors'), join(dir, 'theirs.safetensors')];
  graft('logits', '--model', ours, ...adapterArgs, '--ids', ids, '--out', mine, '--json');
  const keys = peer('logits.py', '--model', theirs, ...adapterArgs, '--ids', ids, '--out', peers);
  return { mine: readLogits(mine), peers: readLogits(peers), keys };
}

const plain = logitsOfBoth();
const base = difference(plain.mine, plain.peers);

const batches = writeBatches(dir, { mode: 'ragged', rows: 4, steps: 5, vocab, seed: Number(args.seed) });
graftTrain({ model: ours, batches, dir: join(dir, 'run'), set: ['train.lr=1e-3'] });
const trained = logitsOfBoth(join(dir, 'run', 'adapter'));
const toPeft = difference(trained.mine, trained.peers);
const effect = difference(trained.mine, plain.mine);

const peerAdapter = join(dir, 'peer-adapter');
peer('adapter.py', '--model', theirs, '--out', peerAdapter, '--seed', args.seed);
const loaded = logitsOfBoth(peerAdapter);
const fromPeft = difference(loaded.mine, loaded.peers);
const otherEffect = difference(loaded.mine, plain.mine);

const mismatchedKeys = (keys: Record<string, unknown>) =>
  (keys.missing as string[]).length + (keys.unexpected as string[]).length;
report(
  'logits',
  [
    { what: 'largest difference of a logit', got: base.max, bar: 2e-3, better: 'less' },
    { what: 'mean difference of a logit', got: base.mean, bar: 1e-4, better: 'less' },
    { what: 'adapter of Graft loaded by PEFT: relative difference', got: toPeft.relative, bar: 1e-4, better: 'less' },
    { what: 'adapter of PEFT loaded by Graft: relative difference', got: fromPeft.relative, bar: 1e-4, better: 'less' },
    {
      what: 'missing and unexpected keys',
      got: mismatchedKeys(trained.keys) + mismatchedKeys(loaded.keys),
      bar: 0,
      better: 'less',
    },
    { what: 'relative change that the trained adapter makes', got: effect.relative, bar: 1e-3, better: 'more' },
  ],
  { logits_compared: base.count, keys: trained.keys.keys, base, toPeft, fromPeft, effect, otherEffect },
);
