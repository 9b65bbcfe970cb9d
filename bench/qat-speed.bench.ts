/**
 * Training speed and peak memory of LoRA with quantisation-aware training, compared in turn with LoRA alone, and with PEFT on torchao's
 * fake-quantised layers (int4, groups of 32), on the same rows.
 *   npm run proof:qat-speed -- [--model FILE.gguf|DIR] [--formats q4_0,int4,q8_0,q4_k] [--rounds 3] [--rows 8] [--steps 4] [--seed 0]
 * The format `base` is `over: base` in q4_0 on the packed base.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { readJson } from '../src/io/index.ts';
import {
  type Bar,
  bothModels,
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
    formats: { type: 'string', default: 'q4_0,int4,q8_0,q4_k' },
    rounds: { type: 'string', default: '3' },
    rows: { type: 'string', default: '8' },
    steps: { type: 'string', default: '4' },
    seed: { type: 'string', default: '0' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const batches = writeBatches(dir, {
  mode: 'ragged',
  rows: Number(args.rows),
  steps: Number(args.steps),
  vocab,
  seed: Number(args.seed),
});
const lora = 'method=[{type: lora, r: 8, lora_alpha: 16, target_modules: all-linear}';
const methods: Record<string, string> = { lora: `${lora}]` };
// Blocks of 256 do not divide SmolLM2's width of 576; its second MLP layer is 1536 wide.
for (const format of args.formats.split(',')) {
  const targets = format.endsWith('_k') ? ', target_modules: [down_proj]' : '';
  methods[format] = `${lora}, {type: qat, weight: ${format}${targets}}]`;
}
methods.base = `${lora}, {type: qat, weight: q4_0, over: base}]`;

const runs: Record<string, Trained[]> = Object.fromEntries(Object.keys(methods).map((name) => [name, []]));
const peerRuns: Trained[] = [];
const told = (name: string, { tokens_per_s, peak_rss_mb }: Trained) =>
  console.error(`${name}: ${tokens_per_s.toFixed(0)} tokens/s, ${peak_rss_mb.toFixed(0)} MB`);
for (let round = 0; round < Number(args.rounds); round++) {
  for (const [name, method] of Object.entries(methods)) {
    const trained = graftTrain({ model: ours, batches, dir: join(dir, name), set: [method] });
    runs[name]!.push(trained);
    told(name, trained);
    if (name === 'int4') {
      const options = ['--model', theirs, '--batches', batches, '--threads', '2', '--qat', 'int4'];
      peerRuns.push(peer('train.py', ...options) as unknown as Trained);
      told('torchao and PEFT, int4', peerRuns.at(-1)!);
    }
  }
}
const ratios = (name: string, of: (run: Trained) => number) =>
  runs[name]!.map((run, i) => of(run) / of(runs.lora![i]!));
const bars: Bar[] = [];
const details: Record<string, object> = {};
for (const name of Object.keys(methods).filter((each) => each !== 'lora')) {
  const speed = ratios(name, (run) => run.tokens_per_s);
  details[name] = { speed: spread(speed), memory: spread(ratios(name, (run) => run.peak_rss_mb)) };
  const bar = name === 'base' ? 0.95 : name.endsWith('_k') ? 0 : 0.8;
  bars.push({ what: `${name}: tokens/s of LoRA's`, got: median(speed), bar, better: 'more' });
}
if (peerRuns.length > 0) {
  const ofPeer = (of: (run: Trained) => number) => peerRuns.map((run, i) => of(runs.int4![i]!) / of(run));
  const [speed, memory] = [ofPeer((run) => run.tokens_per_s), ofPeer((run) => run.peak_rss_mb)];
  details.peer = { speed: spread(speed), memory: spread(memory) };
  bars.push({ what: "int4: tokens/s of torchao's and PEFT's", got: median(speed), bar: 2.5, better: 'more' });
  bars.push({ what: 'int4: memory of theirs', got: median(memory), bar: 0.25, better: 'less' });
}
report('qat-speed', bars, details);
