/**
 * Deals work out among processes, so that each has about the same: the largest piece first, always to the process that has least so far,
 * the first of equals. Every process computes the same.
 * @param sizes the size of each piece
 * @param count the number of processes
 * @returns the process of each piece
 */
export function dealt(sizes: readonly number[], count: number): number[] {
  const loads = Array.from({ length: count }, () => ({ size: 0, pieces: 0 }));
  const owners = sizes.map(() => 0);
  const largestFirst = sizes.map((size, i) => ({ size, i })).sort((a, b) => b.size - a.size || a.i - b.i);
  for (const { size, i } of largestFirst) {
    const isLess = (a: number, b: number) =>
      loads[a]!.size < loads[b]!.size || (loads[a]!.size === loads[b]!.size && loads[a]!.pieces < loads[b]!.pieces);
    const owner = loads.reduce((least, _, rank) => (isLess(rank, least) ? rank : least), 0);
    owners[i] = owner;
    loads[owner]!.size += size;
    loads[owner]!.pieces++;
  }
  return owners;
}
