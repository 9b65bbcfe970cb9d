/**
 * Models and states of optimizers that are larger than the memory: each case trains in memory, with what it does not need there on the disk,
 * and so under a hard limit that the first does not keep to. The losses are the same, bit for bit; so are those of four processes that share
 * the model out, where one process alone does not fit under the limit.
 *   npm run proof:offload -- [--only NAME] [--steps 4] [--tokens 32] [--threads 2] [--keep DIR]
 * It makes control groups, for which it has to be root; the random Llamas take 700 MB in the temporary directory.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { startEngine } from '../src/engine/index.ts';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { randomLlama } from '../test/samples/llama.ts';
import { limited } from './memory-limit.ts';
import { integers, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    steps: { type: 'string', default: '4' },
    tokens: { type: 'string', default: '32' },
    threads: { type: 'string', default: '2' },
  },
});
const [steps, tokens] = [+args.steps, +args.tokens];
const mebibyte = 2 ** 20;
await startEngine();
const dir = workFolder();
const below = integers(1);
const vocab = 4000;
const rows = Array.from({ length: 2 * steps }, () => ({ ids: Array.from({ length: tokens }, () => 3 + below(vocab - 3)) }));
const data = join(dir, 'rows.jsonl');
writeFileSync(data, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));

const sizes = { width: 1024, inner: 2816, layers: 13, heads: 8, vocab, tied: true } as const;
const small = { width: 512, inner: 1408, layers: 6, heads: 8, vocab, tied: true } as const;
const lora = { type: 'lora', r: 8, target_modules: 'all-linear' };

interface Case {
  readonly model: () => string;
  readonly quantize?: string;
  readonly method?: object;
  readonly offload: object;
  /** MiB; the run without anything on the disk does not keep to it. */
  readonly limit: number;
}

const once = <T>(make: () => T) => {
  let made: T | undefined;
  return () => (made ??= make());
};
const large = once(() => randomLlama(join(dir, 'large'), sizes));
const full = once(() => randomLlama(join(dir, 'small'), small));
const cases: Readonly<Record<string, Case>> = {
  'float32, the file of the model': { model: large, offload: { weights: true }, limit: 450 },
  'SmolLM2 Q4_1, its blocks': { model: fetchSmolLM2, quantize: 'keep', offload: { weights: true }, limit: 330 },
  'SmolLM2 unpacked, a copy': { model: fetchSmolLM2, offload: { weights: true }, limit: 450 },
  'full, AdamW in a file': { model: full, method: { type: 'full' }, offload: { optimizer: true }, limit: 600 },
};

interface Trained {
  readonly losses: readonly number[];
  readonly tokens_per_s: number;
  readonly peak_rss_mb: number;
}

function command({ model, quantize = 'none', method = lora }: Case, name: string, offload: object): string[] {
  const folder = join(dir, name);
  const file = `${folder}.json`;
  const settings = { steps, batch_size: 2, micro_tokens: tokens, threads: +args.threads, precision: 'float32' };
  const fields = { model: model(), quantize, method, data: { train: data, format: 'tokens' } };
  writeFileSync(file, JSON.stringify({ ...fields, train: { ...settings, offload }, run: { dir: folder } }));
  return [process.execPath, join(packageRoot, 'bin', 'graft.js'), 'train', file, '--json', '--fresh'];
}

/** Pages of the model that other processes have read do not count under a limit: they leave the system's cache. */
function forgetPages(model: string): void {
  const files = statSync(model).isDirectory() ? readdirSync(model).map((name) => join(model, name)) : [model];
  for (const file of files) {
    spawnSync('sync', [file]);
    assert.equal(spawnSync('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']).status, 0);
  }
}

const lastLine = (stdout: string) => JSON.parse(stdout.trim().split('\n').at(-1)!) as Trained;

function free(words: readonly string[]): Trained {
  const { status, stdout, stderr } = spawnSync(words[0]!, words.slice(1), { encoding: 'utf8', maxBuffer: 2 ** 28 });
  assert.equal(status, 0, stderr);
  return lastLine(stdout);
}

const found = [];
for (const [name, each] of Object.entries(cases).filter(([key]) => key.includes(args.only))) {
  const id = name.replace(/\W+/g, '-');
  const limit = each.limit * mebibyte;
  const inMemory = free(command(each, `${id}-memory`, {}));
  const onDisk = free(command(each, `${id}-disk`, each.offload));
  const run = async (offload: object, as: string) => {
    const words = command(each, `${id}-${as}`, offload);
    forgetPages(each.model());
    return await limited(limit, words);
  };
  const refused = await run({}, 'refused');
  const within = await run(each.offload, 'limited');
  assert.equal(within.status, 0, `${name}: ${within.stderr}`);
  const trained = lastLine(within.stdout);
  const same = [onDisk, trained].filter(({ losses }) => JSON.stringify(losses) === JSON.stringify(inMemory.losses));
  found.push({
    name,
    limit_mb: each.limit,
    losses: inMemory.losses.length,
    same_losses: same.length,
    in_memory: { peak_rss_mb: inMemory.peak_rss_mb, tokens_per_s: inMemory.tokens_per_s },
    on_disk: { peak_rss_mb: onDisk.peak_rss_mb, tokens_per_s: onDisk.tokens_per_s },
    under_limit: {
      peak_mb: within.peakMb,
      own_peak_mb: within.ownPeakMb,
      limit_reached: within.reached,
      tokens_per_s: trained.tokens_per_s,
    },
    in_memory_under_limit: refused.status === 0 ? 'trained' : (refused.stderr.trim().split('\n').at(-1) ?? 'ended').slice(0, 200),
  });
  console.log(JSON.stringify(found.at(-1)));
}
const count = found.length;
report(
  'offload',
  [
    { what: 'cases', got: count, bar: args.only ? 1 : 4, better: 'more' },
    { what: 'runs with the losses of the run in memory', got: found.reduce((sum, each) => sum + each.same_losses, 0), bar: 2 * count, better: 'more' },
    { what: 'cases in which the run in memory keeps to the limit', got: found.filter(({ in_memory_under_limit: how }) => how === 'trained').length, bar: 0, better: 'less' },
    { what: 'cases above the limit', got: found.filter(({ limit_mb, under_limit }) => under_limit.peak_mb > limit_mb).length, bar: 0, better: 'less' },
    { what: 'losses of a case', got: Math.min(...found.map(({ losses }) => losses)), bar: steps, better: 'more' },
  ],
  { cases: found.map((each) => ({ ...each, slower: round(each.in_memory.tokens_per_s / each.under_limit.tokens_per_s) })) },
);
