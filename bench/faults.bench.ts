/**
 * What can happen to a run at night: it is killed at random moments (100 times, over four recipes), the disk fills up (at 20
 * sizes), becomes read-only, the directory is removed, the clock is set back, two runs race for one directory. Afterwards every run
 * must have the losses of the run that nothing happened to, bit for bit; no adapter, model or checkpoint may ever be half-written;
 * and whatever ends with an error says so in one sentence.
 *   npm run proof:faults -- [--kills 100] [--seed N]
 * The models are tiny, so that what is tried is loading, saving and resuming. It runs in a user namespace of its own, where it may
 * mount small disks.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { openSafetensors, readJson } from '../src/io/index.ts';
import { golden } from '../test/support.ts';
import { type Bar, integers, report, workFolder } from './support.ts';

const inside = 'GRAFT_FAULTS_INSIDE';
if (!process.env[inside]) {
  const command = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const { status } = spawnSync('unshare', ['-Urm', ...command], {
    stdio: 'inherit',
    env: { ...process.env, [inside]: '1' },
  });
  process.exit(status ?? 1);
}

const { values: args } = parseArgs({
  options: {
    kills: { type: 'string', default: '100' },
    seed: { type: 'string', default: String(Date.now() % 1e6) },
  },
});
const [kills, seed] = [Number(args.kills), Number(args.seed)];
/** Steps of a run that one thing happens to, and of one that is killed again and again. */
const [steps, manySteps] = [400, 1000 + 60 * kills];
const below = integers(seed);
const folder = workFolder();
const entry = join(packageRoot, 'bin', 'graft.js');

