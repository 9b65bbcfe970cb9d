import { freeMemory, GraftError } from '../base/index.ts';
import { isBlockFormat, type WeightEntry } from '../io/index.ts';
import { type DType, dtypes } from '../tensor/index.ts';
import type { Quantize } from './stored-weights.ts';

/** Bytes of 64 elements as they are packed at load: two blocks of 32 and a scale, one of 64 half bytes and a scale. */
const packed = { int8: 2 * 34, nf4: 32 + 4 } as const;

/** Bytes that a model's weights take in memory, from the list of its tensors alone. */
export function heldBytes(entries: Iterable<WeightEntry>, quantize: Quantize, dtype: DType = 'float32'): number {
  let sum = 0;
  for (const { shape, format, bytes } of entries) {
    const elements = shape.reduce((a, b) => a * b, 1);
    const matrix = shape.length === 2;
    if (matrix && quantize === 'keep' && (isBlockFormat(format) || dtypes[format].bytes < 4)) sum += bytes;
    else if (matrix && (quantize === 'int8' || quantize === 'nf4')) sum += (elements / 64) * packed[quantize];
    else sum += elements * dtypes[dtype].bytes;
  }
  return sum;
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;

/**
 * Refuses a model that the free memory cannot hold, before the system ends the process for it.
 * @throws GraftError 'environment' with what is needed, what there is, and how the model would fit
 */
export function requireMemory(path: string, entries: readonly WeightEntry[], quantize: Quantize, dtype?: DType): void {
  const free = freeMemory();
  const needed = heldBytes(entries, quantize, dtype);
  if (needed <= free) return;
  const fitting = (['keep', 'int8', 'nf4'] as const).find((how) => heldBytes(entries, how) < 0.9 * free);
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
