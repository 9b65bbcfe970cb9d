/**
 * A server that always has more to do than it can: clients that ask again at once, of which some go away in the middle of their answers, while
 * adapters of several kinds are loaded, replaced and unloaded. Every answer is one that is known beforehand, of an adapter that its name stood for
 * meanwhile; and when the clients rest, nothing of them is left in memory.
 *   npm run proof:saturation -- [--minutes 60] [--clients 24] [--model FILE.gguf] [--threads 2]
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { loraOf, writeRandomAdapters } from './random-adapters.ts';
import { startServer } from './running-server.ts';
import { integers, report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    minutes: { type: 'string', default: '60' },
    clients: { type: 'string', default: '24' },
    threads: { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
  },
});
const model = args.model ?? fetchSmolLM2();
const below = integers(+args.seed);
const pick = <T>(list: readonly T[]): T => list[below(list.length)]!;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const kinds = {
  lora8: loraOf(8),
  lora16: loraOf(16),
  another: loraOf(8),
  dora: { ...loraOf(4), use_dora: true },
  ia3: { type: 'ia3' },
  prefix: { type: 'prefix', num_virtual_tokens: 8 },
  prompt: { type: 'prompt', num_virtual_tokens: 8 },
  bottleneck: { type: 'bottleneck' },
};
const work = workFolder();
await writeRandomAdapters(model, work, kinds, below, 0.05);
await using server = await startServer(
  ...['--model', model, '--model-name', 'base', '--threads', args.threads, '--allow-adapters-from', work],
  ...['--kv-memory', '256MB', '--adapter-memory', '60MB'],
);

/** Names that stand for one adapter after another. */
const slots = Array.from({ length: 12 }, (_, i) => `slot${i}`);
const prompts = [
  'The capital of France is',
  'Once upon a time there was a',
  'To make bread, you need',
  'The three laws of motion say that',
  'Dear Sir or Madam, I am writing',
  'In the beginning of the year, the company',
];
const maxTokens = 24;

const load = async (name: string, kind: string, inPlace: boolean) => {
  const body = { lora_name: name, lora_path: join(work, kind), load_inplace: inPlace };
  const { status, text } = await server.post('/v1/load_lora_adapter', body);
  if (status !== 200) throw new Error(`${name} is not loaded: ${text}`);
};
const unload = async (name: string) => {
  const { status, text } = await server.post('/v1/unload_lora_adapter', { lora_name: name });
  if (status !== 200) throw new Error(`${name} is not unloaded: ${text}`);
};

/** The answer to each prompt by kind; undefined where two tokens are so close that rounding may decide. */
const known = new Map<string, readonly (string | undefined)[]>();
const closest = 0.002;
for (const kind of ['base', ...Object.keys(kinds)]) {
  if (kind !== 'base') await load(kind, kind, false);
  const answers: (string | undefined)[] = [];
  for (const prompt of prompts) {
    const body = { model: kind, prompt, max_tokens: maxTokens, temperature: 0, logprobs: 2 };
    const { status, text } = await server.post('/v1/completions', body);
    if (status !== 200) throw new Error(text);
    const [choice] = JSON.parse(text).choices;
    const tops: Record<string, number>[] = choice.logprobs.top_logprobs;
    const margins = tops.map((top) => Object.values(top).sort((a, b) => b - a)).map(([a, b]) => a! - (b ?? -Infinity));
    answers.push(Math.min(...margins) > closest ? choice.text : undefined);
  }
  known.set(kind, answers);
  if (kind !== 'base') await unload(kind);
}
const certain = [...known.values()].flat().filter((answer) => answer !== undefined);
const different = new Set(certain).size;
console.error(`${certain.length} answers are certain, ${different} of them different`);
if (different < 0.8 * certain.length || certain.length < 20) throw new Error('the adapters answer alike');

/** What a slot has stood for, with the times between which it may have; undefined: nothing. */
interface Stay {
  readonly kind: string | undefined;
  readonly from: number;
  to: number;
}
const stays = new Map(slots.map((slot) => [slot, [{ kind: undefined, from: 0, to: Infinity }] as Stay[]]));
const changes = { loaded: 0, replaced: 0, unloaded: 0 };
async function change(slot: string, kind: string | undefined): Promise<void> {
  const all = stays.get(slot)!;
  const before = all.at(-1)!;
  if (before.kind === undefined && kind === undefined) return;
  all.push({ kind, from: performance.now(), to: Infinity });
  if (kind === undefined) await unload(slot);
  else await load(slot, kind, before.kind !== undefined);
  before.to = performance.now();
  changes[kind === undefined ? 'unloaded' : before.kind === undefined ? 'loaded' : 'replaced']++;
  // Older ones are of no request that runs.
  if (all.length > 50) all.splice(0, 25);
}

