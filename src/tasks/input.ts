import type { Packed } from '../data/index.ts';
import { type Model, type PackedTokens, packImages } from '../nn/index.ts';
import { Tensor } from '../tensor/index.ts';

const wide = (values: ArrayLike<number>) => Tensor.from(BigInt64Array.from(values as ArrayLike<number>, BigInt));

/** A packed batch as the model takes it. */
export function tokensOf(model: Model, { rows, ids, positions, rowStarts }: Packed): PackedTokens {
  if (model.image)
    return packImages(
      rows.map(({ pixels }) => pixels!()),
      model.image,
    );
  let longest = 0;
  for (const p of positions) longest = Math.max(longest, p + 1);
  const typed = rows.some(({ types }) => types);
  const tasks = rows.flatMap(({ task }) => (task === undefined ? [] : [task]));
  return {
    ids: wide(ids),
    positions: wide(positions),
    rowStarts: Array.from(rowStarts),
    longest,
    ...(typed && { types: wide(rows.flatMap((row) => Array.from(row.types ?? new Int32Array(row.ids.length)))) }),
    // Where some do not say, none do.
    ...(tasks.length === rows.length && { tasks }),
  };
}