const rows = (modulus: number) => {
  const file = join(folder, `rows-${modulus}.jsonl`);
  const row = (r: number) => Array.from({ length: 4 + ((r * 11) % 27) }, (_, i) => 3 + ((r * 13 + i * modulus) % 60));
  writeFileSync(file, Array.from({ length: 48 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
  return file;
};
const data = (modulus = 7) => ({ train: rows(modulus), format: 'tokens', held_out: 6 });
const settings = { lr: 1e-3, batch_size: 4, micro_tokens: 64, threads: 1 };
const run = { checkpoint_every: 20 };

/** What differs between the recipes: methods with an adapter, with a model, several tasks, and activations that are kept. */
const recipes: Readonly<Record<string, object>> = {
  lora: {
    model: golden('models', 'qwen2'),
    method: { type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.2, modules_to_save: ['norm'] },
    data: data(),
    train: { ...settings, schedule: 'cosine', warmup_steps: 5 },
    eval: { every: 50 },
    run,
  },
  full: {
    model: golden('models', 'llama3'),
    method: { type: 'full' },
    data: data(),
    train: { ...settings, weight_decay: 0.1, max_grad_norm: 1 },
    eval: { every: 70, keep: 'last' },
    run,
  },
  tasks: {
    model: golden('models', 'qwen2'),
    method: [{ type: 'prefix', num_virtual_tokens: 3 }, { type: 'ia3' }],
    tasks: { one: { data: data(5) }, two: { data: data(11), weight: 2 } },
    train: settings,
    eval: { every: 60 },
    run,
  },
  kept: {
    model: golden('models', 'llama3'),
    method: {
      type: 'lora',
      r: 4,
      target_modules: ['q_proj', 'down_proj'],
      layers_to_transform: [2],
      lora_dropout: 0.2,
    },
    data: data(),
    train: settings,
    eval: { every: 60 },
    run,
  },
};
const names = Object.keys(recipes);

function recipeFile(name: string, dir: string, stepCount = steps): string {
  const recipe = recipes[name] as { run: object; train: object };
  const file = join(folder, `${name}-${below(2 ** 30)}.json`);
  const train = { ...recipe.train, steps: stepCount };
  writeFileSync(file, JSON.stringify({ ...recipe, train, run: { ...recipe.run, dir } }));
  return file;
}

interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts a run; `ended` tells how it ended. */
function start(recipe: string, nodeOptions: readonly string[] = []): { child: ChildProcess; ended: Promise<Ended> } {
  const child = spawn(process.execPath, [...nodeOptions, entry, 'train', recipe, '--json'], { cwd: folder });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (chunk) => (stdout += chunk));
  child.stderr.on('data', (chunk) => (stderr += chunk));
  const ended = once(child, 'close').then(([status, signal]) => ({ status, signal, stdout, stderr }) as Ended);
  return { child, ended };
}

const wrongSentences: string[] = [];
let sentences = 0;
/** Counts a run that failed: it has to say one sentence, without a stack trace. */
function said({ status, stderr }: Ended, expected: RegExp, what: string): void {
  const lines = stderr.split('\n').filter((line) => line.startsWith('graft: '));
  sentences++;
  const isOne =
    lines.length === 1 && /[.?]$/.test(lines[0]!) && expected.test(lines[0]!) && !/\n\s+at .*:\d+/.test(stderr);
  if (status !== 1 || !isOne) wrongSentences.push(`${what}: code ${status}: ${stderr.trim()}`);
}

const halfWritten: string[] = [];
let filesRead = 0;
/** Reads everything that stands under a final name. */
function readFinished(dir: string): void {
  if (!existsSync(dir)) return;
  const names = (readdirSync(dir, { recursive: true }) as string[]).filter((name) => !/(^|\/)\./.test(name));
  for (const name of names) {
    const file = join(dir, name);
    try {
      if (name.endsWith('.json')) readJson(file);
      else if (name.endsWith('.safetensors')) {
        using source = openSafetensors(file);
        for (const [tensor, { bytes }] of source.entries) source.read(tensor, new Uint8Array(bytes));
      } else continue;
      filesRead++;
    } catch (error) {
      halfWritten.push(`${file}: ${(error as Error).message}`);
    }
  }
  // A folder under a final name has all of its files.
  const has = (path: string, files: readonly string[]) => {
    for (const file of files) if (existsSync(path) && !existsSync(join(path, file))) halfWritten.push(join(path, file));
  };
  const checkpoints = join(dir, 'checkpoints');
  for (const name of existsSync(checkpoints) ? readdirSync(checkpoints) : [])
    if (!name.startsWith('.'))
      has(join(checkpoints, name), ['parameters.safetensors', 'optimizer.safetensors', 'state.json']);
  for (const name of ['model', 'best'])
    if (existsSync(join(dir, name, 'config.json'))) has(join(dir, name), ['model.safetensors']);
  for (const name of ['adapter', 'best'])
    if (existsSync(join(dir, name, 'adapter_config.json'))) has(join(dir, name), ['adapter_model.safetensors']);
}

interface Result {
  readonly losses: number[];
  readonly eval_loss: number;
  readonly saved_step: number;
}
const resultOf = ({ stdout }: Ended) => JSON.parse(stdout.trim().split('\n').at(-1)!) as Result;
const weights = (dir: string) =>
  (readdirSync(dir, { recursive: true }) as string[])
    .filter((name) => /^(adapter|model)\/.*\.safetensors$/.test(name))
    .sort()
    .map((name) => readFileSync(join(dir, name)).toString('base64'));

const different: string[] = [];
let compared = 0;
const undisturbed = new Map<string, { result: Result; weights: string[] }>();
/** Compares a run that ended with the one that nothing happened to. */
function compare(name: string, dir: string, ended: Ended, what: string): void {
  readFinished(dir);
  if (ended.status !== 0) {
    different.push(`${what}: code ${ended.status}: ${ended.stderr}`);
    return;
  }
  const [got, want] = [resultOf(ended), undisturbed.get(name)!];
  compared += got.losses.length;
  const equal =
    JSON.stringify(got.losses) === JSON.stringify(want.result.losses) &&
    got.eval_loss === want.result.eval_loss &&
    got.saved_step === want.result.saved_step &&
    JSON.stringify(weights(dir)) === JSON.stringify(want.weights);
  if (!equal) different.push(`${what}: losses, measurement or weights differ`);
}

/** Bytes of each recipe's directory at its end. */
const sizes = new Map<string, number>();
for (const name of names) {
  for (const [key, stepCount] of [
    [name, steps],
    [`${name} often`, manySteps],
  ] as const) {
    const dir = join(folder, `${key}-undisturbed`);
    const ended = await start(recipeFile(name, dir, stepCount)).ended;
    if (ended.status !== 0) throw new Error(ended.stderr);
    undisturbed.set(key, { result: resultOf(ended), weights: weights(dir) });
    const files = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
    sizes.set(
      key,
      files.reduce((sum, { parentPath, name: file }) => sum + statSync(join(parentPath, file)).size, 0),
    );
  }
}

// Killed at any moment, while it loads, trains, measures or saves.
let killed = 0;
let earlierLost = 0;
const perRecipe = Math.ceil(kills / names.length);
for (const name of names) {
  // A run that ends before it was killed often enough is compared, and another one begins.
  let [dir, recipe, lives] = ['', '', 0];
  const begin = () => {
    dir = join(folder, `${name}-killed-${lives++}`);
    recipe = recipeFile(name, dir, manySteps);
  };
  begin();
  for (let count = 0; count < perRecipe; ) {
    const { child, ended } = start(recipe);
    await wait(below(2500));
    child.kill('SIGKILL');
    const last = await ended;
    if (last.signal === 'SIGKILL') {
      count++;
      killed++;
      readFinished(dir);
    } else {
      compare(`${name} often`, dir, last, `${name}, killed`);
      begin();
    }
  }
  compare(`${name} often`, dir, await start(recipe).ended, `${name}, killed`);
  // Started over, and killed again: the result of before stays until there is a new one.
  const before = JSON.stringify(weights(dir));
  for (let count = 0; count < 3; count++) {
    const child = spawn(process.execPath, [entry, 'train', recipe, '--fresh'], { stdio: 'ignore' });
    await wait(300 + below(2000));
    child.kill('SIGKILL');
    if (child.exitCode === null) await once(child, 'close');
    killed++;
    if (JSON.stringify(weights(dir)) !== before) earlierLost++;
  }
  console.error(`${name}: killed ${killed} times so far`);
}

const mount = (...options: string[]) => {
  const { status, stderr } = spawnSync('mount', options, { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
};
const disks: string[] = [];
/** Room on a disk of its own. */
function disk(name: string, size: string): string {
  const dir = join(folder, name);
  mkdirSync(dir, { recursive: true });
  mount('-t', 'tmpfs', '-o', `size=${size}`, 'none', dir);
  disks.push(dir);
  return dir;
}

// A disk that fills up: with nothing, with the first checkpoint, with a later one, with the log, with the result.
let fullDisks = 0;
for (let point = 0; point < 20; point++) {
  const name = names[point % names.length]!;
  const size = 12 + below(Math.round(sizes.get(name)! / 1024));
  const dir = join(disk(`disk-${point}`, `${size}k`), 'run');
  const recipe = recipeFile(name, dir);
  const first = await start(recipe).ended;
  readFinished(dir);
  if (first.status !== 0) {
    fullDisks++;
    said(first, /disk is full/i, `a full disk of ${size} kB`);
    mount('-o', 'remount,size=64m', join(folder, `disk-${point}`));
  }
  compare(name, dir, first.status === 0 ? first : await start(recipe).ended, `${name}, on a disk of ${size} kB`);
}
console.error(`${fullDisks} disks were full`);

// A disk that becomes read-only, and one that is from the beginning. No system makes a disk read-only while a file on it is open for
// writing, as the kept activations are.
for (const name of names.filter((each) => each !== 'kept')) {
  const room = disk(`read-only-${name}`, '64m');
  const recipe = recipeFile(name, join(room, 'run'));
  const { child, ended } = start(recipe);
  for (let text = ''; !text.includes('"step":30,'); ) text += String((await once(child.stdout!, 'data'))[0]);
  while (spawnSync('mount', ['-o', 'remount,ro', room]).status !== 0) await wait(1); // busy while a file is being written
  said(await ended, /read-only/i, `${name}, read-only`);
  said(await start(recipe).ended, /read-only/i, `${name}, read-only from the beginning`);
  readFinished(join(room, 'run'));
  mount('-o', 'remount,rw', room);
  compare(name, join(room, 'run'), await start(recipe).ended, `${name}, read-only`);
}

// A directory that is removed while the run writes to it.
for (const name of names) {
  const dir = join(folder, `${name}-removed`);
  const recipe = recipeFile(name, dir);
  const { child, ended } = start(recipe);
  for (let text = ''; !text.includes('"step":30,'); ) text += String((await once(child.stdout!, 'data'))[0]);
  rmSync(dir, { recursive: true, force: true, maxRetries: 20 });
  said(await ended, /not found|does not exist|no such|removed/i, `${name}, removed`);
  compare(name, dir, await start(recipe).ended, `${name}, after its directory was removed`);
}

// A clock that goes back ten years, and forward again.
const clock =
  'const now=Date.now;let calls=0;Date.now=()=>now()-(++calls%2?3e11:0);const D=Date;globalThis.Date=class extends D{constructor(...a){a.length?super(...a):super(D.now())}}';
for (const name of names) {
  const dir = join(folder, `${name}-clock`);
  const recipe = recipeFile(name, dir);
  const wrongClock = ['--import', `data:text/javascript,${encodeURIComponent(clock)}`];
  const { child, ended } = start(recipe, wrongClock);
  await wait(1500);
  child.kill('SIGKILL');
  await ended;
  compare(name, dir, await start(recipe, wrongClock).ended, `${name}, with a clock that jumps`);
}

// Two runs race for one directory: one trains, the other says who has it.
let races = 0;
for (let round = 0; round < 10; round++) {
  const name = names[round % names.length]!;
  const dir = join(folder, `${name}-race-${round}`);
  const recipe = recipeFile(name, dir);
  const both = [start(recipe), start(recipe)];
  const ended = await Promise.all(both.map((one) => one.ended));
  const [winner, loser] = ended[0]!.status === 0 ? ended : [ended[1], ended[0]];
  said(loser!, /This directory is in use by process \d+/, `race ${round}`);
  compare(name, dir, winner!, `${name}, race ${round}`);
  races++;
}

for (const dir of disks) spawnSync('umount', [dir]);
for (const line of [...different, ...halfWritten, ...wrongSentences]) console.error(line);
const none = (what: string, list: readonly unknown[]): Bar => ({ what, got: list.length, bar: 0, better: 'less' });
report(
  'faults',
  [
    { what: 'kills', got: killed, bar: kills, better: 'more' },
    { what: 'full disks of 20', got: fullDisks, bar: 15, better: 'more' },
    { what: 'races', got: races, bar: 10, better: 'more' },
    {
      what: 'losses compared',
      got: compared,
      bar: names.length * (manySteps + 3 * steps) + steps * (20 + 10 - 1),
      better: 'more',
    },
    none('runs that differ from the undisturbed one', different),
    none('files that are half-written', halfWritten),
    { what: 'earlier results lost', got: earlierLost, bar: 0, better: 'less' },
    none('failures without one clear sentence', wrongSentences),
  ],
  { seed, files_read: filesRead, sentences, recipes: Object.keys(recipes) },
);
