/**
 * Prefill and decode rates of each form of the weights, and the error of its logits against float32 weights.
 *   npm run proof:decode -- [--model FILE.gguf|DIR] [--rounds 5] [--prompt-tokens 512] [--new-tokens 64] [--threads 2]
 *                           [--quantize none,keep,int8] [--peer]
 * With --peer, llama.cpp (node-llama-cpp, installed once) decodes the same GGUF file in every round.
 * The forms alternate within every round (A B C A B C …); medians are reported with the smallest and the largest value. The
 * last line is one JSON document. Baselines measured in the same run: for prefill, 2 · weights · tokens FLOP at the rate of a float32
 * matmul; for decoding, reading the bytes of the weights at the measured read rate.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { tokenizerOf } from '../src/data/index.ts';
import { currentEngine, startEngine } from '../src/engine/index.ts';
import { type GenerateSummary, generate } from '../src/generate/index.ts';
import { loadModel, type Quantize } from '../src/models/index.ts';
import { KvPool, type Model, namedTensors, packTokens } from '../src/nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../src/tensor/index.ts';
import { fetchSmolLM2 } from '../tools/fetch/fetch.ts';
import { llamaCppFolder, llamaCppStreams } from './llama-cpp.ts';
import { report, round, spread, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    rounds: { type: 'string', default: '5' },
    'prompt-tokens': { type: 'string', default: '512' },
    'new-tokens': { type: 'string', default: '64' },
    threads: { type: 'string', default: '2' },
    quantize: { type: 'string', default: 'none,keep,int8' },
    peer: { type: 'boolean', default: false },
  },
});
const path = args.model ?? fetchSmolLM2();
const [rounds, promptTokens, newTokens] = [+args.rounds, +args['prompt-tokens'], +args['new-tokens']];
const precisions = args.quantize.split(',') as Quantize[];

await startEngine();
currentEngine().native.threads(+args.threads);

/** Returns the first tokens of the README, repeated if it is too short: real text, the same on every machine. */
function promptIds(): number[] {
  const text = readFileSync(join(packageRoot, 'README.md'), 'utf8');
  const ids = [...tokenizerOf(path).encode(text, { addSpecialTokens: false })];
  return Array.from({ length: promptTokens }, (_, i) => ids[i % ids.length]!);
}

/** Returns the shortest time of `times` calls of `body`, in seconds. */
function seconds(times: number, body: () => void): number {
  let shortest = Infinity;
  for (let i = 0; i < times; i++) {
    const start = performance.now();
    body();
    shortest = Math.min(shortest, (performance.now() - start) / 1e3);
  }
  return shortest;
}

/** Measures FLOP/s of a matrix product of the model's size, and bytes/s of reading a tensor that is larger than any cache. */
function machine(): { flops: number; readBytes: number } {
  using _ = scope();
  const [a, b] = [ops.ones([1024, 576]), ops.t(ops.ones([1536, 576]))];
  const large = ops.ones([2 ** 26]);
  return {
    flops: (2 * 1024 * 576 * 1536) / seconds(20, () => ops.mm(a, b).dispose()),
    readBytes: 2 ** 28 / seconds(8, () => ops.sum(large).dispose()),
  };
}

function run(model: Model, ids: readonly number[], count: number): GenerateSummary {
  const steps = generate(model, ids, { maxNewTokens: count });
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** Returns the bytes of the weights that each token reads: all but the embedding table, unless it is the head too. */
function weightBytes(model: Model): number {
  const seen = new Map<Tensor, number>();
  for (const [key, tensor] of namedTensors(model.root)) {
    if (!/embed/.test(key)) seen.set(tensor, tensor.nbytes);
  }
  return [...seen.values()].reduce((a, b) => a + b, 0);
}

/** Returns logits [T, V] of the prompt as generation computes them: the last 64 tokens one by one, with the KV cache. */
function logitsOf(model: Model, ids: readonly number[]): Float32Array {
  const prefillLength = Math.max(1, ids.length - 64);
  const logits = new Float32Array(ids.length * model.vocabSize);
  const blocks = Array.from({ length: KvPool.blocksFor(ids.length) }, (_, b) => b);
  using pool = new KvPool(model, blocks.length);
  for (let at = 0; at < ids.length; at += at === 0 ? prefillLength : 1) {
    noGrad(() => {
      using _ = scope();
      const tokens = packTokens([ids.slice(at, at === 0 ? prefillLength : at + 1)]);
      const hidden = model.hidden(tokens, { pool, blocks: [blocks], filled: [at] });
      logits.set(model.logits(hidden, [0, hidden.size(0)]).data() as Float32Array, at * model.vocabSize);
    });
  }
  return logits;
}

function difference(got: Float32Array, want: Float32Array) {
  let [max, sum] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const d = Math.abs(got[i]! - want[i]!);
    max = Math.max(max, d);
    sum += d;
  }
  return { max_logit_difference: max, mean_logit_difference: sum / want.length };
}

