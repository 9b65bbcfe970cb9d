/**
 * The 8-bit numbers of bitsandbytes' optimizers (dynamic quantisation, arXiv 1511.04561 and 2110.02861): decades from 10⁻⁶ to 1, of which
 * each larger one has twice as many numbers. Blocks of 256 share their largest magnitude.
 */
import { ops, Tensor } from '../tensor/index.ts';

/** Numbers of a state that share a magnitude. */
export const blockSize = 256;

const f = Math.fround;

/** The middles of `count` equal parts of 0.1 to 1, in float32 as torch.linspace rounds. */
function middles(count: number): number[] {
  const [from, to] = [f(0.1), 1];
  const width = f(f(to - from) / count);
  const bounds = Array.from({ length: count + 1 }, (_, i) =>
    2 * i < count + 1 ? f(from + width * i) : f(to - width * (count - i)),
  );
  return bounds.slice(1).map((bound, i) => f(f(bounds[i]! + bound) / 2));
}

/** Returns the 256 numbers in ascending order: 0, 1, and 254 between, half of them negative where the state has a sign. */
function numbersOf(signed: boolean): Float32Array {
  const decades = Array.from({ length: 7 }, (_, i) =>
    middles(signed ? 2 ** i : 2 ** (i + 1)).map((middle) => f(f(10 ** (i - 6)) * middle)),
  ).flat();
  return new Float32Array([...decades, ...(signed ? decades.map((x) => -x) : []), 0, 1]).sort();
}

const numbers = { signed: numbersOf(true), unsigned: numbersOf(false) };

/** Returns the numbers of codes 0 to 255, float32 [256]. */
export const codesOf = (kind: keyof typeof numbers): Tensor => Tensor.from(numbers[kind], [256]);

/** Returns the blocks of a tensor as rows [blocks, 256]; past its end they hold 0. */
function inBlocks(x: Tensor): Tensor {
  const count = x.shape.reduce((a, b) => a * b, 1);
  const rest = Math.ceil(count / blockSize) * blockSize - count;
  const flat = ops.reshape(x, [-1]);
  return ops.view(rest > 0 ? ops.cat([flat, ops.zeros([rest], { dtype: x.dtype })]) : flat, [-1, blockSize]);
}

const trimmed = (blocks: Tensor, shape: readonly number[]): Tensor =>
  ops.view(
    ops.narrow(
      ops.reshape(blocks, [-1]),
      0,
      0,
      shape.reduce((a, b) => a * b, 1),
    ),
    shape,
  );

/** Returns the numbers that codes and the magnitudes of their blocks stand for. */
export function decoded(codes: Tensor, largest: Tensor, kind: keyof typeof numbers): Tensor {
  const indices = ops.toCopy(inBlocks(codes), { dtype: 'int64' });
  const values = ops.view(ops.indexSelect(codesOf(kind), 0, ops.reshape(indices, [-1])), indices.shape);
  return trimmed(ops.mul(values, ops.unsqueeze(largest, 1)), codes.shape);
}

/** Writes the nearest codes of numbers, and the magnitudes of their blocks. A block of zeros has the code 0. */
export function encode(x: Tensor, codes: Tensor, largest: Tensor, kind: keyof typeof numbers): void {
  const table = codesOf(kind);
  const blocks = inBlocks(x);
  ops.copy_(largest, ops.amax(ops.abs(blocks), [1]));
  const between = ops.divScalar(ops.add(ops.narrow(table, 0, 0, 255), ops.narrow(table, 0, 1, 255)), 2);
  const nearest = ops.bucketize(ops.div(blocks, ops.unsqueeze(largest, 1)), between);
  const ofZeros = ops.unsqueeze(ops.eqScalar(largest, 0), 1);
  ops.copy_(codes, trimmed(ops.maskedFill(nearest, ofZeros, 0), codes.shape));
}
