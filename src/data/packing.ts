import type { Row } from './rows.ts';

/** Rows end to end, ready for the model. N tokens, R rows. */
export interface Packed {
  /** [N] */
  readonly ids: Int32Array;
  /** [N]: the label of the next token of the same row; −100 where there is none or it is not learned. */
  readonly targets: Int32Array;
  /** [N]: restart in each row. */
  readonly positions: Int32Array;
  /** [R + 1] offsets. */
  readonly rowStarts: Int32Array;
  readonly predicted: number;
}

export function pack(rows: readonly Row[]): Packed {
  const rowStarts = Int32Array.from({ length: rows.length + 1 }, () => 0);
  rows.forEach((row, r) => {
    rowStarts[r + 1] = rowStarts[r]! + row.ids.length;
  });
  const n = rowStarts.at(-1)!;
  const ids = new Int32Array(n);
  const targets = new Int32Array(n).fill(-100);
  const positions = new Int32Array(n);
  let predicted = 0;
  rows.forEach((row, r) => {
    const start = rowStarts[r]!;
    ids.set(row.ids, start);
    targets.set(row.labels.subarray(1), start);
    for (let i = 0; i < row.ids.length; i++) {
      positions[start + i] = i;
      if (i > 0 && row.labels[i] !== -100) predicted++;
    }
  });
  return { ids, targets, positions, rowStarts, predicted };
}

/**
 * Cuts a step's rows into as few micro-batches of at most `budget` tokens as a greedy filling needs, evenly filled; a
 * longer row is alone. The longest row goes first, always into the emptiest batch (Graham 1969, LPT rule).
 */
export function microBatches(rows: readonly Row[], budget: number): Row[][] {
  const byLength = rows.map((row, order) => ({ row, order })).sort((a, b) => b.row.ids.length - a.row.ids.length || a.order - b.order);
  const total = rows.reduce((sum, row) => sum + row.ids.length, 0);
  for (let count = Math.max(1, Math.ceil(total / budget)); ; count++) {
    const bins = Array.from({ length: count }, () => ({ tokens: 0, rows: [] as { row: Row; order: number }[] }));
    for (const entry of byLength) {
      const emptiest = bins.reduce((least, bin) => (bin.tokens < least.tokens ? bin : least));
      emptiest.rows.push(entry);
      emptiest.tokens += entry.row.ids.length;
    }
    if (count >= rows.length || bins.every((bin) => bin.tokens <= budget || bin.rows.length === 1)) {
      return bins.filter((bin) => bin.rows.length > 0).map((bin) => bin.rows.sort((a, b) => a.order - b.order).map(({ row }) => row));
    }
  }
}
