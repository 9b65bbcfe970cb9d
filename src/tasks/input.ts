import type { Packed } from '../data/index.ts';
import { idsAndPositions, type Model, type PackedTokens, packImages } from '../nn/index.ts';
import { Tensor } from '../tensor/index.ts';

const int64 = (values: ArrayLike<number>) => Tensor.from(BigInt64Array.from(values as ArrayLike<number>, BigInt));

/** The input of the model for a packed batch: its tokens, or its images. */
export function tokensOf(model: Model, { rows, ids, positions, rowStarts }: Packed): PackedTokens {
  if (model.image)
    return packImages(
      rows.map(({ pixels }) => pixels!()),
      model.image,
    );
  const hasTypes = rows.some(({ types }) => types);
  const tasks = rows.flatMap(({ task }) => (task === undefined ? [] : [task]));
  return {
    ...idsAndPositions(ids, positions),
    rowStarts: Array.from(rowStarts),
    ...(hasTypes && { types: int64(rows.flatMap((row) => Array.from(row.types ?? new Int32Array(row.ids.length)))) }),
    // Only where every row has a task.
    ...(tasks.length === rows.length && { tasks }),
  };
}
