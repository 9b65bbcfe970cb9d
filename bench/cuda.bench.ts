/**
 * What a GPU has to show: the numbers of the processor, and speed and memory beside PEFT in bfloat16.
 *   npm run proof:cuda -- [--device cuda:1] [--shape 1b|8b|tiny] [--rows 8] [--steps 6] [--only numbers,kernels,training,decoding,steady]
 * numbers: the loss and the gradients of every method on every family in float32, and a generated text, as on the processor. kernels: our
 * operators at 4,096 tokens against LibTorch's, and the share of the bandwidth of a copy that they reach. training:
 * LoRA r=16 on all linear layers of a random Llama, ragged rows of 32 to 2,048 tokens, second half predicted, in turn with PEFT on the same
 * rows. decoding: one stream, as a share of what reading the weights once a token takes at the measured bandwidth of a copy. steady: memory
 * over 200 steps. `--device cpu` tries the proof itself, on a small shape.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { savedAdapters } from '../src/adapters/index.ts';
import { GraftError } from '../src/base/index.ts';
import { pack } from '../src/data/index.ts';
import { currentEngine, deviceOf, startEngine } from '../src/engine/index.ts';
import { generate } from '../src/generate/index.ts';
import { attachMethods } from '../src/methods/index.ts';
import { loadModel } from '../src/models/index.ts';
import { type Kernels, kernelsOn, tensorBytes, usePrecision } from '../src/nn/index.ts';
import { createOptimizer } from '../src/optim/index.ts';
import { formats, unpacked } from '../src/quant/index.ts';
import { type DType, manualSeed, noGrad, onDevice, ops, scope, type Tensor, useDevice } from '../src/tensor/index.ts';
import { batchLoss, trainStep } from '../src/train/index.ts';
import { type Base, familyBases } from '../test/conformance/bases.ts';
import { type FamilyCase, familyCases } from '../test/conformance/family-cases.ts';
import { randomLlama } from '../test/samples/llama.ts';
import { type Bar, integers, median, peer, report, workFolder } from './support.ts';

const shapes = {
  tiny: { width: 64, inner: 128, layers: 2, heads: 4, vocab: 512 },
  '1b': { width: 2048, inner: 8192, layers: 16, heads: 32, vocab: 32_000 },
  '8b': { width: 4096, inner: 14_336, layers: 32, heads: 32, vocab: 32_000 },
} as const;

const { values: args } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    shape: { type: 'string', default: '1b' },
    rows: { type: 'string', default: '8' },
    steps: { type: 'string', default: '6' },
    only: { type: 'string', default: 'numbers,kernels,training,decoding,steady' },
  },
});

interface Found {
  readonly bars: readonly Bar[];
  readonly details: object;
}

/** The loss and all gradients of a step in float32, from the same initial values on every device. */
function stepOn(device: string, base: Base, { choices, refuses }: FamilyCase): number[] | undefined {
  const choice = choices(base); // may save adapters
  return onDevice(device, () => {
    using _ = scope();
    using model = base.load();
    if (refuses?.(model)) return undefined;
    using adapter = attachMethods(model, choice, 0, savedAdapters(model));
    manualSeed(1);
    const loss = batchLoss(model, base.batch(model));
    loss.backward();
    const gradients = [...adapter.parameters.values()].flatMap(({ grad }) => (grad ? [...grad.data()] : []));
    return [loss.item(), ...gradients.map(Number)];
  });
}

const norm = (numbers: readonly number[]) => Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0));

function numbers(device: string): Found {
  let [largest, steps] = [0, 0];
  for (const base of familyBases) {
    for (const familyCase of familyCases) {
      const expected = stepOn('cpu', base, familyCase);
      if (!expected) continue;
      const found = stepOn(device, base, familyCase)!;
      const difference = norm(expected.map((x, i) => x - found[i]!)) / norm(expected);
      if (!(difference <= largest)) largest = difference; // NaN remains
      steps++;
    }
  }
  const bars: Bar[] = [
    { what: `${steps} steps, difference from the processor`, got: largest, bar: 1e-4, better: 'less' },
  ];
  return { bars, details: { steps } };
}

/** Rows of 32 to 2,048 tokens, of which the second half is predicted, for each step. */
function raggedRows(vocab: number, steps: number, rows: number, longest: number) {
  const below = integers(0);
  return Array.from({ length: steps }, () =>
    Array.from({ length: rows }, () => {
      const ids = Array.from({ length: 32 + below(longest - 31) }, () => 3 + below(vocab - 3));
      return { ids, labels: ids.map((id, i) => (i < ids.length >> 1 ? -100 : id)) };
    }),
  );
}

type Rows = ReturnType<typeof raggedRows>;

const batchOf = (rows: Rows[number]) =>
  pack(rows.map(({ ids, labels }) => ({ ids: Int32Array.from(ids), labels: Int32Array.from(labels), place: 'bench' })));

