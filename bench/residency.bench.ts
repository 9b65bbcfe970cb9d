/**
 * A thousand adapters on one base, of which the memory holds a few: requests by the law of Zipf, at random times, at a share of what the server
 * can do. Then what it costs to load one while another answers.
 *   npm run proof:residency -- [--minutes 10] [--adapters 1000] [--share 0.7] [--model FILE.gguf] [--threads 2]
 * Adapters are LoRA of rank 8 and 16 on all linear layers. Eight files of weights are written, and linked by all of a rank, each with an α of its own:
 * so they come from the system's cache of files, and their memory is what a file of its own would take.
 */
import { linkSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { arrivals, runLoad, summarize } from '../src/serve/index.ts';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { loraOf, writeRandomAdapters } from './random-adapters.ts';
import { type RunningServer, startServer } from './running-server.ts';
import { integers, median, report, round, spread, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    minutes: { type: 'string', default: '10' },
    adapters: { type: 'string', default: '1000' },
    share: { type: 'string', default: '0.7' },
    zipf: { type: 'string', default: '1.1' },
    'capacity-seconds': { type: 'string', default: '40' },
    'prompt-words': { type: 'string', default: '48' },
    'max-tokens': { type: 'string', default: '32' },
    loads: { type: 'string', default: '20' },
    threads: { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
  },
});
const model = args.model ?? fetchSmolLM2();
const seed = +args.seed;
const [kvMemory, adapterMemory, mega] = [512e6, 400e6, 1e6];
/** Beside blocks and adapters: activations of a pass, texts, and what JavaScript has not collected yet. */
const otherMemory = 250e6;

const work = workFolder();
const weightsName = 'adapter_model.safetensors';
const ranks = [8, 8, 8, 8, 16, 16, 16, 16];
const sources = await writeRandomAdapters(
  model,
  join(work, 'sources'),
  Object.fromEntries(ranks.map((rank, i) => [`s${i}`, loraOf(rank)])),
  integers(seed),
);
const names = Array.from({ length: +args.adapters }, (_, i) => `a${i}`);
for (const [i, name] of names.entries()) {
  const source = sources[i % sources.length]!;
  const dir = join(work, 'adapters', name);
  mkdirSync(dir, { recursive: true });
  const config = JSON.parse(readFileSync(join(source, 'adapter_config.json'), 'utf8'));
  writeFileSync(join(dir, 'adapter_config.json'), JSON.stringify({ ...config, lora_alpha: 8 + i / 100 }));
  linkSync(join(source, weightsName), join(dir, weightsName));
}

const shape = {
  models: names,
  zipf: +args.zipf,
  promptWords: +args['prompt-words'],
  maxTokens: +args['max-tokens'],
};
const common = ['--model', model, '--threads', args.threads];

/** Requests a second when 32 clients ask again as soon as they are answered; the first fifth of the time is left out. */
async function capacityOf({ url }: RunningServer): Promise<number> {
  const seconds = +args['capacity-seconds'];
  const load = arrivals({ ...shape, rate: 1000, seconds: seconds * 2, seed: seed + 1 }).values();
  const start = performance.now();
  const since = () => (performance.now() - start) / 1000;
  const ends: number[] = [];
  const client = async () => {
    while (since() < seconds) {
      const [result] = await runLoad({ url }, [{ ...load.next().value!, at: 0 }]);
      if (result!.error !== undefined) throw new Error(`a request failed: ${result!.error}`);
      ends.push(since());
    }
  };
  await Promise.all(Array.from({ length: 32 }, client));
  const [from, to] = [seconds / 5, seconds];
  return ends.filter((end) => end > from && end <= to).length / (to - from);
}

/** Looks at a figure again and again until it is stopped. */
function watch<T>(look: () => Promise<T> | T, ms: number): () => Promise<T[]> {
  const seen: T[] = [];
  let ended = false;
  const watching = (async () => {
    while (!ended) {
      seen.push(await look());
      await new Promise((resolve) => setTimeout(resolve, ms));
    }
  })();
  return async () => {
    ended = true;
    await watching;
    return seen;
  };
}

async function underLoad() {
  await using server = await startServer(
    ...[...common, '--adapters', join(work, 'adapters')],
    ...['--kv-memory', `${kvMemory}`, '--adapter-memory', `${adapterMemory}`],
  );
  await server.post('/v1/completions', { model: names[0], prompt: 'Hello', max_tokens: 1 });
  const atStart = server.rss() - (await server.metric('graft_adapter_bytes'));
  const capacity = await capacityOf(server);
  console.error(`capacity: ${capacity.toFixed(2)} requests/s`);
  const stop = watch(
    async () => ({
      rss: server.rss(),
      adapters: await server.metric('graft_adapter_bytes'),
      resident: await server.metric('graft_adapters_resident'),
    }),
    1000,
  );
  const start = performance.now();
  const rate = +args.share * capacity;
  const results = await runLoad(server, arrivals({ ...shape, rate, seconds: 60 * +args.minutes, seed: seed + 2 }));
  const summary = summarize(results, (performance.now() - start) / 1000);
  const seen = await stop();
  return { capacity, rate, summary, atStart, seen };
}

