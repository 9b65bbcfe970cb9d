/**
 * Peak memory of full fine-tuning with each optimizer, and with methods that train some layers at a time, compared with AdamW's.
 *   npm run proof:optimizers -- [--model FILE.gguf|DIR] [--only lomo,adalomo] [--rows 2] [--steps 4] [--seed 0] [--no-gradient-checkpointing]
 * Each run is a process of its own on the same ragged rows, with gradient checkpointing unless it is turned off. A peak is the largest resident
 * memory of the process from its start to its result (loading, steps, a checkpoint, saving), less that of an idle process: one with a session
 * whose engine has started and measured the processor, and that has loaded nothing.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { GraftError } from '../src/base/index.ts';
import { readJson } from '../src/io/index.ts';
import { Session } from '../src/session/index.ts';
import { type Bar, bothModels, graftTrain, report, round, workFolder, writeBatches } from './support.ts';

/** A way of training all weights: fields of a recipe, and the bar of its peak as a share of AdamW's. */
interface Contender {
  readonly optimizer?: Readonly<Record<string, unknown>>;
  /** Default: full. */
  readonly method?: readonly Readonly<Record<string, unknown>>[];
  readonly bar?: number;
}

const inTurn = (fields: object) => [{ type: 'full' }, { type: 'layerwise', ...fields }];

const contenders: Readonly<Record<string, Contender>> = {
  adamw: {},
  adamw8bit: { optimizer: { type: 'adamw8bit' } },
  galore: { optimizer: { type: 'galore', update_proj_gap: 2 } },
  lisa: { method: inTurn({ policy: 'lisa', layers: 2, every: 2 }) },
  badam: { method: inTurn({ policy: 'badam', every: 2 }), bar: 0.55 },
  lomo: { optimizer: { type: 'lomo' }, bar: 0.4 },
  adalomo: { optimizer: { type: 'adalomo' } },
};

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    only: { type: 'string', default: Object.keys(contenders).join() },
    rows: { type: 'string', default: '2' },
    steps: { type: 'string', default: '4' },
    seed: { type: 'string', default: '0' },
    'no-gradient-checkpointing': { type: 'boolean', default: false },
    idle: { type: 'boolean', default: false },
  },
});

/** Resident memory of this process in MiB, once the engine of a session has started. */
async function idleMemory(): Promise<number> {
  await using session = new Session();
  await session.doctor();
  return process.memoryUsage.rss() / 2 ** 20;
}

function measure(): void {
  const chosen = args.only.split(',').filter((name) => name !== 'adamw');
  const unknown = chosen.find((name) => !(name in contenders));
  if (unknown !== undefined) {
    const hint = `Those known: ${Object.keys(contenders).join(', ')}`;
    throw new GraftError('usage', `--only: there is no '${unknown}'`, { hint });
  }
  const { stdout } = spawnSync(process.execPath, [import.meta.filename, '--idle'], { encoding: 'utf8' });
  const idle = Number(stdout);
  const { ours, theirs } = bothModels(args.model);
  const dir = workFolder();
  const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
  const [rows, steps, seed] = [Number(args.rows), Number(args.steps), Number(args.seed)];
  const batches = writeBatches(dir, { mode: 'ragged', rows, steps, vocab, seed });
  const checkpointing = !args['no-gradient-checkpointing'];

  const runs = ['adamw', ...chosen].map((name) => {
    const { optimizer = { type: 'adamw' }, method = [{ type: 'full' }] } = contenders[name]!;
    const set = Object.entries({ 'train.optimizer': optimizer, method, 'train.gradient_checkpointing': checkpointing });
    const trained = graftTrain({
      model: ours,
      batches,
      dir: join(dir, name),
      set: set.map(([field, value]) => `${field}=${JSON.stringify(value)}`),
    });
    console.error(`${name}: ${round(trained.peak_rss_mb)} MiB`);
    return { name, peak: trained.peak_rss_mb - idle, tokensPerSecond: trained.tokens_per_s, losses: trained.losses };
  });
  const [{ peak: ofAdamW }] = runs as [(typeof runs)[0]];
  const table = runs.map(({ peak, ...run }) => ({ ...run, peak_mib: round(peak), of_adamw: round(peak / ofAdamW) }));
  console.log('optimizer            peak above idle, MiB   of AdamW’s   tokens/s');
  for (const { name, peak_mib, of_adamw, tokensPerSecond } of table) {
    const cells = [
      String(peak_mib).padStart(20),
      String(of_adamw).padStart(12),
      tokensPerSecond.toFixed(0).padStart(10),
    ];
    console.log(`${name.padEnd(20)} ${cells.join(' ')}`);
  }
  const bars = table.flatMap(({ name, of_adamw }): Bar[] => {
    const { bar } = contenders[name]!;
    return bar === undefined ? [] : [{ what: `${name}: peak memory of AdamW's`, got: of_adamw, bar, better: 'less' }];
  });
  report('optimizers', bars, {
    idle_mib: round(idle),
    rows,
    steps,
    gradient_checkpointing: checkpointing,
    runs: table,
  });
}

if (args.idle) console.log(await idleMemory());
else measure();
