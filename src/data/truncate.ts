/** Which tokens of a row that is too long stay. */

/** Where a row is cut. */
export const truncations = ['end', 'start', 'middle'] as const;
/** Where a row is cut that is too long: its end, its start, or the middle of what is not learned. */
export type Truncation = (typeof truncations)[number];

/** What is known of a row that is cut. */
interface Cut {
  readonly length: number;
  /** Tokens that there is room for. */
  readonly room: number;
  readonly truncate: Truncation;
  /** Tokens at the beginning that stay, such as the one that begins a text. */
  readonly head?: number;
  /** Whether a token is learned. Default: all are. */
  readonly isLearned?: (i: number) => boolean;
}

/**
 * The indices of the tokens that stay. `end` and `start` cut there; `middle` cuts what is not learned, the longest run of it first
 * and each run in its middle, and what is learned only where that is not enough, at the end.
 */
export function keptTokens({ length, room, truncate, head = 0, isLearned = () => true }: Cut): number[] {
  const all = Array.from({ length }, (_, i) => i);
  if (length <= room) return all;
  if (truncate === 'end' || room <= head) return all.slice(0, room);
  if (truncate === 'start') return [...all.slice(0, head), ...all.slice(length - room + head)];
  const context = runs(length, (i) => i >= head && !isLearned(i));
  if (context.length === 0) return withoutMiddle(all, head, length - room);
  let excess = length - room;
  const kept = new Set(all);
  for (const [from, to] of context.sort((a, b) => b[1] - b[0] - (a[1] - a[0]) || a[0] - b[0])) {
    const cut = Math.min(excess, to - from);
    const first = from + Math.floor((to - from - cut) / 2);
    for (let i = first; i < first + cut; i++) kept.delete(i);
    excess -= cut;
  }
  return all.filter((i) => kept.has(i)).slice(0, room);
}

function withoutMiddle(all: readonly number[], head: number, excess: number): number[] {
  const first = head + Math.floor((all.length - head - excess) / 2);
  return all.filter((i) => i < first || i >= first + excess);
}

/** The runs [from, to) of indices that pass the test. */
function runs(length: number, test: (i: number) => boolean): [from: number, to: number][] {
  const found: [number, number][] = [];
  for (let i = 0; i < length; i++) {
    if (!test(i)) continue;
    const last = found.at(-1);
    if (last?.[1] === i) last[1]++;
    else found.push([i, i + 1]);
  }
  return found;
}
