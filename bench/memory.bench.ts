/**
 * What a run announces before it loads anything, against the peak memory of its process: methods, optimizers, forms of the weights,
 * gradient checkpointing, one micro-batch a step and several, on a random Llama of 115 million parameters (or --model, with its --vocab).
 *   npm run proof:memory -- [--model DIR --vocab 49152] [--only full]
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startEngine } from '../src/engine/index.ts';
import { optimizers } from '../src/optim/index.ts';
import { randomLlama } from '../test/samples/llama.ts';
import { type MemoryCase, trainedMemory } from '../test/samples/memory-run.ts';
import { report, round, workFolder } from './support.ts';

const { values: args } = parseArgs({
  options: {
    model: { type: 'string' },
    vocab: { type: 'string', default: '24000' },
    only: { type: 'string', default: '' },
  },
});
const dir = workFolder();
const vocab = Number(args.vocab);
const sizes = { layers: 12, width: 768, inner: 2048, heads: 12, vocab, tied: true, dtype: 'bfloat16' } as const;
await startEngine();
const model = args.model ?? randomLlama(join(dir, 'model'), sizes);

const full = { type: 'full' };
const lora = { type: 'lora', r: 16, target_modules: 'all-linear' };
const tokens = { num_virtual_tokens: 20 };
const cases: Readonly<Record<string, MemoryCase>> = {
  ...Object.fromEntries(
    Object.keys(optimizers).map((type) => [`full, ${type}`, { method: full, train: { optimizer: { type } } }]),
  ),
  'full, lisa': { method: [full, { type: 'layerwise', policy: 'lisa', layers: 2, every: 1 }] },
  'full, badam': { method: [full, { type: 'layerwise', policy: 'badam', every: 1, order: 'descending' }], steps: 14 },
  'full, several micro-batches': { method: full, rows: 16 },
  'full, checkpointing': { method: full, train: { gradient_checkpointing: true } },
  lora: { method: lora },
  'lora, several micro-batches': { method: lora, rows: 16 },
  'lora, small micro-batches': { method: lora, rows: 16, train: { micro_tokens: 256 } },
  'lora, checkpointing': { method: lora, train: { gradient_checkpointing: true } },
  'lora, keep': { method: lora, quantize: 'keep' },
  'lora, int8': { method: lora, quantize: 'int8' },
  'lora, nf4': { method: lora, quantize: 'nf4' },
  'lora, nf4, checkpointing': { method: lora, quantize: 'nf4', train: { gradient_checkpointing: true } },
  dora: { method: { ...lora, use_dora: true } },
  prefix: { method: { type: 'prefix', ...tokens } },
  prompt: { method: { type: 'prompt', ...tokens } },
  bottleneck: { method: { type: 'bottleneck' } },
  ia3: { method: { type: 'ia3' } },
};
const names = Object.keys(cases).filter((name) => name.includes(args.only));
const runs = names.map((name) => {
  const run = trainedMemory(dir, { model, vocab }, cases[name]!);
  console.log(`${name}: announced ${run.memory.totalMb} MB, measured ${run.measuredMb.toFixed(0)} MB`);
  return { name, ...run };
});
report(
  'memory',
  [
    { what: 'choices', got: runs.length, bar: args.only ? 1 : 8, better: 'more' },
    ...runs.map(({ name, ratio }) => ({
      what: `${name}: off by`,
      got: Math.abs(ratio - 1),
      bar: 0.1,
      better: 'less' as const,
    })),
  ],
  {
    runs: runs.map(({ name, memory, measuredMb, ratio }) => ({
      name,
      ...memory,
      measuredMb: round(measuredMb),
      ratio: round(ratio),
    })),
  },
);
