/**
 * A long run on ragged rows: resident memory after the last step compared with step 20, and live tensor handles after every step.
 *   npm run proof:steady -- [--model FILE.gguf|DIR] [--steps 200] [--rows 2] [--seed 0] [--quantize none]
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fromWire } from '../src/base/index.ts';
import { readJson } from '../src/io/index.ts';
import type { TrainEvent } from '../src/train/index.ts';
import { bothModels, graftTrain, report, round, workFolder, writeBatches } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    steps: { type: 'string', default: '200' },
    rows: { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
    quantize: { type: 'string', default: 'none' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const [steps, rows, seed] = [Number(args.steps), Number(args.rows), Number(args.seed)];
const batches = writeBatches(dir, { mode: 'ragged', rows, steps, vocab, seed });
graftTrain({ model: ours, batches, dir: join(dir, 'run'), quantize: args.quantize });
const events = readFileSync(join(dir, 'run', 'events.jsonl'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => fromWire(JSON.parse(line)) as TrainEvent)
  .filter((event) => event.type === 'step');
const [early, late] = [events[19]!.rssMb, events.at(-1)!.rssMb];
const handles = events.map((event) => event.handles);
report(
  'steady',
  [
    { what: 'steps', got: events.length, bar: steps, better: 'more' },
    {
      what: 'memory after the last step, relative change from step 20',
      got: Math.abs(late / early - 1),
      bar: 0.02,
      better: 'less',
    },
    {
      what: 'tensor handles, maximum minus minimum',
      got: Math.max(...handles) - Math.min(...handles),
      bar: 0,
      better: 'less',
    },
  ],
  { rss_mb: [20, 50, 100, 150, 200].map((n) => round(events[n - 1]?.rssMb ?? 0)), handles: handles[0] },
);
