import { GraftError } from '../base/index.ts';
import type { WeightEntry } from '../io/index.ts';
import { formatOfQuantize, formats, type Quantize, quantizeModes } from '../quant/index.ts';
import { type DType, freeDeviceMemory } from '../tensor/index.ts';
import type { Family } from './family.ts';

/** The stored tensors of a model by key, and its family, which knows how it holds them. */
interface StoredModel {
  readonly stored: ReadonlyMap<string, { readonly entry: WeightEntry }>;
  readonly family: Pick<Family, 'heads' | 'headLayers' | 'transposed' | 'adapterHub'>;
}

/**
 * Returns the bytes that a model's weights take in memory, from the list of its stored tensors. Heads are dense, since they are trained;
 * weights that the file stores transposed (Conv1D) are never kept as they are stored.
 */
export function heldBytes({ stored, family }: StoredModel, quantize: Quantize, dtype: DType = 'float32'): number {
  const packed = formatOfQuantize(quantize);
  const heads = new Set([...family.heads, ...(family.headLayers ?? [])]);
  const transposed = new Set(family.transposed ?? []);
  const rowHead = family.adapterHub?.rowHead ?? [];
  let sum = 0;
  for (const [key, { entry }] of stored) {
    const { shape, format, bytes } = entry;
    const elements = shape.reduce((a, b) => a * b, 1);
    const parts = key.split('.');
    const isHead =
      heads.has(parts[0]!) ||
      rowHead.some((path) => key.endsWith(`${path}.weight`) || `${path}.weight`.endsWith(`.${key}`));
    const isMatrix = shape.length === 2 && !isHead;
    const isKept = quantize === 'keep' && formats[format].nativeId !== undefined && !transposed.has(parts.at(-2)!);
    if (isMatrix && isKept) sum += bytes;
    else {
      const { blockElements, blockBytes } = formats[isMatrix && packed ? packed : dtype];
      sum += (elements / blockElements) * blockBytes;
    }
  }
  return sum;
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;

/**
 * Refuses a model that does not fit into free memory, for which the system would end the process.
 * @throws GraftError 'environment' with the memory needed, the memory free, and a `quantize` with which the model fits
 */
export function requireMemory(
  path: string,
  model: StoredModel,
  quantize: Quantize,
  { dtype, sharers = 1 }: { readonly dtype?: DType | undefined; readonly sharers?: number } = {},
): void {
  const free = freeDeviceMemory() / sharers;
  const needed = heldBytes(model, quantize, dtype);
  if (needed <= free) return;
  const fitting = quantizeModes.find((mode) => mode !== 'none' && heldBytes(model, mode) < 0.9 * free);
  throw new GraftError(
    'environment',
    `the weights take ${gigabytes(needed)} with quantize: ${quantize}, and ${gigabytes(free)} of memory are free${sharers > 1 ? ` for each of ${sharers} processes` : ''}`,
    {
      place: path,
      hint: fitting
        ? `With quantize: ${fitting} they take ${gigabytes(heldBytes(model, fitting))}`
        : 'Free some memory, or choose a smaller model',
      data: { needed, free },
    },
  );
}
