import { dequantized, hasOwnKernels } from '../quant/index.ts';
import { type Device, type DType, host, ops, type Tensor } from '../tensor/index.ts';
import { composite, pooledBy } from './composite.ts';
import { fused } from './fused.ts';
import type { Kernels } from './kernels.ts';
import { rowAttention } from './row-attention.ts';

/** The fused operators that have kernels for GPUs (native/cuda/). */
const onGpu = [
  'rmsNorm',
  'addRmsNorm',
  'rope',
  'glu',
  'linears',
  'linear',
  'loraLinear',
  'loraGatedLinear',
  'addLowRankRuns',
  'linearCrossEntropy',
] as const;
const compiled: Partial<Kernels> = {
  ...Object.fromEntries(onGpu.map((name) => [name, fused[name]])),
  pooledAttention: pooledBy(rowAttention, fused.rope),
};

/** What takes the place of composite kernels, by the kind of device and the element type of the model: absent, any. */
const own: readonly { device: string; dtype?: DType; ours?: true; kernels: Partial<Kernels> }[] = [
  { device: host, dtype: 'float32', kernels: fused },
  { device: 'cuda', kernels: { attention: rowAttention, pooledAttention: pooledBy(rowAttention, composite.rope) } },
  { device: 'cuda', dtype: 'float32', ours: true, kernels: compiled },
  { device: 'cuda', dtype: 'bfloat16', ours: true, kernels: compiled },
];

/**
 * Returns the kernels for a device and an element type: the fused operators that are compiled for it, and in place of others their twins.
 * @param ours false: on a GPU the twins of all, made of LibTorch's operators
 */
export function kernelsOn(device: Device, dtype: DType, ours = hasOwnKernels(device)): Kernels {
  const [kind] = device.split(':');
  const found = own.filter((row) => row.device === kind && (row.dtype ?? dtype) === dtype && (ours || !row.ours));
  return Object.assign({}, composite, ...found.map(({ kernels }) => kernels)) as Kernels;
}

/** Names the kernels of a device, for people: the fused operators that are missing there run as several of LibTorch's. */
export function kernelsText(device: Device, dtype: DType): string {
  const kernels = kernelsOn(device, dtype);
  const all = Object.keys(fused) as (keyof Kernels)[];
  const fusedCount = all.filter((name) => kernels[name] === fused[name]).length;
  if (fusedCount === all.length) return 'fused operators';
  return fusedCount === 0
    ? "LibTorch's own operators"
    : `${fusedCount} of ${all.length} fused operators, else LibTorch's own`;
}

/** Returns rows of a table, dense or packed in the number format `format`: ids int64 [N] → [N, C]. */
export function embedding(table: Tensor, format: number, ids: Tensor): Tensor {
  if (table.device === host) return ops.blockEmbedding(table, format, ids);
  return format < 0 ? ops.embedding(table, ids) : dequantized(ops.indexSelect(table, 0, ids), format);
}
