/**
 * The unpackers of all block formats in plain ATen operators: on devices without the fused one, and its oracle, bit for bit. A row of a
 * matrix here is a block. Every product with a scale is exact in float32, so it does not matter whether the sum is fused with it.
 * Layouts: native/kernels/blocks.h; formulas: ggml's `ggml-quants.c`, dequantize_row_*; NF4: arXiv 2305.14314.
 */
import {
  type Device,
  type DType,
  detachFromScopes,
  host,
  noGrad,
  onDevice,
  ops,
  scope,
  Tensor,
} from '../tensor/index.ts';
import { type FormatName, formats } from './formats.ts';

const float32 = (x: Tensor) => ops.toCopy(x, { dtype: 'float32' });
/** Some bytes of each block. */
const bytes = (blocks: Tensor, first: number, count: number) => ops.narrow(blocks, 1, first, count);
/** Some bytes of each block as numbers of another type. */
const numbers = (blocks: Tensor, first: number, count: number, dtype: DType) =>
  float32(ops.viewAs(ops.contiguous(bytes(blocks, first, count)), dtype));
const low = (x: Tensor) => ops.bitwiseAnd(x, 15);
const high = (x: Tensor) => ops.shiftRight(x, 4);
/** Low nibbles, then high nibbles. */
const nibbles = (x: Tensor) => float32(ops.cat([low(x), high(x)], 1));
/** x [.., n] → [.., n, shifts]: what is left of each byte without its lowest bits. */
const shifted = (x: Tensor, shifts: number, step = 1) =>
  ops.shiftRightBy(ops.unsqueeze(x, -1), ops.arange(0, shifts * step, step, { dtype: 'uint8', device: x.device }));
/** Bit j of 32 bits, for each j. */
const bits = (x: Tensor) => ops.reshape(ops.bitwiseAnd(shifted(x, 8), 1), [x.size(0), -1, 32]);
const plus = (codes: Tensor, more: Tensor, times: number) => ops.add(codes, more, { alpha: times });

/** Q4_K, Q5_K: eight scales and minima [blocks, 8, 1] of six bits in 12 bytes, times d and dmin. */
function kScales(blocks: Tensor): readonly [scale: Tensor, minimum: Tensor] {
  const [a, b, c] = [4, 8, 12].map((first) => bytes(blocks, first, 4)) as [Tensor, Tensor, Tensor];
  const six = (x: Tensor) => ops.bitwiseAnd(x, 63);
  const late = (four: Tensor, two: Tensor) => ops.add(four, ops.mulScalar(ops.shiftRight(two, 6), 16));
  const of = (first: number, early: Tensor, four: Tensor) =>
    ops.unsqueeze(
      ops.mul(numbers(blocks, first, 2, 'float16'), float32(ops.cat([six(early), late(four, early)], 1))),
      2,
    );
  return [of(0, a, low(c)), of(2, b, high(c))];
}

/** Q4_K, Q5_K: the nibbles [blocks, 8, 32]; 32 bytes hold two sub-blocks. */
function kNibbles(blocks: Tensor, first: number): Tensor {
  const packed = ops.reshape(bytes(blocks, first, 128), [-1, 4, 32]);
  return float32(ops.reshape(ops.stack([low(packed), high(packed)], 2), [-1, 8, 32]));
}

const affine = (codes: Tensor, [scale, minimum]: readonly [Tensor, Tensor]) => ops.sub(ops.mul(codes, scale), minimum);

const integers = (width: number) => (blocks: Tensor) => {
  const zero = ops.addScalar(numbers(blocks, 4, 1, 'int8'), width === 8 ? 0 : 2 ** (width - 1));
  const planes = () => {
    const each = ops.unbind(float32(bits(bytes(blocks, 5, 4 * width))), 1);
    return each.reduce((codes, plane, k) => plus(codes, plane, 2 ** k));
  };
  const codes = width === 8 ? numbers(blocks, 5, 32, 'int8') : width === 4 ? nibbles(bytes(blocks, 5, 16)) : planes();
  return ops.mul(ops.sub(codes, zero), numbers(blocks, 0, 4, 'float32'));
};

const grids = new Map<Device, Tensor>();

/** Returns the 16 values of NF4 on a device, which keeps them. */
export function nf4Grid(device: Device): Tensor {
  let grid = grids.get(device);
  if (grid && !grid.disposed) return grid;
  // A block with an absmax of 1 and every code, which holds the grid.
  const block = new Uint8Array(formats.nf4.blockBytes);
  new DataView(block.buffer).setFloat32(0, 1, true);
  for (let i = 0; i < 8; i++) block[4 + i] = ((2 * i) << 4) | (2 * i + 1);
  const unpacked = onDevice(host, () => ops.dequantize(Tensor.from(block, [1, block.length]), formats.nf4.nativeId));
  grid = detachFromScopes(ops.narrow(ops.select(unpacked, 0, 0), 0, 0, 16).to(device));
  grids.set(device, grid);
  return grid;
}

