/**
 * Many streams with many adapters on one base, in one batch: tokens a second with an adapter of its own for each stream, with one for all, and
 * with none, compared with PEFT's mixed batch (float32 weights on both sides) and with llama.cpp (the same packed file, one context for each LoRA
 * file), in turn. The limit is the rate at which the same run computes prompts, which is what the processor can do.
 *   npm run proof:swarm -- [--model FILE.gguf] [--streams 16] [--prompt-tokens 64] [--new-tokens 64] [--rounds 3] [--threads 2]
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { GraftError } from '../src/base/index.ts';
import { tokenizerOf } from '../src/data/index.ts';
import type { Quantize } from '../src/models/index.ts';
import { type Serving, Session } from '../src/session/index.ts';
import { chooseMails, mailText } from '../tools/fetch/emails.ts';
import { fetchMails } from '../tools/fetch/fetch.ts';
import { llamaCppFolder, llamaCppStreams } from './llama-cpp.ts';
import { bothModels, median, peer, report, spread, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    streams: { type: 'string', default: '16' },
    'prompt-tokens': { type: 'string', default: '64' },
    'new-tokens': { type: 'string', default: '64' },
    rounds: { type: 'string', default: '3' },
    threads: { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
  },
});
const { ours, theirs } = bothModels(args.model);
const [streams, newTokens, threads] = [+args.streams, +args['new-tokens'], +args.threads];
const work = workFolder();
const at = (...parts: string[]) => join(work, ...parts);

/**
 * Makes LoRA adapters of rank 8 on all linear layers with random numbers, in PEFT's layout and as GGUF files. In a process of its own: threads that
 * compute in this one would count beside those of the model, and libgomp's threads sleep at once where there are more than cores.
 */
function makeAdapters(): { dirs: string[]; files: string[] } {
  const script = join(import.meta.dirname, 'swarm-adapters.ts');
  const made = spawnSync(process.execPath, [script, ours, work, String(streams), args.seed], {
    stdio: ['ignore', 2, 2],
  });
  if (made.status !== 0) throw new GraftError('environment', `the adapters could not be made: status ${made.status}`);
  const names = Array.from({ length: streams }, (_, i) => `a${i}`);
  return { dirs: names.map((name) => at('adapters', name)), files: names.map((name) => at(`${name}.gguf`)) };
}

const { dirs, files } = makeAdapters();
const tokenizer = tokenizerOf(ours);
/** Beginnings of e-mails, equally long. */
const rows = chooseMails(fetchMails(), { train: 0, heldOut: 4 * streams })
  .heldOut.map((mail) => tokenizer.encode(mailText(mail, 4000), { addSpecialTokens: false }))
  .filter((ids) => ids.length >= +args['prompt-tokens'])
  .slice(0, streams)
  .map((ids) => Array.from(ids.subarray(0, +args['prompt-tokens'])));
if (rows.length < streams) throw new Error(`only ${rows.length} e-mails are so long`);

interface Rate {
  readonly ids: readonly (readonly number[])[];
  readonly tokens_per_s: number;
}

/** Answers all rows at once. */
async function answer(serving: Serving, adapterOf: (r: number) => string | undefined, tokens: number): Promise<Rate> {
  const start = performance.now();
  const ends = await Promise.all(
    rows.map((promptIds, r) => serving.submit({ promptIds, adapter: adapterOf(r), maxNewTokens: tokens, eosIds: [] })),
  );
  const seconds = (performance.now() - start) / 1e3;
  return { ids: ends.map(({ ids }) => ids), tokens_per_s: (tokens * rows.length) / seconds };
}

interface Ours {
  readonly swarm: Rate;
  readonly oneAdapter: Rate;
  readonly base: Rate;
  /** Prompt tokens a second, with an adapter for each stream. */
  readonly prefill: number;
}

