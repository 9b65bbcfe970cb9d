import { GraftError } from '../base/index.ts';
import { ops, Tensor } from '../tensor/index.ts';

/** The tokens of several rows, packed without padding. R rows, N tokens in all. */
export interface PackedTokens {
  /** int64 [N] */
  readonly ids: Tensor;
  /** int64 [N]; restart in each row. */
  readonly positions: Tensor;
  /** R + 1 offsets of the rows in `ids`. */
  readonly rowStarts: readonly number[];
  /** Token types int64 [N] (BERT's segments); absent: all 0. */
  readonly types?: Tensor;
  /** Images float32 [R, channels, height, width], which vision models read instead of ids. */
  readonly pixels?: Tensor;
  /** For each row, the number of its task, where several tasks share an adapter; −1: none. */
  readonly tasks?: readonly number[];
  /** For each row, the number of its adapter in the banks of the model; 0: the base alone. Absent: no banks take part. */
  readonly adapters?: readonly number[];
}

/** The images that a vision model reads; one image is one row. */
export interface ImageShape {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** Tokens of one image: its patches and the class tokens. */
  readonly tokens: number;
}

/** Returns ids and positions as tensors int64 [N], which go to the model's device in one copy. */
export function idsAndPositions(
  ids: ArrayLike<number>,
  positions: ArrayLike<number>,
): Pick<PackedTokens, 'ids' | 'positions'> {
  const numbers = new BigInt64Array(2 * ids.length);
  for (let i = 0; i < ids.length; i++) {
    numbers[i] = BigInt(ids[i]!);
    numbers[ids.length + i] = BigInt(positions[i]!);
  }
  const [idsTensor, positionsTensor] = ops.unbind(Tensor.from(numbers, [2, ids.length])) as [Tensor, Tensor];
  return { ids: idsTensor, positions: positionsTensor };
}

/**
 * Packs rows of token ids.
 * @param tasks the number of each row's task; left out of the result if no row has one
 * @param adapters the number of each row's adapter, where banks take part
 */
export function packTokens(
  rows: readonly ArrayLike<number>[],
  tasks: readonly (number | undefined)[] = [],
  adapters?: readonly number[],
): PackedTokens {
  const rowStarts = [0];
  for (const row of rows) rowStarts.push(rowStarts.at(-1)! + row.length);
  const ids = new Float64Array(rowStarts.at(-1)!); // a fraction stays one, and is refused
  const positions = new Int32Array(ids.length);
  rows.forEach((row, r) => {
    for (let i = 0; i < row.length; i++) {
      ids[rowStarts[r]! + i] = row[i]!;
      positions[rowStarts[r]! + i] = i;
    }
  });
  return {
    ...idsAndPositions(ids, positions),
    rowStarts,
    ...(tasks.some((task) => task !== undefined) && { tasks: tasks.map((task) => task ?? -1) }),
    ...(adapters && { adapters }),
  };
}

/**
 * Packs images, one as each row.
 * @param images pixels [channels, height, width] of each, after the model's preprocessing
 * @throws GraftError 'input' for an image of another size
 */
export function packImages(images: readonly Float32Array[], shape: ImageShape): PackedTokens {
  const { channels, height, width, tokens } = shape;
  const size = channels * height * width;
  const pixels = new Float32Array(images.length * size);
  images.forEach((image, i) => {
    if (image.length !== size) {
      const expected = `${channels} × ${height} × ${width} = ${size}`;
      throw new GraftError('input', `an image has ${image.length} numbers, and the model expects ${expected}`, {
        place: `image ${i}`,
        hint: 'Preprocess images as the preprocessor_config.json of this model says',
      });
    }
    pixels.set(image, i * size);
  });
  const n = images.length * tokens;
  return {
    ids: Tensor.from(new BigInt64Array(n)),
    positions: Tensor.from(BigInt64Array.from({ length: n }, (_, i) => BigInt(i % tokens))),
    rowStarts: Array.from({ length: images.length + 1 }, (_, i) => i * tokens),
    pixels: Tensor.from(pixels, [images.length, channels, height, width]),
  };
}

/**
 * @throws GraftError 'usage' where the longest row, virtual tokens included, has more tokens than the model has positions
 */
export function requirePositions(longest: number, positions: number): void {
  if (longest <= positions) return;
  const problem = `a row has ${longest} tokens, virtual ones included, and the model has ${positions} positions`;
  throw new GraftError('usage', problem, { hint: 'Truncate the rows (max_length), or use fewer virtual tokens' });
}