/** Trains LoRA on all linear layers. Returns seconds of each step, and bytes of tensors after each. */
function trainOn(model: string, precision: 'float32' | 'bfloat16', batches: Rows, steps: number) {
  using _ = usePrecision(precision);
  using base = loadModel(model);
  using adapter = attachMethods(base, [{ type: 'lora', r: 16, target_modules: 'all-linear' }], 0, savedAdapters(base));
  using optimizer = createOptimizer({ type: 'adamw' } as never, adapter.parameters);
  const { native } = currentEngine();
  native.allocated();
  const seconds: number[] = [];
  const bytes: number[] = [];
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    trainStep({
      model: base,
      parameters: adapter.parameters,
      optimizer,
      batches: [batchOf(batches[step % batches.length]!)],
      lr: 1e-4,
      maxGradNorm: undefined,
      seed: 0,
      step,
    });
    seconds.push((performance.now() - start) / 1e3);
    bytes.push(native.allocated().now);
  }
  return { seconds, bytes, parameters: base.parameters };
}

function training(device: string, model: string, precision: 'float32' | 'bfloat16', batches: Rows): Found {
  const file = join(workFolder(), 'batches.jsonl');
  writeFileSync(file, batches.map((rows) => `${JSON.stringify({ rows })}\n`).join(''));
  const tokens = batches.map((rows) => rows.reduce((sum, { ids }) => sum + ids.length, 0));
  const [ours, theirs, peaks]: [number[], number[], number[]] = [[], [], []];
  let peak = 0;
  for (let turn = 0; turn < 2; turn++) {
    const { seconds } = trainOn(model, precision, batches, batches.length);
    const rest = tokens.slice(1).reduce((a, b) => a + b, 0);
    ours.push(rest / seconds.slice(1).reduce((a, b) => a + b, 0));
    peak = Math.max(peak, currentEngine().native.allocated().peak);
    const found = peer(
      'train.py',
      '--model',
      model,
      '--batches',
      file,
      '--rank',
      '16',
      '--device',
      device,
      '--dtype',
      precision,
    );
    theirs.push(found.tokens_per_s as number);
    peaks.push(found.peak_bytes as number);
  }
  return {
    bars: [
      { what: 'LoRA r=16, tokens/s compared with PEFT', got: median(ours) / median(theirs), bar: 1.5, better: 'more' },
      ...(device === 'cpu'
        ? []
        : [{ what: 'peak memory compared with PEFT', got: peak / median(peaks), bar: 0.6, better: 'less' } as const]),
    ],
    details: { tokens_per_s: ours, peer_tokens_per_s: theirs, peak_bytes: peak, peer_peak_bytes: peaks },
  };
}

/** Bytes a second that a copy on the device reads and writes. */
function bandwidth(): number {
  using _ = scope();
  const count = 2 ** 26;
  const [from, to] = [ops.ones([count]), ops.zeros([count])];
  const rates = Array.from({ length: 7 }, () => {
    ops.sum(ops.narrow(to, 0, 0, 1)).item(); // what was asked for before is done
    const start = performance.now();
    for (let i = 0; i < 8; i++) ops.copy_(to, from);
    ops.sum(ops.narrow(to, 0, 0, 1)).item();
    return (8 * 2 * 4 * count) / ((performance.now() - start) / 1e3);
  });
  return median(rates);
}

/** Seconds of one call, the median of several series. */
function secondsOf(call: () => Tensor): number {
  const done = (t: Tensor) => ops.sum(ops.reshape(ops.narrow(t, 0, 0, 1), [-1])).item();
  const series = Array.from({ length: 7 }, () => {
    using _ = scope();
    done(call());
    const start = performance.now();
    for (let i = 0; i < 15; i++) call();
    done(call());
    return (performance.now() - start) / 1e3 / 16;
  });
  return median(series);
}