const counts = { whole: 0, left: 0, absent: 0, uncertain: 0 };
const faults: string[] = [];
/** Asks once; some go away. */
async function ask(): Promise<void> {
  const [slot, p] = [below(10) === 0 ? 'base' : pick(slots), below(prompts.length)];
  const isStream = below(4) > 0;
  const leavesAfter = isStream && below(5) === 0 ? below(10) : Infinity;
  const start = performance.now();
  const left = new AbortController();
  if (leavesAfter === 0) setTimeout(() => left.abort(), below(200));
  let [text, finish]: [string, string | null] = ['', null];
  try {
    const body = { model: slot, prompt: prompts[p], max_tokens: maxTokens, temperature: 0, stream: isStream };
    const headers = { 'content-type': 'application/json' };
    const sent = { method: 'POST', headers, body: JSON.stringify(body), signal: left.signal };
    const response = await fetch(`${server.url}/v1/completions`, sent);
    if (response.status === 404) {
      const wasAbsent = stays.get(slot)?.some(({ kind, to }) => kind === undefined && to >= start);
      if (wasAbsent) counts.absent++;
      else faults.push(`${slot} is said to be absent`);
      await response.text();
      return void (await pause(100));
    }
    if (!response.ok) return void faults.push(`${slot}: ${response.status} ${await response.text()}`);
    if (!isStream) ({ text, finish_reason: finish } = JSON.parse(await response.text()).choices[0]);
    else {
      let [rest, events] = ['', 0];
      const decoder = new TextDecoder();
      for await (const bytes of response.body!) {
        const parts = (rest + decoder.decode(bytes as Uint8Array, { stream: true })).split('\n\n');
        rest = parts.pop()!;
        for (const part of parts.filter((line) => line.startsWith('data: {'))) {
          const { choices, error } = JSON.parse(part.slice(6));
          if (error) return void faults.push(`${slot}: ${error.message}`);
          text += choices[0].text;
          finish = choices[0].finish_reason ?? finish;
        }
        events += parts.length;
        if (events > leavesAfter) break;
      }
      if (events > leavesAfter) return void counts.left++;
    }
  } catch (error) {
    if (left.signal.aborted) return void counts.left++;
    return void faults.push(`${slot}: ${(error as Error).message}`);
  }
  if (finish === null) return void faults.push(`${slot}: the answer was cut`);
  const end = performance.now();
  const meant =
    slot === 'base'
      ? ['base']
      : stays
          .get(slot)!
          .filter(({ from, to }) => from <= end && to >= start)
          .map(({ kind }) => kind);
  const answers = meant.filter((kind) => kind !== undefined).map((kind) => known.get(kind)![p]);
  counts.whole++;
  if (answers.includes(text)) return;
  if (answers.includes(undefined)) return void counts.uncertain++;
  const other = [...known].find(([, texts]) => texts[p] === text)?.[0] ?? 'nobody';
  faults.push(`${slot} (${meant.join(', ')}) answers as ${other}: ${JSON.stringify(text)}`);
}

interface Rest {
  readonly tensors: number;
  readonly rss: number;
  readonly openFiles: number;
}
/** What the server holds when nobody asks and no adapter is loaded. */
async function atRest(): Promise<Rest> {
  for (const slot of slots) await change(slot, undefined);
  await server.post('/v1/completions', { model: 'base', prompt: prompts[0], max_tokens: 2, temperature: 0 });
  for (let i = 0; i < 100 && (await server.metric('graft_running')) > 0; i++) await pause(50);
  await pause(7000); // connections that nobody uses are closed after five seconds
  return { tensors: await server.metric('graft_tensors'), rss: server.rss(), openFiles: server.openFiles() };
}

const rounds = Math.max(4, Math.min(12, Math.round(+args.minutes)));
const rests: Rest[] = [];
let requests = 0;
for (let r = 0; r < rounds; r++) {
  const end = performance.now() + (60_000 * +args.minutes) / rounds;
  const isOver = () => performance.now() >= end;
  const client = async () => {
    while (!isOver()) {
      requests++;
      await ask();
    }
  };
  const manager = async () => {
    for (const slot of slots) await change(slot, pick(Object.keys(kinds)));
    while (!isOver()) {
      await change(pick(slots), below(6) === 0 ? undefined : pick(Object.keys(kinds)));
      await pause(below(400));
    }
  };
  await Promise.all([manager(), ...Array.from({ length: +args.clients }, client)]);
  rests.push(await atRest());
  console.error(
    `${JSON.stringify(counts)} ${JSON.stringify(changes)} ${JSON.stringify(rests.at(-1))} ${faults.length} faults`,
  );
}
for (const fault of faults.slice(0, 20)) console.log(fault);
// The first two rounds fill the memory for keys and values, and the heaps.
const [warm, last] = [rests[1]!, rests.at(-1)!];
report(
  'saturation',
  [
    { what: 'answers lost or mixed up', got: faults.length, bar: 0, better: 'less' },
    {
      what: 'tensors left',
      got: Math.max(...rests.map(({ tensors }) => Math.abs(tensors - rests[0]!.tensors))),
      bar: 0,
      better: 'less',
    },
    { what: 'files and sockets left', got: last.openFiles - warm.openFiles, bar: 2, better: 'less' },
    { what: 'memory since the second round', got: last.rss / warm.rss, bar: 1.02, better: 'less' },
    {
      what: 'answers that were compared',
      got: counts.whole - counts.uncertain,
      bar: 20 * +args.minutes,
      better: 'more',
    },
    { what: 'clients that left', got: counts.left, bar: 2 * +args.minutes, better: 'more' },
    { what: 'adapters replaced', got: changes.replaced, bar: 2 * +args.minutes, better: 'more' },
  ],
  {
    minutes: +args.minutes,
    requests,
    ...counts,
    ...changes,
    certain_answers: certain.length,
    tensors: rests.map(({ tensors }) => tensors),
    rss_mb: rests.map(({ rss }) => round(rss / 1e6)),
    open_files: rests.map(({ openFiles }) => openFiles),
  },
);
