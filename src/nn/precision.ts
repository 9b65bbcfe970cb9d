/** The precision of matrix products with frozen weights. Sums, results and all other operations are float32. */
import { type Processor, processor } from '../engine/index.ts';
import { ops } from '../tensor/index.ts';

/**
 * - `float32`: no factor is rounded
 * - `mixed`: no factor of the forward pass is rounded, so that losses are those of float32; factors of the backward pass
 *   are rounded to bfloat16
 * - `bfloat16`: factors of all products are rounded to bfloat16
 */
export const precisions = ['float32', 'mixed', 'bfloat16'] as const;

/** A precision of matrix products with frozen weights: see `precisions`. */
export type Precision = (typeof precisions)[number];

/**
 * Returns `mixed` where the processor multiplies bfloat16 faster than float32, else `float32`. AMX does, 5 times as fast,
 * and AMD's AVX-512 twice as fast; Intel's AVX-512 alone takes 1.7 times as long as float32 (docs/log.md).
 */
export function bestPrecision({ vendor, features }: Pick<Processor, 'vendor' | 'features'> = processor()): Precision {
  const { avx512_bf16, amx_bf16 } = features;
  return amx_bf16 || (avx512_bf16 && vendor === 'AuthenticAMD') ? 'mixed' : 'float32';
}

/** Sets the precision of the products that follow; disposing sets it to float32. */
export function usePrecision(precision: Precision): Disposable {
  ops.setReducedProducts(precision === 'bfloat16', precision !== 'float32');
  return { [Symbol.dispose]: () => ops.setReducedProducts(false, false) };
}

/**
 * Until it is disposed, the product of a row with a weight in blocks has the same bits whoever shares the batch, for up to 32 rows. Without it,
 * it has those of a product with the unpacked weight, except where there are 8 rows or fewer.
 */
export function useRowWiseProducts(): Disposable {
  ops.setRowWiseProducts(true);
  return { [Symbol.dispose]: () => ops.setRowWiseProducts(false) };
}
