/** Edit distance with transpositions counted as one (optimal string alignment). */
function distance(a: string, b: string): number {
  let before: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let best = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + (same ? 0 : 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, before[j - 2]! + 1);
      row.push(best);
    }
    before = last;
    last = row;
  }
  return last[b.length]!;
}

/** The known word that `word` most likely meant, or undefined when none is close (more than a third of it differs, or all). */
export function nearest(word: string, known: Iterable<string>): string | undefined {
  const fold = (s: string) => s.toLowerCase().replaceAll(/[-_ ]/g, '');
  let best: string | undefined;
  let least = Math.min(Math.max(1, Math.floor(word.length / 3)), word.length - 1) + 0.5;
  for (const candidate of known) {
    const d = distance(fold(word), fold(candidate));
    if (d < least) [best, least] = [candidate, d];
  }
  return best;
}
