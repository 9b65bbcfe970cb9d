import { GraftError } from '../base/index.ts';
import { Tensor } from '../tensor/index.ts';

/** The tokens of several rows end to end: no padding anywhere (design §4). */
export interface PackedTokens {
  /** int64 [N] */
  readonly ids: Tensor;
  /** int64 [N]; restart in each row. */
  readonly positions: Tensor;
  /** R + 1 offsets. */
  readonly rowStarts: readonly number[];
  /** One more than the largest position. */
  readonly longest: number;
  /** Token types int64 [N] (BERT's segments); all 0 where absent. */
  readonly types?: Tensor;
  /** Images float32 [R, channels, height, width] in the place of ids, for families that see. */
  readonly pixels?: Tensor;
  /** One number a row: which of several tasks that share an adapter it belongs to. */
  readonly tasks?: readonly number[];
}

/** What a family that sees takes for a row. */
export interface ImageShape {
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** Rows of hidden states that one image comes to. */
  readonly tokens: number;
}

/**
 * Packs rows of token ids end to end.
 * @param firstPosition where the (only) row continues: tokens that a cache already holds
 * @param tasks which of several tasks each row is of; where one does not say, none does
 */
export function packTokens(
  rows: readonly ArrayLike<number>[],
  firstPosition = 0,
  tasks: readonly (number | undefined)[] = [undefined],
): PackedTokens {
  const rowStarts = [0];
  for (const row of rows) rowStarts.push(rowStarts.at(-1)! + row.length);
  const ids = new BigInt64Array(rowStarts.at(-1)!);
  const positions = new BigInt64Array(ids.length);
  let longest = 0;
  rows.forEach((row, r) => {
    for (let i = 0; i < row.length; i++) {
      ids[rowStarts[r]! + i] = BigInt(row[i]!);
      positions[rowStarts[r]! + i] = BigInt(firstPosition + i);
    }
    longest = Math.max(longest, firstPosition + row.length);
  });
  const known = tasks.filter((task) => task !== undefined);
  const said = known.length === tasks.length && { tasks: known };
  return { ids: Tensor.from(ids), positions: Tensor.from(positions), rowStarts, longest, ...said };
}

/**
 * Images as rows: each is as many tokens as the model cuts it into.
 * @param images each [channels, height, width], as the model's preprocessing leaves it
 * @throws GraftError 'input' for an image of another size
 */
export function packImages(images: readonly Float32Array[], shape: ImageShape): PackedTokens {
  const { channels, height, width, tokens } = shape;
  const size = channels * height * width;
  const pixels = new Float32Array(images.length * size);
  images.forEach((image, i) => {
    if (image.length !== size) {
      const asked = `${channels} × ${height} × ${width} = ${size}`;
      throw new GraftError('input', `an image has ${image.length} numbers, and the model sees ${asked}`, {
        place: `image ${i}`,
        hint: 'Prepare images by the preprocessor_config.json of this model',
      });
    }
    pixels.set(image, i * size);
  });
  const n = images.length * tokens;
  return {
    ids: Tensor.from(new BigInt64Array(n)),
    positions: Tensor.from(BigInt64Array.from({ length: n }, (_, i) => BigInt(i % tokens))),
    rowStarts: Array.from({ length: images.length + 1 }, (_, i) => i * tokens),
    longest: tokens,
    pixels: Tensor.from(pixels, [images.length, channels, height, width]),
  };
}

/** @throws GraftError 'usage' where rows, virtual tokens included, are longer than a table of positions */
export function requireRoom(longest: number, positions: number): void {
  if (longest <= positions) return;
  const problem = `a row has ${longest} tokens, virtual ones included, and the model has ${positions} positions`;
  throw new GraftError('usage', problem, { hint: 'Cut the rows (max_length), or use fewer virtual tokens' });
}
