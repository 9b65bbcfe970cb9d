/**
 * The losses of Graft and of PEFT at each step, starting from the same adapter, on the same batches.
 *   npm run proof:curve -- [--model FILE.gguf|DIR] [--steps 20] [--rows 4] [--seed 0] [--peer-script FILE.py]
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { readJson } from '../src/io/index.ts';
import { bothModels, graftTrain, peer, report, round, type Trained, workFolder, writeBatches } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    steps: { type: 'string', default: '20' },
    rows: { type: 'string', default: '4' },
    seed: { type: 'string', default: '0' },
    'peer-script': { type: 'string', default: 'train.py' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const [steps, rows, seed] = [Number(args.steps), Number(args.rows), Number(args.seed)];
const batches = writeBatches(dir, { mode: 'ragged', rows, steps, vocab, seed });
const start = join(dir, 'start');
peer('adapter.py', '--model', theirs, '--out', start, '--seed', args.seed);
const mine = graftTrain({ model: ours, batches, dir: join(dir, 'run'), adapter: start });
const peers = peer(
  args['peer-script'],
  '--model',
  theirs,
  '--batches',
  batches,
  '--adapter',
  start,
) as unknown as Trained;
const differences = mine.losses.map((loss, i) => Math.abs(loss - peers.losses[i]!) / peers.losses[i]!);
mine.losses.forEach((loss, i) => {
  console.log(
    `step ${i + 1}: ${loss.toFixed(6)} Graft, ${peers.losses[i]!.toFixed(6)} PEFT, relative difference ${differences[i]!.toExponential(1)}`,
  );
});
report(
  'curve',
  [
    { what: 'largest relative difference of a loss', got: Math.max(...differences), bar: 1e-3, better: 'less' },
    { what: 'steps compared', got: Math.min(mine.losses.length, peers.losses.length), bar: steps, better: 'more' },
  ],
  { losses: mine.losses, peer_losses: peers.losses, relative: differences.map(round) },
);
