/** SQuAD's metrics (its `evaluate-v1.1.py` and `evaluate-v2.0.py`). */

/** The text in lower case, without punctuation and articles, and with single spaces. */
const normalized = (text: string): string =>
  text
    .toLowerCase()
    .replaceAll(/[!-/:-@[-`{-~]/g, '')
    .replaceAll(/\b(a|an|the)\b/g, ' ')
    .split(/\s+/)
    .filter(Boolean)
    .join(' ');

const wordsOf = (text: string): string[] => normalized(text).split(' ').filter(Boolean);

function wordF1(prediction: string, reference: string): number {
  const [predicted, expected] = [wordsOf(prediction), wordsOf(reference)];
  if (predicted.length === 0 || expected.length === 0) return predicted.length === expected.length ? 1 : 0;
  const remaining = new Map<string, number>();
  for (const word of expected) remaining.set(word, (remaining.get(word) ?? 0) + 1);
  let common = 0;
  for (const word of predicted) {
    const count = remaining.get(word) ?? 0;
    if (count > 0) common++;
    remaining.set(word, count - 1);
  }
  return (2 * common) / (predicted.length + expected.length);
}

/**
 * Exact match and F1 of a predicted answer, each the best over all reference answers.
 * @param references empty where the question has no answer; the prediction should then be empty too
 */
export function squadScores(prediction: string, references: readonly string[]): { exact: number; f1: number } {
  const nonEmpty = references.filter((answer) => normalized(answer) !== '');
  const candidates = nonEmpty.length > 0 ? nonEmpty : [''];
  return {
    exact: candidates.some((answer) => normalized(answer) === normalized(prediction)) ? 1 : 0,
    f1: Math.max(...candidates.map((answer) => wordF1(prediction, answer))),
  };
}