/** Tokens a second of llama.cpp after the first, for the same prompt. */
function llamaCppDecode(ids: readonly number[]): number {
  const request = join(workFolder(), 'request.json');
  const body = { model: path, rows: [ids], loras: [null], tokens: newTokens, threads: +args.threads };
  writeFileSync(request, JSON.stringify(body));
  return llamaCppStreams(request).decode_tokens_per_s;
}

if (args.peer) llamaCppFolder();
const ids = promptIds();
const models = precisions.map((quantize) => ({ quantize, model: loadModel(path, { quantize }) }));
const reference = (() => {
  using exact = loadModel(path, { quantize: 'none' });
  return logitsOf(exact, ids);
})();
const differences = models.map(({ model }) => difference(logitsOf(model, ids), reference));
const rates = models.map(() => ({ prefill: [] as number[], decode: [] as number[] }));
const machines: ReturnType<typeof machine>[] = [];
const peers: number[] = [];
for (const { model } of models) run(model, ids.slice(0, 32), 8);
const handles = currentEngine().native.memory().handles;
for (let r = 0; r < rounds; r++) {
  machines.push(machine());
  models.forEach(({ model, quantize }, i) => {
    const { prefillSeconds, decodeSeconds, newTokens: generated } = run(model, ids, newTokens);
    rates[i]!.prefill.push(ids.length / prefillSeconds);
    rates[i]!.decode.push((generated - 1) / decodeSeconds);
    const [prefill, decode] = [rates[i]!.prefill.at(-1)!, rates[i]!.decode.at(-1)!].map((x) => x.toFixed(0));
    console.error(`round ${r + 1}, ${quantize}: prefill ${prefill}, decode ${decode} tokens/s`);
  });
  if (args.peer) peers.push(llamaCppDecode(ids));
}
const best = {
  flops: Math.max(...machines.map((m) => m.flops)),
  readBytes: Math.max(...machines.map((m) => m.readBytes)),
};
const measured = models.map(({ quantize, model }, i) => {
  const [prefill, decode] = [spread(rates[i]!.prefill), spread(rates[i]!.decode)];
  const bytes = weightBytes(model);
  return {
    quantize,
    prefill_tokens_per_s: prefill,
    decode_tokens_per_s: decode,
    weight_bytes: bytes,
    share_of_floor: {
      prefill: round((prefill.median * 2 * model.parameters) / best.flops),
      decode: round((decode.median * bytes) / best.readBytes),
    },
    ...differences[i]!,
  };
});
const fastest = measured.reduce((a, b) => (a.decode_tokens_per_s.median > b.decode_tokens_per_s.median ? a : b));
const keep = measured.find(({ quantize }) => quantize === 'keep');
report(
  'decode',
  [
    { what: `decode, ${fastest.quantize}: tokens/s`, got: fastest.decode_tokens_per_s.median, bar: 60, better: 'more' },
    {
      what: `decode, ${fastest.quantize}: of the rate at which the weights can be read`,
      got: fastest.share_of_floor.decode,
      bar: 0.4,
      better: 'more',
    },
    ...(keep && peers.length > 0
      ? [
          {
            what: 'decode, keep: of llama.cpp',
            got: keep.decode_tokens_per_s.median / spread(peers).median,
            bar: 2,
            better: 'more' as const,
          },
        ]
      : []),
    {
      what: `prefill, ${fastest.quantize}: tokens/s`,
      got: fastest.prefill_tokens_per_s.median,
      bar: 572,
      better: 'more',
    },
    {
      what: 'tensor handles that are not freed',
      got: currentEngine().native.memory().handles - handles,
      bar: 0,
      better: 'less',
    },
  ],
  {
    threads: currentEngine().native.threads(),
    gemm_gflops: round(best.flops / 1e9),
    read_gb_per_s: round(best.readBytes / 1e9),
    prompt_tokens: ids.length,
    new_tokens: newTokens,
    rounds,
    precisions: measured,
    ...(peers.length > 0 && { llama_cpp_decode_tokens_per_s: spread(peers) }),
  },
);
for (const { model } of models) model[Symbol.dispose]();