/** Our operators that memory limits, each against its twin. */
function kernels(device: string): Found {
  using _ = scope();
  const onGpu = device !== 'cpu';
  const [n, c, dtype, width]: [number, number, DType, number] = onGpu
    ? [4096, 4096, 'bfloat16', 2]
    : [256, 512, 'float32', 4];
  const [ours, twins] = [
    kernelsOn(device, dtype, true),
    onGpu ? kernelsOn(device, dtype, false) : kernelsOn('meta', dtype),
  ];
  const random = (...shape: number[]) => ops.toCopy(ops.randn(shape, { generator: null }), { dtype });
  const [x, y, weight] = [random(n, c), random(n, c), random(c)];
  const [heads, angles] = [ops.view(x, [n, c / 128, 128]), () => random(n, 64)];
  const rotation = [angles(), angles()] as const;
  const { nativeId, blockBytes, blockElements } = formats.q4_k;
  const packed = ops
    .quantize(
      onDevice('cpu', () => ops.randn([n, c], { generator: null })),
      nativeId!,
    )
    .to(device);
  /** Numbers of activations that are read and written, for each of n·c. */
  const cases: readonly (readonly [name: string, moved: number, run: (k: Kernels) => Tensor])[] = [
    ['rms_norm', 2, (k) => k.rmsNorm(x, weight, 1e-5)],
    ['add_rms_norm', 4, (k) => k.addRmsNorm(x, y, weight, 1e-5)[1]],
    ['rope', 2, (k) => k.rope(heads, ...rotation)],
    ['glu', 3, (k) => k.glu(x, y, 'silu')],
    [
      'dequantize q4_k',
      1 + blockBytes / blockElements / width,
      (k) =>
        k === ours ? ops.dequantize(packed, nativeId!, dtype) : ops.toCopy(unpacked(packed, nativeId!), { dtype }),
    ],
  ];
  const limit = bandwidth();
  const details: Record<string, number> = {};
  const bars = cases.flatMap(([name, moved, run]): Bar[] =>
    noGrad(() => {
      const numbers = (k: Kernels) => [...ops.toCopy(run(k), { dtype: 'float32' }).data()].map(Number);
      const [expected, found] = [numbers(twins), numbers(ours)];
      const difference = norm(expected.map((e, i) => e - found[i]!)) / norm(expected);
      const [seconds, twin] = [secondsOf(() => run(ours)), secondsOf(() => run(twins))];
      details[`${name}, seconds of the twin's`] = seconds / twin;
      return [
        { what: `${name}, difference from its twin`, got: difference, bar: onGpu ? 1e-2 : 1e-5, better: 'less' },
        {
          what: `${name}, share of the bandwidth`,
          got: (moved * n * c * width) / seconds / limit,
          bar: 0.7,
          better: 'more',
        },
      ];
    }),
  );
  return { bars, details };
}

function decoding(model: string, precision: 'float32' | 'bfloat16'): Found {
  using _ = usePrecision(precision);
  using base = loadModel(model);
  const tokens = generate(base, [5, 6, 7, 8], { maxNewTokens: 65 });
  tokens.next();
  const start = performance.now();
  for (let i = 0; i < 64; i++) tokens.next();
  const perSecond = 64 / ((performance.now() - start) / 1e3);
  const limit = bandwidth() / tensorBytes(base.root);
  return {
    bars: [
      { what: 'decoding one stream, share of the bandwidth limit', got: perSecond / limit, bar: 0.6, better: 'more' },
    ],
    details: { decode_tokens_per_s: perSecond, limit_tokens_per_s: limit },
  };
}

function steady(model: string, precision: 'float32' | 'bfloat16', batches: Rows): Found {
  const short = batches.map((rows) =>
    rows.slice(0, 2).map(({ ids, labels }) => ({ ids: ids.slice(0, 128), labels: labels.slice(0, 128).fill(5, 64) })),
  );
  const { bytes } = trainOn(model, precision, short, 200);
  const growth = bytes[199]! / bytes[19]! - 1;
  return {
    bars: [{ what: 'memory at step 200 compared with step 20', got: growth, bar: 0.02, better: 'less' }],
    details: {},
  };
}

async function main(): Promise<void> {
  const { cuda } = await startEngine();
  const device = deviceOf(args.device);
  const shape = shapes[args.shape as keyof typeof shapes];
  if (!shape) {
    throw new GraftError('usage', `--shape: there is no '${args.shape}'`, {
      hint: `Those known: ${Object.keys(shapes).join(', ')}`,
    });
  }
  const precision = device === 'cpu' ? 'float32' : 'bfloat16';
  const dir = randomLlama(join(workFolder(), 'llama'), { ...shape, dtype: 'bfloat16' });
  const batches = raggedRows(shape.vocab, Number(args.steps), Number(args.rows), device === 'cpu' ? 256 : 2048);
  using _ = useDevice(device);
  const parts: Record<string, () => Found> = {
    numbers: () => numbers(device),
    kernels: () => kernels(device),
    training: () => training(device, dir, precision, batches),
    decoding: () => decoding(dir, precision),
    steady: () => steady(dir, precision, batches),
  };
  const found = args.only.split(',').map((name) => {
    const part = parts[name];
    if (!part)
      throw new GraftError('usage', `--only: there is no '${name}'`, {
        hint: `Those known: ${Object.keys(parts).join(', ')}`,
      });
    return part();
  });
  const details = Object.assign({}, ...found.map((each) => each.details)) as object;
  report(
    'cuda',
    found.flatMap(({ bars }) => bars),
    { ...args, ...details, device, gpus: cuda.gpus },
  );
}

try {
  await main();
} catch (error) {
  if (!(error instanceof GraftError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