/** Times at which the tokens of a long answer came. */
async function* tokenTimes(url: string, signal: AbortSignal): AsyncGenerator<number> {
  const body = { model: 'base', prompt: 'Once upon a time', max_tokens: 1900, temperature: 1, seed, stream: true };
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  for await (const _ of response.body!) yield performance.now();
}

interface Load {
  readonly ms: number;
  /** Milliseconds without a token in the time of the load, and in as much time before it. */
  readonly longest: number;
  readonly longestBefore: number;
  readonly bytes: number;
}

/** Loads adapters of rank 16 while another row is answered. */
async function costOfLoading(): Promise<{ readonly loads: readonly Load[]; readonly gap: number }> {
  await using server = await startServer(
    ...[...common, '--model-name', 'base', '--allow-adapters-from', join(work, 'adapters')],
    ...['--kv-memory', `${kvMemory}`, '--adapter-memory', '4GB'],
  );
  const times: number[] = [];
  const leave = new AbortController();
  let answered = false;
  const streaming = (async () => {
    while (!leave.signal.aborted) for await (const time of tokenTimes(server.url, leave.signal)) times.push(time);
  })().catch((error: Error) => {
    if (!leave.signal.aborted) throw error;
    answered = true;
  });
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  while (times.length < 32) await pause(50);
  const gapsBetween = (from: number, to: number) => {
    const first = times.findLastIndex((time) => time <= from);
    const last = times.findIndex((time) => time >= to);
    return times.slice(first + 1, last < 0 ? undefined : last + 1).map((time, i) => time - times[first + i]!);
  };
  const loads: Load[] = [];
  const ofRank16 = names.filter((_, i) => ranks[i % ranks.length] === 16);
  for (const name of ofRank16.slice(0, +args.loads)) {
    await pause(400);
    const before = await server.metric('graft_adapter_bytes');
    await pause(200);
    const start = performance.now();
    const body = { lora_name: name, lora_path: join(work, 'adapters', name) };
    const { status, text } = await server.post('/v1/load_lora_adapter', body);
    const end = performance.now();
    if (status !== 200) throw new Error(text);
    await pause(200);
    loads.push({
      ms: end - start,
      longest: Math.max(...gapsBetween(start, end)),
      longestBefore: Math.max(...gapsBetween(2 * start - end, start)),
      bytes: (await server.metric('graft_adapter_bytes')) - before,
    });
  }
  leave.abort();
  await streaming;
  if (!answered) throw new Error('the other row ended before the loads');
  return { loads, gap: median(times.slice(1).map((time, i) => time - times[i]!)) };
}

const { capacity, rate, summary, atStart, seen } = await underLoad();
const { loads, gap } = await costOfLoading();
const file = statSync(join(sources.at(-1)!, weightsName)).size;
const most = (values: readonly number[]) => Math.max(...values);
const first = summary.timeToFirstToken;
report(
  'residency',
  [
    { what: 'requests that failed', got: summary.requests - summary.completed, bar: 0, better: 'less' },
    {
      what: 'time to first token, 99th percentile by median',
      got: first ? first.p99 / first.p50 : Infinity,
      bar: 5,
      better: 'less',
    },
    {
      what: 'memory for adapters, by its setting',
      got: most(seen.map(({ adapters }) => adapters)) / adapterMemory,
      bar: 1,
      better: 'less',
    },
    {
      what: 'memory beyond that at the start, by the settings',
      got: (most(seen.map(({ rss }) => rss)) - atStart) / (kvMemory + adapterMemory + otherMemory),
      bar: 1,
      better: 'less',
    },
    {
      what: 'bytes of an adapter, by its file',
      got: most(loads.map(({ bytes }) => bytes)) / file,
      bar: 1.1,
      better: 'less',
    },
    { what: 'ms to load LoRA of rank 16', got: median(loads.map(({ ms }) => ms)), bar: 50, better: 'less' },
    {
      what: 'ms that another answer pauses meanwhile',
      got: median(loads.map(({ longest }) => longest)) - gap,
      bar: 20,
      better: 'less',
    },
  ],
  {
    adapters: names.length,
    minutes: +args.minutes,
    capacity_requests_per_s: round(capacity),
    rate_requests_per_s: round(rate),
    requests: summary.requests,
    failed: summary.failed,
    models_asked_for: summary.models,
    time_to_first_token_s: first,
    time_between_tokens_s: summary.timeBetweenTokens,
    resident_adapters: spread(seen.map(({ resident }) => resident)),
    rss_mb: { start: round(atStart / mega), ...spread(seen.map(({ rss }) => rss / mega)) },
    ms_between_tokens_alone: round(gap),
    load_ms: spread(loads.map(({ ms }) => ms)),
    longest_pause_ms: spread(loads.map(({ longest }) => longest - gap)),
    longest_pause_without_load_ms: spread(loads.map(({ longestBefore }) => longestBefore - gap)),
  },
);
