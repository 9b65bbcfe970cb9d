import { freeMemory, GraftError } from '../base/index.ts';
import type { WeightEntry } from '../io/index.ts';
import { formatOfQuantize, formats, type Quantize, quantizeModes } from '../quant/index.ts';
import type { DType } from '../tensor/index.ts';

/** Returns the bytes that a model's weights take in memory, from the list of its stored tensors. */
export function heldBytes(entries: Iterable<WeightEntry>, quantize: Quantize, dtype: DType = 'float32'): number {
  const packed = formatOfQuantize(quantize);
  let sum = 0;
  for (const { shape, format, bytes } of entries) {
    const elements = shape.reduce((a, b) => a * b, 1);
    const isMatrix = shape.length === 2;
    if (isMatrix && quantize === 'keep' && formats[format].nativeId !== undefined) sum += bytes;
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
export function requireMemory(path: string, entries: readonly WeightEntry[], quantize: Quantize, dtype?: DType): void {
  const free = freeMemory();
  const needed = heldBytes(entries, quantize, dtype);
  if (needed <= free) return;
  const fitting = quantizeModes.find((mode) => mode !== 'none' && heldBytes(entries, mode) < 0.9 * free);
  throw new GraftError(
    'environment',
    `the weights take ${gigabytes(needed)} with quantize: ${quantize}, and ${gigabytes(free)} of memory are free`,
    {
      place: path,
      hint: fitting
        ? `With quantize: ${fitting} they take ${gigabytes(heldBytes(entries, fitting))}`
        : 'Free some memory, or choose a smaller model',
      data: { needed, free },
    },
  );
}
