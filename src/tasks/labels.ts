import { GraftError, nearest } from '../base/index.ts';
import type { Example, Label } from '../data/index.ts';
import type { TaskHead, TaskName } from '../nn/index.ts';

/**
 * The label of a text or an image as it was given, or what a conversation or a completion ends with; undefined where the
 * example has none.
 */
export function labelOf(example: Example): Label | undefined {
  switch (example.kind) {
    case 'labelled':
    case 'image':
      return example.label;
    case 'tokens':
      return example.labels;
    case 'completion':
      return example.completion.trim();
    case 'chat': {
      const last = example.messages.at(-1)!;
      return last.role === 'assistant' ? last.content.trim() : undefined;
    }
    default:
      return undefined;
  }
}

const isNumber = (label: string | number): boolean =>
  typeof label === 'number' || (label.trim() !== '' && Number.isFinite(Number(label)));

/** In the order of numbers where all are numbers, else by code point. */
function sorted(labels: Iterable<string>): string[] {
  const all = [...new Set(labels)];
  return all.every(isNumber)
    ? all.sort((a, b) => Number(a) - Number(b))
    : all.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
}

const named = (count: number): string[] => Array.from({ length: count }, (_, i) => `LABEL_${i}`);

/** The name of the single label of a regression. */
export const regressionLabel = 'value';

/**
 * The labels that examples speak of, sorted, for a head that has none yet. Numbers of which one has a fraction: a
 * regression. Lists: a row may have several. Ids with numbers as labels: as many classes as the largest asks for.
 */
export function labelsIn(
  task: TaskName,
  examples: Iterable<Example>,
): { labels: string[]; multiLabel?: true } | undefined {
  const found = new Set<string>();
  let [largest, fraction, several] = [-1, false, 0];
  for (const example of examples) {
    if (task === 'token-classification' && example.kind === 'tags') {
      for (const tag of example.tags ?? []) found.add(tag);
      continue;
    }
    const label = labelOf(example);
    if (label === undefined) continue;
    const list = [label].flat() as (string | number)[];
    if (list.some((one) => isNumber(one) && !Number.isInteger(Number(one)))) fraction = true;
    if (example.kind === 'tokens') {
      if (Array.isArray(label) && task !== 'token-classification') several = Math.max(several, list.length);
      for (const one of list) largest = Math.max(largest, Number(one));
      continue;
    }
    if (Array.isArray(label)) several = Math.max(several, 1);
    for (const one of list) found.add(String(one));
  }
  if (fraction && several === 0) return { labels: [regressionLabel] };
  const labels = found.size > 0 ? sorted(found) : named(several > 0 ? several : largest + 1);
  if (labels.length === 0) return undefined;
  return { labels, ...(several > 0 && { multiLabel: true }) };
}

/** The number of a class. @throws GraftError 'input' for one that the head does not have */
export function classOf(label: string | number, { labels }: TaskHead, place: string): number {
  const byName = labels.indexOf(String(label));
  if (byName >= 0) return byName;
  if (typeof label === 'number' && Number.isInteger(label) && label >= 0 && label < labels.length) return label;
  const near = nearest(String(label), labels);
  const shown = labels.slice(0, 12).join(', ') + (labels.length > 12 ? ` and ${labels.length - 12} more` : '');
  throw new GraftError('input', `the label '${String(label).slice(0, 40)}' is none of the head's: ${shown}`, {
    place,
    hint: near
      ? `Is '${near}' meant?`
      : 'Name the classes under labels in the recipe; a new head is then made for them',
  });
}

/** How much each class counts. @throws GraftError 'usage' for a weight of a label that there is not */
export function weightsOf(head: TaskHead, weights: Readonly<Record<string, number>> = {}): number[] {
  for (const name of Object.keys(weights)) {
    if (head.labels.includes(name)) continue;
    const near = nearest(name, head.labels);
    throw new GraftError('usage', `'${name}' is none of the labels ${head.labels.join(', ')}`, {
      place: 'class_weights',
      ...(near && { hint: `Is '${near}' meant?` }),
    });
  }
  return head.labels.map((label) => weights[label] ?? 1);
}
