/** In what precision products with frozen weights are computed. Sums, results and all else are float32. */
import { type Processor, processor } from '../engine/index.ts';
import { ops } from '../tensor/index.ts';

/**
 * - `float32`: every product exact
 * - `mixed`: forward exact, so that losses are; factors of the backward products rounded to bfloat16
 * - `bfloat16`: factors of all products rounded to bfloat16
 */
export const precisions = ['float32', 'mixed', 'bfloat16'] as const;

export type Precision = (typeof precisions)[number];

/**
 * `mixed` where the processor multiplies bfloat16 faster than float32, else `float32`. AMX does, 5 times as fast, and AMD's
 * AVX-512 twice as fast; Intel's AVX-512 alone takes 1.7 times as long as float32 (docs/log.md).
 */
export function bestPrecision({ vendor, features }: Pick<Processor, 'vendor' | 'features'> = processor()): Precision {
  const { avx512_bf16, amx_bf16 } = features;
  return amx_bf16 || (avx512_bf16 && vendor === 'AuthenticAMD') ? 'mixed' : 'float32';
}

/** Sets the precision of the products that follow; `using` puts float32 back. */
export function usePrecision(precision: Precision): Disposable {
  ops.setReducedProducts(precision === 'bfloat16', precision !== 'float32');
  return { [Symbol.dispose]: () => ops.setReducedProducts(false, false) };
}
