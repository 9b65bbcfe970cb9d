import { totalmem } from 'node:os';
import { freeMemory } from '../../base/index.ts';
import { currentEngine, type Gpu, processor } from '../../engine/index.ts';
import { resolveModel } from '../../io/index.ts';
import { heldBytes, openModel, type Quantize } from '../../models/index.ts';
import { bestPrecision, kernelsText, type Precision } from '../../nn/index.ts';
import { quantizeModes } from '../../quant/index.ts';
import { currentDevice, freeDeviceMemory, host, ops, scope } from '../../tensor/index.ts';
import {
  type BlockShape,
  bytesPerToken,
  type LlamaShape,
  llamaShapes,
  shapeOf,
  tensorsOf,
  tokenBudget,
} from '../../train/index.ts';
import { type MemoryChoice, memoryChoices } from './memory-choices.ts';

export interface DoctorArgs {
  /** A model to plan for; without it, three shapes of Llama. */
  readonly model?: string | undefined;
  /** Loads LibTorch's CUDA half, where there is a GPU. */
  readonly device: 'auto';
}

/** Memory that a model takes in one form of its weights, and what is left for tokens. */
export interface Fit {
  /** How the weights are held in memory. */
  readonly quantize: Quantize;
  /** Bytes that the weights take. */
  readonly weightBytes: number;
  /** Tokens of a micro-batch by default; null: weights and adapter alone are more than the free memory. */
  readonly microTokens: number | null;
}

/** What a model needs for training on this machine. */
export interface MemoryPlan {
  /** The model, or the size of a common one. */
  readonly name: string;
  /** How many parameters it has. */
  readonly parameters: number;
  /** LoRA r=8 on all linear layers: parameters, gradients and AdamW's two moments. */
  readonly adapterBytes: number;
  /** Of activations that one token keeps for the backward pass. */
  readonly bytesPerToken: number;
  /** Memory by the form of the weights. */
  readonly fits: readonly Fit[];
}

/** What the engine does on this machine, and what its memory has room for. */
export interface DoctorResult {
  /** Processor threads that the engine uses by default. */
  readonly threads: number;
  /** Memory that is free, in bytes. */
  readonly freeBytes: number;
  /** Memory of the machine, in bytes. */
  readonly totalBytes: number;
  /** Which versions of the kernels are taken. */
  readonly kernels: string;
  /** GFLOP/s of matrix products. */
  readonly gemm: Readonly<Record<'float32' | 'bfloat16', number>>;
  /** The NVIDIA GPUs, and why none can be used. */
  readonly cuda: {
    /** The version of CUDA that the driver supports; null: there is no driver. */
    readonly driver: number | null;
    /** The GPUs that the driver shows. */
    readonly gpus: readonly Gpu[];
    /** Why none can be used, with what to do; null where one can. */
    readonly problem: string | null;
  };
  /** Where everything computes by default: `device: auto`. */
  readonly device: string;
  /** Whether the fused operators run there, or several of LibTorch's own in their place. */
  readonly deviceKernels: string;
  /** The precision that training takes by default. */
  readonly precision: Precision;
  /** Why it takes this precision. */
  readonly precisionReason: string;
  /** The model that was asked for, or three common sizes. */
  readonly plans: readonly MemoryPlan[];
  /** What ways of training the model that was asked for take. */
  readonly choices?: readonly MemoryChoice[];
}

/** Measures what the engine does on this machine, and what its memory has room for. */
export async function doctor({ model }: DoctorArgs): Promise<DoctorResult> {
  const { native, cuda } = currentEngine();
  const { features } = processor();
  const freeBytes = freeMemory();
  const free = freeDeviceMemory();
  const plans = model === undefined ? shapes.map((s) => planShape(s, free)) : [await planModel(model, free)];
  const gemm: Record<'float32' | 'bfloat16', number> = { float32: gemmRate('float32'), bfloat16: gemmRate('bfloat16') };
  const precision = bestPrecision();
  const onHost = currentDevice() === host;
  const hasProducts = features.avx512_bf16 || features.amx_bf16;
  return {
    threads: native.threads(),
    freeBytes,
    totalBytes: totalmem(),
    kernels: instructionsText(native.kernels()),
    gemm,
    cuda: {
      driver: cuda.driver ?? null,
      gpus: cuda.gpus,
      problem: cuda.problem?.message ?? null,
    },
    device: currentDevice(),
    deviceKernels: kernelsText(currentDevice(), 'float32'),
    precision,
    precisionReason: {
      mixed: 'losses in float32, backward products from bfloat16 factors, all else in float32',
      bfloat16: 'dense weights and the factors of products, all else in float32',
      float32: `${onHost ? 'this processor' : 'this GPU'} ${onHost && hasProducts ? 'is slower with' : 'has no'} bfloat16 products`,
    }[precision],
    plans,
    ...(model !== undefined && { choices: memoryChoices(await resolveModel(model), free) }),
  };
}

const instructionsText = ({ avx512, mkl }: { readonly avx512: boolean; readonly mkl: boolean }) =>
  `${avx512 ? 'AVX-512' : 'AVX2'}; matrix products of MKL ${mkl ? 'for this processor' : 'for any processor'}`;

/** GFLOP/s of [1024, 576] × [576, 1536], median of nine. */
export function gemmRate(dtype: 'float32' | 'bfloat16'): number {
  using _ = scope();
  const a = ops.ones([1024, 576], { dtype });
  const b = ops.t(ops.ones([1536, 576], { dtype }));
  const once = () => {
    const start = performance.now();
    for (let i = 0; i < 2; i++) ops.mm(a, b).dispose();
    // A read waits for the device.
    ops.select(ops.select(ops.mm(a, b), 0, 0), 0, 0).item();
    return (3 * 2 * 1024 * 576 * 1536) / ((performance.now() - start) / 1e3) / 1e9;
  };
  once();
  return Array.from({ length: 9 }, once).sort((x, y) => x - y)[4]!;
}

/** Sizes that fit on one machine. */
const shapes = [llamaShapes['smollm2-135m'], llamaShapes['llama-1b'], llamaShapes['llama-7b']];

const planShape = (shape: LlamaShape, free: number) =>
  plan(shape.title, { stored: tensorsOf(shape), family: { heads: [] } }, shape, shape.vocab, free);

async function planModel(spec: string, free: number): Promise<MemoryPlan> {
  const { source, config, stored, family } = openModel(await resolveModel(spec));
  using _ = source;
  return plan(spec, { stored, family }, shapeOf(stored), (config as { vocab_size?: number }).vocab_size ?? 0, free);
}

function plan(
  name: string,
  model: Parameters<typeof heldBytes>[0],
  shape: BlockShape,
  vocab: number,
  free: number,
): MemoryPlan {
  const entries = [...model.stored.values()].map(({ entry }) => entry);
  const linear = entries.filter((e) => e.shape.length === 2 && e.shape[0] !== vocab);
  const adapterBytes = linear.reduce((sum, e) => sum + 8 * (e.shape[0]! + e.shape[1]!) * 16, 0);
  const fits = quantizeModes.map((quantize): Fit => {
    const weightBytes = heldBytes(model, quantize);
    const left = free - weightBytes - adapterBytes;
    const microTokens = left > 0 ? tokenBudget(shape, weightBytes, left, bestPrecision()) : null;
    return { quantize, weightBytes, microTokens };
  });
  const parameters = entries.reduce((sum, e) => sum + e.shape.reduce((a, b) => a * b, 1), 0);
  return { name, parameters, adapterBytes, bytesPerToken: bytesPerToken(shape), fits };
}
