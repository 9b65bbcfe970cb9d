/**
 * A run that is killed with SIGKILL at random moments and resumed, compared with the same run never killed: losses and adapter must
 * be equal bit for bit. After every kill, each file under the final name of a checkpoint or of the adapter must be complete.
 *   npm run proof:resume -- [--model FILE.gguf|DIR] [--kills 5] [--steps 30] [--seed 0]
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { openSafetensors, readJson } from '../src/io/index.ts';
import { bothModels, graftTrain, integers, report, workFolder, writeBatches, writeRecipe } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    kills: { type: 'string', default: '5' },
    steps: { type: 'string', default: '30' },
    seed: { type: 'string', default: '0' },
  },
});
const { ours, theirs } = bothModels(args.model);
const dir = workFolder();
const { vocab_size: vocab } = readJson(join(theirs, 'config.json')) as { vocab_size: number };
const [steps, kills, seed] = [Number(args.steps), Number(args.kills), Number(args.seed)];
const batches = writeBatches(dir, { mode: 'ragged', rows: 1, steps, vocab, seed });
const set = ['method.lora_dropout=0.1', 'train.schedule=cosine', 'train.warmup_steps=3', 'run.checkpoint_every=1'];
const uninterrupted = graftTrain({ model: ours, batches, dir: join(dir, 'uninterrupted'), set });

const out = join(dir, 'killed');
const recipe = writeRecipe({ model: ours, batches, dir: out });
const command = [join(packageRoot, 'bin', 'graft.js'), 'train', recipe, '--json', ...set.flatMap((s) => ['--set', s])];

/** Reads all files of finished checkpoints, and of the adapter if there is one. Returns how many. */
function readFinishedFiles(): number {
  const checkpoints = join(out, 'checkpoints');
  const folders = existsSync(checkpoints) ? readdirSync(checkpoints).filter((name) => !name.startsWith('.')) : [];
  const files = folders.flatMap((name) =>
    ['parameters.safetensors', 'optimizer.safetensors', 'state.json'].map((file) => join(checkpoints, name, file)),
  );
  if (existsSync(join(out, 'adapter'))) files.push(join(out, 'adapter', 'adapter_model.safetensors'));
  for (const file of files) {
    if (file.endsWith('.json')) readJson(file);
    else {
      using source = openSafetensors(file);
      for (const [name, { bytes }] of source.entries) source.read(name, new Uint8Array(bytes));
    }
  }
  return files.length;
}

const below = integers(seed + Date.now());
const killedAt: number[] = [];
let filesRead = 0;
while (killedAt.length < kills) {
  const child = spawn(process.execPath, command, { stdio: 'ignore', cwd: packageRoot });
  const ended = new Promise<boolean>((resolve) => child.once('exit', (_, signal) => resolve(signal === 'SIGKILL')));
  // Not before the first step of this process: otherwise no training would be interrupted.
  const log = join(out, 'events.jsonl');
  const stepsDone = () => (existsSync(log) ? readFileSync(log, 'utf8').split('"type":"step"').length - 1 : 0);
  const before = stepsDone();
  while (child.exitCode === null && stepsDone() <= before) await setTimeout(20);
  await setTimeout(below(3000));
  child.kill('SIGKILL');
  if (!(await ended)) throw new Error(`the run ended before it was killed ${kills} times: give it more --steps`);
  killedAt.push(stepsDone());
  filesRead += readFinishedFiles();
  console.error(`killed after step ${killedAt.at(-1)}`);
}
const resumed = graftTrain({ model: ours, batches, dir: out, set, resume: true });

const different = uninterrupted.losses.filter((loss, i) => !Object.is(loss, resumed.losses[i])).length;
const bytes = (run: string) => readFileSync(join(dir, run, 'adapter', 'adapter_model.safetensors'));
report(
  'resume',
  [
    { what: 'losses that differ', got: different, bar: 0, better: 'less' },
    {
      what: 'losses compared',
      got: Math.min(uninterrupted.losses.length, resumed.losses.length),
      bar: steps,
      better: 'more',
    },
    {
      what: 'bytes of the adapter that differ',
      got: Buffer.compare(bytes('uninterrupted'), bytes('killed')),
      bar: 0,
      better: 'less',
    },
    { what: 'kills', got: killedAt.length, bar: kills, better: 'more' },
  ],
  { killed_after_steps: killedAt, files_found_whole: filesRead, resumed_from: resumed.resumed_from },
);
