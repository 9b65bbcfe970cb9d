/** How SQuAD counts answers (its `evaluate-v1.1.py` and `evaluate-v2.0.py`). */

/** Lower case, without punctuation, articles and more than one space. */
const normalized = (text: string): string =>
  text
    .toLowerCase()
    .replaceAll(/[!-/:-@[-`{-~]/g, '')
    .replaceAll(/\b(a|an|the)\b/g, ' ')
    .split(/\s+/)
    .filter(Boolean)
    .join(' ');

const words = (text: string): string[] => normalized(text).split(' ').filter(Boolean);

function f1Of(said: string, wanted: string): number {
  const [s, w] = [words(said), words(wanted)];
  if (s.length === 0 || w.length === 0) return s.length === w.length ? 1 : 0;
  const left = new Map<string, number>();
  for (const word of w) left.set(word, (left.get(word) ?? 0) + 1);
  let common = 0;
  for (const word of s) {
    const n = left.get(word) ?? 0;
    if (n > 0) common++;
    left.set(word, n - 1);
  }
  return (2 * common) / (s.length + w.length);
}

/** The best of all wanted answers; none: nothing is to be said. */
export function squadScores(said: string, wanted: readonly string[]): { exact: number; f1: number } {
  const given = wanted.filter((answer) => normalized(answer) !== '');
  const list = given.length > 0 ? given : [''];
  return {
    exact: list.some((answer) => normalized(answer) === normalized(said)) ? 1 : 0,
    f1: Math.max(...list.map((answer) => f1Of(said, answer))),
  };
}
