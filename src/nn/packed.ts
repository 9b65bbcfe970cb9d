import { Tensor } from '../tensor/index.ts';
import type { Model, PackedTokens } from './model.ts';

/**
 * Packs rows of token ids end to end.
 * @param firstPosition where the (only) row continues: tokens that a cache already holds
 */
export function packTokens(rows: readonly ArrayLike<number>[], firstPosition = 0): PackedTokens {
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
  return { ids: Tensor.from(ids), positions: Tensor.from(positions), rowStarts, longest };
}

/** What the model's head says about `tokens`: shapes as `Model.logits` has them. */
export const outputOf = (model: Model, tokens: PackedTokens): Tensor =>
  model.logits(model.hidden(tokens), tokens.rowStarts);
