/** The precision of matrix products with frozen weights. Sums, results and all other operations are float32. */
import { GraftError } from '../base/index.ts';
import { currentEngine, type Processor, processor } from '../engine/index.ts';
import { currentDevice, type DType, host, ops } from '../tensor/index.ts';

/**
 * - `float32`: no factor is rounded
 * - `mixed`: no factor of the forward pass is rounded, so that losses are those of float32; factors of the backward pass
 *   are rounded to bfloat16
 * - `bfloat16`: factors of all products are rounded to bfloat16; on a GPU dense weights are held in it
 */
export const precisions = ['float32', 'mixed', 'bfloat16'] as const;

/** A precision of matrix products with frozen weights: see `precisions`. */
export type Precision = (typeof precisions)[number];

/** The lowest compute capability with products of bfloat16: Ampere. */
const bfloat16Capability = 8;

/**
 * Returns the precision that training takes by default on the device of new tensors: on the processor as `precisionOfProcessor` says, on
 * a GPU that multiplies bfloat16 that.
 * @param trainsWeights whether the base's own weights are trained, which bfloat16 has too few bits for
 */
export function bestPrecision(trainsWeights = false): Precision {
  const device = currentDevice();
  if (device === host) return precisionOfProcessor();
  const gpu = currentEngine().cuda.gpus[Number(device.split(':')[1])];
  return gpu && gpu.capability >= bfloat16Capability && !trainsWeights ? 'bfloat16' : 'float32';
}

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

let weightType: DType = 'float32';

/** The element type in which dense weights of the precision in use are held. */
export const denseType = (): DType => weightType;

/**
 * Sets the precision of the products that follow on the device of new tensors; disposing sets it to float32. On a GPU bfloat16 holds for
 * all products and for the dense weights that are loaded meanwhile; what is trained, sums and results of norms are float32.
 * @throws GraftError 'usage' for `mixed` on a GPU
 */
export function usePrecision(precision: Precision): Disposable {
  if (currentDevice() === host) {
    ops.setReducedProducts(precision === 'bfloat16', precision !== 'float32');
    return { [Symbol.dispose]: () => ops.setReducedProducts(false, false) };
  }
  if (precision === 'mixed') {
    throw new GraftError('usage', `mixed precision is the processor's, and the model is on ${currentDevice()}`, {
      place: 'train.precision',
      hint: 'Set it to bfloat16 or float32',
    });
  }
  const { native } = currentEngine();
  const set = (isRounded: boolean) => {
    native.roundProducts(isRounded);
    weightType = isRounded ? 'bfloat16' : 'float32';
  };
  set(precision === 'bfloat16');
  return { [Symbol.dispose]: () => set(false) };
}

/**
 * Until it is disposed, the product of a row with a frozen weight has the same bits whoever shares the batch, for up to 32 rows. Without it,
 * it has those of a product with the unpacked weight, except where there are 8 rows or fewer, or a single one of a dense weight.
 */
export function useRowWiseProducts(): Disposable {
  ops.setRowWiseProducts(true);
  return { [Symbol.dispose]: () => ops.setRowWiseProducts(false) };
}