async function graftSide(quantize: Quantize): Promise<Ours> {
  await using session = new Session();
  const adapters = Object.fromEntries(dirs.map((dir, i) => [`a${i}`, dir]));
  await using model = await session.load(ours, { quantize, adapters, threads });
  // Each measurement has blocks of its own, so that none finds the prompts of another; the first one loads the adapters.
  const fresh = async (adapterOf: (r: number) => string | undefined, tokens: number) => {
    await using serving = model.serve({ maxRunning: streams });
    for (const [r] of rows.entries())
      await serving.submit({ promptIds: [1, 2, 3], adapter: adapterOf(r), maxNewTokens: 2, eosIds: [] });
    return await answer(serving, adapterOf, tokens);
  };
  const own = (r: number) => `a${r}`;
  const first = await fresh(own, 1);
  return {
    swarm: await fresh(own, newTokens),
    oneAdapter: await fresh(() => 'a0', newTokens),
    base: await fresh(() => undefined, newTokens),
    prefill: first.tokens_per_s * +args['prompt-tokens'],
  };
}

let requests = 0;
function request(body: object): string {
  const file = at(`request-${requests++}.json`);
  writeFileSync(file, JSON.stringify({ rows, tokens: newTokens, threads, ...body }));
  return file;
}
llamaCppFolder();
const llamaCpp = (loras: readonly (string | null)[]): Rate => llamaCppStreams(request({ model: ours, loras }));

const rounds: Record<string, number>[] = [];
let differing = 0;
let compared = 0;
for (let round = 0; round < +args.rounds; round++) {
  const float = await graftSide('none');
  const file = request({ adapters: dirs });
  const peft = peer('mixed.py', '--model', theirs, '--request', file, '--threads', String(threads)) as unknown as Rate;
  const packed = await graftSide('keep');
  const llamaSwarm = llamaCpp(files);
  const llamaOne = llamaCpp(files.map(() => files[0]!));
  for (const [r, ids] of peft.ids.entries()) {
    differing += ids.filter((id, i) => float.swarm.ids[r]![i] !== id).length;
    compared += ids.length;
  }
  const rates = {
    'graft, float32, 16 adapters': float.swarm.tokens_per_s,
    'graft, float32, one adapter': float.oneAdapter.tokens_per_s,
    'graft, float32, base': float.base.tokens_per_s,
    'graft, float32, prompts': float.prefill,
    'graft, packed, 16 adapters': packed.swarm.tokens_per_s,
    'graft, packed, one adapter': packed.oneAdapter.tokens_per_s,
    'graft, packed, base': packed.base.tokens_per_s,
    'graft, packed, prompts': packed.prefill,
    'PEFT, mixed batch': peft.tokens_per_s,
    'llama.cpp, 16 adapters': llamaSwarm.tokens_per_s,
    'llama.cpp, one adapter': llamaOne.tokens_per_s,
  };
  rounds.push(rates);
  for (const [name, rate] of Object.entries(rates))
    console.error(`round ${round + 1}: ${name}: ${rate.toFixed(0)} tokens/s`);
}

const ratio = (a: string, b: string) => median(rounds.map((rates) => rates[a]! / rates[b]!));
report(
  'swarm',
  [
    {
      what: 'tokens/s of PEFT’s mixed batch',
      got: ratio('graft, float32, 16 adapters', 'PEFT, mixed batch'),
      bar: 2.5,
      better: 'more',
    },
    { what: 'share of tokens equal to PEFT’s', got: 1 - differing / compared, bar: 0.99, better: 'more' },
    {
      what: 'share of the rate of prompts, float32',
      got: ratio('graft, float32, 16 adapters', 'graft, float32, prompts'),
      bar: 0.7,
      better: 'more',
    },
    {
      what: 'tokens/s of one adapter for all, float32',
      got: ratio('graft, float32, 16 adapters', 'graft, float32, one adapter'),
      bar: 0.9,
      better: 'more',
    },
    {
      what: 'tokens/s of one adapter for all, packed',
      got: ratio('graft, packed, 16 adapters', 'graft, packed, one adapter'),
      bar: 0.9,
      better: 'more',
    },
    {
      what: 'tokens/s of llama.cpp, one adapter',
      got: ratio('graft, packed, one adapter', 'llama.cpp, one adapter'),
      bar: 1.5,
      better: 'more',
    },
    {
      what: 'tokens/s of llama.cpp, an adapter each',
      got: ratio('graft, packed, 16 adapters', 'llama.cpp, 16 adapters'),
      bar: 4,
      better: 'more',
    },
  ],
  {
    streams,
    threads,
    tokens_compared: compared,
    rates: Object.fromEntries(
      Object.keys(rounds[0]!).map((name) => [name, spread(rounds.map((rates) => rates[name]!))]),
    ),
  },
);
