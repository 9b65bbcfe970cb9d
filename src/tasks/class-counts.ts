/** How often each class occurs in rows, and what in the classes is likely a mistake. */
import type { Row } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';

/** A class, and the number of rows (of tagged words: of words) that have it. */
export interface ClassCount {
  /** The name of the class. */
  readonly label: string;
  /** Rows that have it; of tagged words, words. */
  readonly count: number;
}

/** The classes of a head with their counts, in the head's order; empty for tasks without classes. */
export function classCounts({ name, labels, multiLabel }: TaskHead, rows: readonly Row[]): ClassCount[] {
  const hasClasses = name !== 'question-answering' && (labels.length > 1 || multiLabel === true);
  if (!hasClasses) return [];
  const counts = labels.map(() => 0);
  for (const { target, labels: ofTokens } of rows) {
    const classes =
      name === 'token-classification' ? ofTokens : multiLabel ? target?.flatMap((bit, c) => (bit ? [c] : [])) : target;
    for (const c of classes ?? []) if (c >= 0) counts[c]!++;
  }
  return labels.map((label, c) => ({ label, count: counts[c]! }));
}

/** What of the classes is likely a mistake, in a note each: names that hardly differ, and classes that no row has. */
export function classNotes(classes: readonly ClassCount[]): string[] {
  const folded = ({ label }: ClassCount) =>
    label
      .normalize('NFKC')
      .trim()
      .replaceAll(/[\s_-]+/g, ' ')
      .toLowerCase();
  const twins = [...Map.groupBy(classes, folded).values()].filter((group) => group.length > 1);
  const missing = classes.filter(({ count }) => count === 0).map(({ label }) => `'${label}'`);
  return [
    ...twins.map((group) => {
      const named = group.map(({ label, count }) => `${JSON.stringify(label)} (${count})`).join(', ');
      return `the classes ${named} differ only in case or white space, and are ${group.length} classes`;
    }),
    ...(missing.length > 0
      ? [
          `no training row has the ${missing.length === 1 ? 'class' : 'classes'} ${missing.slice(0, 10).join(', ')}${missing.length > 10 ? ` and ${missing.length - 10} more` : ''}`,
        ]
      : []),
  ];
}
