/** Returns the edit distance in which a transposition counts as one edit (optimal string alignment). */
function distance(a: string, b: string): number {
  let twoRowsAbove: number[] = [];
  let rowAbove = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min(row[j - 1]! + 1, rowAbove[j]! + 1, rowAbove[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        best = Math.min(best, twoRowsAbove[j - 2]! + 1);
      row.push(best);
    }
    twoRowsAbove = rowAbove;
    rowAbove = row;
  }
  return rowAbove[b.length]!;
}

/** Returns the candidate that `word` most likely stands for; undefined when none is close (more than a third of it differs). */
export function nearest(word: string, candidates: Iterable<string>): string | undefined {
  const fold = (s: string) => s.toLowerCase().replaceAll(/[-_ ]/g, '');
  let best: string | undefined;
  // At least one letter must be equal: the limit is below the length of the word.
  let limit = Math.min(Math.max(1, Math.floor(word.length / 3)), word.length - 1) + 0.5;
  for (const candidate of candidates) {
    const edits = distance(fold(word), fold(candidate));
    if (edits < limit) [best, limit] = [candidate, edits];
  }
  return best;
}
