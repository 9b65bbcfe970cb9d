import type { Row } from './rows.ts';

/** Rows packed end to end without padding, as a model takes them: N tokens, R rows (the second text of a pair is a row). */
export interface Packed {
  readonly rows: readonly Row[];
  /** Token ids [N]. */
  readonly ids: Int32Array;
  /** [N] For language modelling: the label of the next token of the same row; −100 where no token is predicted. */
  readonly targets: Int32Array;
  /** [N] Position of each token in its row. */
  readonly positions: Int32Array;
  /** [R + 1] Offset of each row in the tokens; the last is N. */
  readonly rowStarts: Int32Array;
  /** How many tokens are predicted: the targets that are not −100. */
  readonly predicted: number;
}

/** Packs rows end to end; the second text of a pair directly follows the first. */
export function pack(examples: readonly Row[]): Packed {
  const rows = examples.flatMap((row) => (row.pair ? [row, row.pair] : [row]));
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
      if (i > 0 && row.labels.length > 0 && row.labels[i] !== -100) predicted++;
    }
  });
  return { rows, ids, targets, positions, rowStarts, predicted };
}

interface Bin {
  tokens: number;
  readonly number: number;
  readonly entries: { row: Row; order: number }[];
}

/** Number of tokens of a row in a batch: its own, its pair's, and those that a prompt puts before each of the two. */
export const tokensOfRow = ({ ids, pair }: Row, virtualTokens = 0): number =>
  ids.length + virtualTokens + (pair ? pair.ids.length + virtualTokens : 0);

const isEmptier = (a: Bin, b: Bin) => a.tokens < b.tokens || (a.tokens === b.tokens && a.number < b.number);

/** Restores the order of the heap (emptiest bin first) after its first bin was filled further. */
function sink(heap: Bin[]): void {
  const bin = heap[0]!;
  let at = 0;
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && isEmptier(heap[child + 1]!, heap[child]!)) child++;
    if (isEmptier(bin, heap[child]!)) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = bin;
}

/**
 * Divides the rows of a step into evenly filled micro-batches of at most `budget` tokens, as few as a greedy assignment
 * needs; a longer row has a batch of its own. The longest row is assigned first, always to the emptiest batch (Graham 1969,
 * LPT rule). Above 64 batches there may be 2 % more than needed, for speed.
 * @param virtualTokens how many tokens a prompt puts before every row
 * @param sharers processes among which the batches are dealt out: their number is a multiple of it, where there are rows enough
 */
export function microBatches(rows: readonly Row[], budget: number, virtualTokens = 0, sharers = 1): Row[][] {
  const sizeOf = (row: Row) => tokensOfRow(row, virtualTokens);
  const byLength = rows
    .map((row, order) => ({ row, order }))
    .sort((a, b) => sizeOf(b.row) - sizeOf(a.row) || a.order - b.order);
  const tooLong = byLength.filter(({ row }) => sizeOf(row) > budget).length;
  // No two of these fit in one batch.
  const aboveHalf = byLength.filter(({ row }) => sizeOf(row) > budget / 2).length;
  const otherTokens = byLength.slice(tooLong).reduce((sum, { row }) => sum + sizeOf(row), 0);
  for (
    let count = Math.max(1, aboveHalf, tooLong + Math.ceil(otherTokens / budget));
    ;
    count += Math.max(1, count >> 6)
  ) {
    count = Math.min(sharers * Math.ceil(count / sharers), Math.max(1, rows.length));
    const bins = Array.from({ length: count }, (_, number): Bin => ({ tokens: 0, number, entries: [] }));
    const heap = [...bins];
    for (const entry of byLength) {
      const emptiest = heap[0]!;
      emptiest.entries.push(entry);
      emptiest.tokens += sizeOf(entry.row);
      sink(heap);
    }
    if (count >= rows.length || bins.every((bin) => bin.tokens <= budget || bin.entries.length === 1)) {
      return bins
        .filter((bin) => bin.entries.length > 0)
        .map((bin) => bin.entries.sort((a, b) => a.order - b.order).map(({ row }) => row));
    }
  }
}
