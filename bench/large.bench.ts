/**
 * Peak memory of training a large model: a Llama of 7B shape with random bfloat16 weights, written block by block, quantized to nf4
 * at load, LoRA r=8 on all linear layers, ragged rows. The model takes 13.5 GB of disk below TMPDIR and is deleted at the end.
 *   npm run proof:large -- [--rows 4] [--steps 2] [--seed 0] [--gradient-checkpointing]
 */
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setImmediate } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { fromWire, packageRoot } from '../src/base/index.ts';
import { startEngine } from '../src/engine/index.ts';
import { type TensorToWrite, writeSafetensors } from '../src/io/index.ts';
import { Generator, ops, Tensor } from '../src/tensor/index.ts';
import type { TrainEvent, TrainResult } from '../src/train/index.ts';
import { report, round, workFolder, writeBatches, writeRecipe } from './support.ts';

const { values: args } = parseArgs({
  options: {
    rows: { type: 'string', default: '4' },
    steps: { type: 'string', default: '2' },
    seed: { type: 'string', default: '0' },
    'gradient-checkpointing': { type: 'boolean', default: false },
  },
});
const checkpointing = args['gradient-checkpointing'];
const [rows, steps, seed] = [Number(args.rows), Number(args.steps), Number(args.seed)];

const config = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  hidden_size: 4096,
  intermediate_size: 11008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  num_key_value_heads: 32,
  vocab_size: 32000,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  tie_word_embeddings: false,
  torch_dtype: 'bfloat16',
};
const { hidden_size: width, intermediate_size: inner, num_hidden_layers: layers, vocab_size: vocab } = config;

/** Writes the model as a Hugging Face directory: one shard for each block and one for the rest, with their index. */
async function writeLlama(dir: string): Promise<void> {
  // One buffer for all tensors, as large as the largest: each is drawn in it when it is written.
  using buffer = Tensor.empty([vocab * width], 'bfloat16');
  const bytes = buffer.memory();
  using generator = new Generator(seed);
  const random = (name: string, shape: readonly number[]): TensorToWrite => ({
    name,
    shape,
    dtype: 'bfloat16',
    bytes() {
      const count = shape.reduce((a, b) => a * b, 1);
      using numbers = ops.narrow(buffer, 0, 0, count);
      if (shape.length === 1) ops.fill_(numbers, 1);
      else ops.normal_(numbers, 0, 0.02, { generator });
      return bytes.subarray(0, 2 * count);
    },
  });
  const shards = Array.from({ length: layers }, (_, i) => {
    const at = (name: string, ...shape: number[]) => random(`model.layers.${i}.${name}.weight`, shape);
    return [
      ...['q', 'k', 'v', 'o'].map((name) => at(`self_attn.${name}_proj`, width, width)),
      ...['gate', 'up'].map((name) => at(`mlp.${name}_proj`, inner, width)),
      at('mlp.down_proj', width, inner),
      at('input_layernorm', width),
      at('post_attention_layernorm', width),
    ];
  });
  shards.push([
    random('model.embed_tokens.weight', [vocab, width]),
    random('model.norm.weight', [width]),
    random('lm_head.weight', [vocab, width]),
  ]);
  const weightMap: Record<string, string> = {};
  const number = (n: number) => String(n).padStart(5, '0');
  for (const [i, tensors] of shards.entries()) {
    const file = `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
    writeSafetensors(join(dir, file), tensors, { format: 'pt' });
    for (const { name } of tensors) weightMap[name] = file;
    console.error(`${file} written`);
    await setImmediate(); // lets signals be handled between two shards
  }
  writeFileSync(join(dir, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map: weightMap }));
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
}

/** Returns the peak resident memory of a running process (VmHWM), in GB. */
function peakMemory(pid: number): number {
  const [, kilobytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))!;
  return (Number(kilobytes) * 1024) / 1e9;
}

/** Runs `graft train` and records, for the start and each step, the time and the peak memory until then. */
async function trainAndWatch(recipe: string) {
  const command = [join(packageRoot, 'bin', 'graft.js'), 'train', recipe, '--json', '--fresh'];
  if (checkpointing) command.push('--set', 'train.gradient_checkpointing=true');
  const started = performance.now();
  const child = spawn(process.execPath, command, { cwd: packageRoot, stdio: ['ignore', 'pipe', 'inherit'] });
  process.on('exit', () => child.kill());
  const records: { event: TrainEvent; at: number; peak: number }[] = [];
  let last = '{}';
  for await (const line of createInterface(child.stdout)) {
    last = line;
    const event = fromWire(JSON.parse(line)) as TrainEvent;
    if (event.type === 'start' || event.type === 'step')
      records.push({ event, at: (performance.now() - started) / 1e3, peak: peakMemory(child.pid!) });
  }
  if (!last.includes('"losses"')) throw new Error('graft train ended without a result');
  return { records, result: fromWire(JSON.parse(last)) as TrainResult };
}

const dir = workFolder();
await startEngine();
await writeLlama(dir);
const batches = writeBatches(dir, { mode: 'ragged', rows, steps, vocab, seed });
const { records, result } = await trainAndWatch(
  writeRecipe({ model: dir, batches, dir: join(dir, 'run'), quantize: 'nf4' }),
);

const [loaded] = records;
if (loaded?.event.type !== 'start') throw new Error('the first event of graft train is not its start');
const weights = loaded.event.weightBytes / 1e9;
const stepRecords = records.flatMap(({ event, peak }) => (event.type === 'step' ? [{ ...event, peak }] : []));
const peak = Math.max((result.peakRssMb * 2 ** 20) / 1e9, ...records.map((s) => s.peak));
report(
  'large',
  [
    { what: 'peak memory, GB', got: peak, bar: checkpointing ? 6 : 7, better: 'less' },
    { what: 'finite losses', got: result.losses.filter(Number.isFinite).length, bar: steps, better: 'more' },
  ],
  {
    parameters: loaded.event.parameters,
    trainable: loaded.event.trainable,
    micro_tokens: loaded.event.microTokens,
    tokens: stepRecords.map((s) => s.tokens),
    losses: result.losses.map(round),
    weights_gb: round(weights),
    weights_share_of_peak: round(weights / peak),
    peak_of_load_gb: round(loaded.peak),
    peak_after_steps_gb: stepRecords.map((s) => round(s.peak)),
    peak_of_result_gb: round((result.peakRssMb * 2 ** 20) / 1e9),
    load_seconds: round(loaded.at),
    step_seconds: stepRecords.map((s) => round(s.seconds)),
  },
);