/** What each format's blocks hold: uint8 [blocks, bytes] → float32 [blocks, elements], in any shape of these. */
const unpackers: Readonly<Partial<Record<FormatName, (blocks: Tensor) => Tensor>>> = {
  float16: (blocks) => numbers(blocks, 0, 2, 'float16'),
  bfloat16: (blocks) => numbers(blocks, 0, 2, 'bfloat16'),
  q4_0: (b) => ops.mul(ops.addScalar(nibbles(bytes(b, 2, 16)), -8), numbers(b, 0, 2, 'float16')),
  q4_1: (b) => ops.add(ops.mul(nibbles(bytes(b, 4, 16)), numbers(b, 0, 2, 'float16')), numbers(b, 2, 2, 'float16')),
  q5_0(b) {
    const codes = plus(nibbles(bytes(b, 6, 16)), ops.select(float32(bits(bytes(b, 2, 4))), 1, 0), 16);
    return ops.mul(ops.addScalar(codes, -16), numbers(b, 0, 2, 'float16'));
  },
  q5_1(b) {
    const codes = plus(nibbles(bytes(b, 8, 16)), ops.select(float32(bits(bytes(b, 4, 4))), 1, 0), 16);
    return ops.add(ops.mul(codes, numbers(b, 0, 2, 'float16')), numbers(b, 2, 2, 'float16'));
  },
  q8_0: (b) => ops.mul(numbers(b, 2, 32, 'int8'), numbers(b, 0, 2, 'float16')),
  q4_k: (b) => affine(kNibbles(b, 16), kScales(b)),
  q5_k(b) {
    const fifth = ops.transpose(ops.bitwiseAnd(shifted(bytes(b, 16, 32), 8), 1), 1, 2);
    return affine(plus(kNibbles(b, 48), float32(fifth), 16), kScales(b));
  },
  q6_k(b) {
    const packed = ops.reshape(bytes(b, 0, 128), [-1, 2, 64]);
    const four = float32(ops.stack([low(packed), high(packed)], 2));
    const pairs = ops.bitwiseAnd(shifted(ops.reshape(bytes(b, 128, 64), [-1, 2, 32]), 4, 2), 3);
    const two = float32(ops.reshape(ops.transpose(pairs, 2, 3), [-1, 2, 2, 64]));
    const codes = ops.reshape(ops.addScalar(plus(four, two, 16), -32), [-1, 16, 16]);
    const scale = ops.mul(numbers(b, 192, 16, 'int8'), numbers(b, 208, 2, 'float16'));
    return ops.mul(codes, ops.unsqueeze(scale, 2));
  },
  nf4(b) {
    const packed = bytes(b, 4, 32);
    const codes = ops.toCopy(ops.reshape(ops.stack([high(packed), low(packed)], 2), [-1]), { dtype: 'int32' });
    const values = ops.reshape(ops.indexSelect(nf4Grid(b.device), 0, codes), [-1, 64]);
    return ops.mul(values, numbers(b, 0, 4, 'float32'));
  },
  int2x32: integers(2),
  int3x32: integers(3),
  int4x32: integers(4),
  int5x32: integers(5),
  int6x32: integers(6),
  int7x32: integers(7),
  int8x32: integers(8),
};

const byNumber = new Map(
  Object.entries(unpackers).map(([name, unpack]) => {
    const { nativeId, blockBytes } = formats[name as FormatName];
    return [nativeId, { unpack, blockBytes }] as const;
  }),
);

/** The formats that can be unpacked in plain operators, by their native numbers. */
export const unpackable: readonly number[] = [...byNumber.keys()].filter((id) => id !== undefined);

/** `dequantized` in plain operators. */
export function unpacked(weight: Tensor, format: number): Tensor {
  return noGrad(() => {
    using s = scope();
    const { unpack, blockBytes } = byNumber.get(format)!;
    return s.keep(ops.reshape(unpack(ops.reshape(weight, [-1, blockBytes])), [weight.size(0), -1]));
  });
}

/** Whether a device has fused operators of our own: the processor, and GPUs unless GRAFT_COMPOSITE=1 asks for LibTorch's there. */
export const hasOwnKernels = (device: Device): boolean =>
  device === host || (device.startsWith('cuda') && process.env.GRAFT_COMPOSITE !== '1');

/** Returns the numbers of a packed weight, uint8 [out, bytes of a row], float32 [out, in]. @param format native number */
export const dequantized = (weight: Tensor, format: number): Tensor =>
  hasOwnKernels(weight.device) ? ops.dequantize(weight, format) : unpacked(weight, format);

/** Returns a matrix packed in blocks, on its own device; the quantisers are the processor's. @param format native number */
export const quantized = (weight: Tensor, format: number): Tensor =>
  weight.device === host ? ops.quantize(weight, format) : ops.quantize(weight.to(host), format).to(weight.device);
