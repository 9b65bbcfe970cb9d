/**
 * Training speed and peak memory of each method compared with PEFT, on the same ragged rows, alternating.
 *   npm run proof:methods -- [--model FILE.gguf|DIR] [--methods lora,dora,adalora,ia3,prefix,prompt,p-tuning] [--rounds 2] [--rows 8]
 *                            [--steps 4] [--seed 0] [--peer-script FILE.py]
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

const lowRank = { type: 'lora', r: 8, lora_alpha: 16, target_modules: 'all-linear' };
const methods: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  lora: lowRank,
  dora: { ...lowRank, use_dora: true },
  adalora: { type: 'adalora', init_r: 12, target_r: 8, target_modules: 'all-linear' },
  ia3: { type: 'ia3' },
  prefix: { type: 'prefix', num_virtual_tokens: 20 },
  prompt: { type: 'prompt', num_virtual_tokens: 20 },
  'p-tuning': { type: 'p-tuning', num_virtual_tokens: 20, encoder_hidden_size: 128 },
  full: { type: 'full' },
};

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    methods: { type: 'string', default: 'lora,dora,adalora,ia3,prefix,prompt,p-tuning' },
    rounds: { type: 'string', default: '2' },
    rows: { type: 'string', default: '8' },
    steps: { type: 'string', default: '4' },
    seed: { type: 'string', default: '0' },
    'peer-script': { type: 'string', default: 'train.py' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const [rows, steps, seed] = [Number(args.rows), Number(args.steps), Number(args.seed)];
const batches = writeBatches(dir, { mode: 'ragged', rows, steps, vocab, seed });

const bars: Bar[] = [];
const details: Record<string, object> = {};
for (const name of args.methods.split(',')) {
  const method = methods[name];
  if (!method) throw new Error(`the method ${name} was not found; choose from ${Object.keys(methods).join(', ')}`);
  const rounds = Array.from({ length: Number(args.rounds) }, (_, r) => {
    const mine = graftTrain({ model: ours, batches, dir: join(dir, name), method });
    const options = ['--model', theirs, '--batches', batches, '--method', name];
    const peers = peer(args['peer-script'], ...options) as unknown as Trained;
    const [a, b] = [mine, peers].map((x) => `${x.tokens_per_s.toFixed(0)} tokens/s, ${x.peak_rss_mb.toFixed(0)} MB`);
    console.error(`${name}, round ${r + 1}: ${a}; PEFT ${b}`);
    return { mine, peers };
  });
  const ratio = (of: 'tokens_per_s' | 'peak_rss_mb') => median(rounds.map(({ mine, peers }) => mine[of] / peers[of]));
  bars.push({ what: `${name}: tokens/s compared with PEFT`, got: ratio('tokens_per_s'), bar: 2, better: 'more' });
  bars.push({ what: `${name}: peak memory compared with PEFT`, got: ratio('peak_rss_mb'), bar: 0.3, better: 'less' });
  details[name] = {
    tokens_per_s: spread(rounds.map(({ mine }) => mine.tokens_per_s)),
    peer_tokens_per_s: spread(rounds.map(({ peers }) => peers.tokens_per_s)),
    peak_rss_mb: spread(rounds.map(({ mine }) => mine.peak_rss_mb)),
    peer_peak_rss_mb: spread(rounds.map(({ peers }) => peers.peak_rss_mb)),
  };
}
report('methods', bars, { rounds: Number(args.rounds), methods: details });
