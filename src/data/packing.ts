import type { Row } from './rows.ts';

/** Rows end to end, ready for the model. N tokens, R rows, the second of each pair among them. */
export interface Packed {
  readonly rows: readonly Row[];
  /** [N] */
  readonly ids: Int32Array;
  /** [N]: the label of the next token of the same row (language modelling); −100 where none is learned. */
  readonly targets: Int32Array;
  /** [N]: restart in each row. */
  readonly positions: Int32Array;
  /** [R + 1] offsets. */
  readonly rowStarts: Int32Array;
  readonly predicted: number;
}

export function pack(given: readonly Row[]): Packed {
  const rows = given.flatMap((row) => (row.pair ? [row, row.pair] : [row]));
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

/** Tokens that a row brings, its pair included. */
const lengthOf = (row: Row): number => row.ids.length + (row.pair?.ids.length ?? 0);

const emptier = (a: Bin, b: Bin) => a.tokens < b.tokens || (a.tokens === b.tokens && a.number < b.number);

/** Puts the first bin of the heap, which has become fuller, where it belongs. */
function sink(heap: Bin[]): void {
  const bin = heap[0]!;
  let at = 0;
  for (let child = 1; child < heap.length; child = 2 * at + 1) {
    if (child + 1 < heap.length && emptier(heap[child + 1]!, heap[child]!)) child++;
    if (emptier(bin, heap[child]!)) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = bin;
}

/**
 * Cuts a step's rows into as few micro-batches of at most `budget` tokens as a greedy filling needs, evenly filled; a
 * longer row is alone. The longest row goes first, always into the emptiest batch (Graham 1969, LPT rule). Above 64
 * batches their number may be 2 % more than needed, for speed.
 * @param virtual tokens that a prompt puts in front of every row
 */
export function microBatches(rows: readonly Row[], budget: number, virtual = 0): Row[][] {
  const sizeOf = (row: Row) => lengthOf(row) + virtual * (row.pair ? 2 : 1);
  const byLength = rows
    .map((row, order) => ({ row, order }))
    .sort((a, b) => sizeOf(b.row) - sizeOf(a.row) || a.order - b.order);
  const tooLong = byLength.filter(({ row }) => sizeOf(row) > budget).length;
  // No two of these fit together.
  const alone = byLength.filter(({ row }) => sizeOf(row) > budget / 2).length;
  const rest = byLength.slice(tooLong).reduce((sum, { row }) => sum + sizeOf(row), 0);
  for (let count = Math.max(1, alone, tooLong + Math.ceil(rest / budget)); ; count += Math.max(1, count >> 6)) {
    count = Math.min(count, Math.max(1, rows.length));
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
