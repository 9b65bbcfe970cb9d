/** The precision of matrix products with frozen weights. Sums, results and all other operations are float32. */
import { GraftError } from '../base/index.ts';
import { type Processor, processor } from '../engine/index.ts';
import { currentDevice, type Device, host, ops } from '../tensor/index.ts';

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
 * Returns the precision that training takes by default on a device: `float32` on a GPU, and on the processor as
 * `precisionOfProcessor` says.
 */
export const bestPrecision = (device: Device = currentDevice()): Precision =>
  device === host ? precisionOfProcessor() : 'float32';

/**
 * Returns `mixed` where the processor multiplies bfloat16 faster than float32, else `float32`. AMX does, 5 times as fast,
 * and AMD's AVX-512 twice as fast; Intel's AVX-512 alone takes 1.7 times as long as float32 (docs/log.md).
 */
export function precisionOfProcessor(
  { vendor, features }: Pick<Processor, 'vendor' | 'features'> = processor(),
): Precision {
  const { avx512_bf16, amx_bf16 } = features;
  return amx_bf16 || (avx512_bf16 && vendor === 'AuthenticAMD') ? 'mixed' : 'float32';
}

/** Sets the precision of the products that follow; disposing sets it to float32. */
export function usePrecision(precision: Precision): Disposable {
  if (currentDevice() !== host && precision !== 'float32') {
    throw new GraftError(
      'usage',
      `products of precision ${precision} are the processor's, and the model is on ${currentDevice()}`,
      {
        place: 'train.precision',
        hint: 'Set it to auto or float32',
      },
    );
  }
  ops.setReducedProducts(precision === 'bfloat16', precision !== 'float32');
  return { [Symbol.dispose]: () => ops.setReducedProducts(false, false) };
}
