import { GraftError, nearest } from '../base/index.ts';
import type { Example, Label } from '../data/index.ts';
import type { TaskHead, TaskName } from '../nn/index.ts';

/**
 * The label of a text or an image, or the answer at the end of a conversation or a completion; undefined where the example has
 * none.
 */
export function labelOf(example: Example): Label | undefined {
  switch (example.kind) {
    case 'labelled':
    case 'image':
      return example.label;
    case 'tokens':
      return example.labels;
    case 'completion':
      return example.completion?.trim();
    case 'chat': {
      const last = example.messages.at(-1);
      return last?.role === 'assistant' ? last.content?.trim() : undefined;
    }
    default:
      return undefined;
  }
}

const isNumber = (label: string | number): boolean =>
  typeof label === 'number' || (label.trim() !== '' && Number.isFinite(Number(label)));

/** A whole number without the `.0` that pandas writes in a column with gaps: `1.0` is `1`. */
const wholeNumber = (label: string | number): string => String(label).replace(/^(-?\d+)\.0+$/, '$1');

/** Distinct labels, in numerical order where all are numbers, else by code point. */
function sorted(labels: Iterable<string>): string[] {
  const all = [...new Set(labels)];
  return all.every(isNumber)
    ? all.sort((a, b) => Number(a) - Number(b))
    : all.sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
}

const defaultLabels = (count: number): string[] => Array.from({ length: count }, (_, i) => `LABEL_${i}`);

/** The name of the single label of a regression. */
export const regressionLabel = 'value';

/**
 * The labels of examples, sorted, for a new head. Numbers of which one is not whole make a regression; lists make a multi-label
 * head; numbers as labels of rows of ids make classes `LABEL_0` up to the largest.
 * @returns undefined where no example has a label
 */
export function labelsIn(
  task: TaskName,
  examples: Iterable<Example>,
): { labels: string[]; multiLabel?: true } | undefined {
  const names = new Set<string>();
  // `classCount` is above 0 where labels are lists; of rows of ids it is the length of the longest.
  let [largest, hasFraction, classCount] = [-1, false, 0];
  for (const example of examples) {
    if (task === 'token-classification' && example.kind === 'tags') {
      for (const tag of example.tags ?? []) names.add(tag);
      continue;
    }
    const label = labelOf(example);
    if (label === undefined) continue;
    const list = [label].flat() as (string | number)[];
    if (list.some((value) => isNumber(value) && !Number.isInteger(Number(value)))) hasFraction = true;
    if (example.kind === 'tokens') {
      if (Array.isArray(label) && task !== 'token-classification') classCount = Math.max(classCount, list.length);
      for (const value of list) largest = Math.max(largest, Number(value));
      continue;
    }
    if (Array.isArray(label)) classCount = Math.max(classCount, 1);
    for (const value of list) names.add(wholeNumber(value));
  }
  if (hasFraction && classCount === 0) return { labels: [regressionLabel] };
  const labels = names.size > 0 ? sorted(names) : defaultLabels(classCount > 0 ? classCount : largest + 1);
  if (labels.length === 0) return undefined;
  return { labels, ...(classCount > 0 && { multiLabel: true }) };
}

/** The index of the class that has this name; −1 where none has. */
function nameIndex(label: string | number, labels: readonly string[]): number {
  const exact = labels.indexOf(String(label));
  return exact >= 0 ? exact : labels.indexOf(wholeNumber(label));
}

/**
 * Says which classes labels that are numbers stand for, where the head's classes have names.
 * @returns undefined where no label is such a number, and where the names are transformers' LABEL_0 and so on
 */
export function numberedClasses({ name, labels }: TaskHead, examples: readonly Example[]): string | undefined {
  if (labels.length < 2 || labels.some(isNumber) || labels.every((label, c) => label === `LABEL_${c}`))
    return undefined;
  const isClassNumber = (label: Label) =>
    [label].flat().some((one) => isNumber(one as string | number) && nameIndex(one as string | number, labels) < 0);
  const isNumbered = (example: Example) => {
    if (example.kind === 'tokens') return false;
    const label = example.kind === 'tags' ? example.tags : labelOf(example);
    return label !== undefined && isClassNumber(label);
  };
  if (name === 'question-answering' || !examples.some(isNumbered)) return undefined;
  const listed = labels.slice(0, 12).map((label, c) => `${c} is ${label}`);
  return `labels that are numbers name the classes in their order: ${listed.join(', ')}${labels.length > 12 ? ' …' : ''}`;
}

/**
 * The index of a class, by its name or, where no class is named by a number, by its number, which a CSV file has as a text.
 * @throws GraftError 'input' for a label that the head does not have
 */
export function classOf(label: string | number, { labels }: TaskHead, place: string): number {
  const byName = nameIndex(label, labels);
  if (byName >= 0) return byName;
  const index = /^\d+$/.test(wholeNumber(label)) ? Number(label) : Number.NaN;
  if (Number.isInteger(index) && index < labels.length && !labels.some(isNumber)) return index;
  const near = nearest(String(label), labels);
  const listed = labels.slice(0, 12).join(', ') + (labels.length > 12 ? ` and ${labels.length - 12} more` : '');
  throw new GraftError(
    'input',
    `the label '${String(label).slice(0, 40)}' is not one of the head's labels: ${listed}`,
    {
      place,
      hint: near
        ? `Did you mean '${near}'?`
        : 'List the classes under labels in the recipe; a new head is then made for them',
    },
  );
}

/** The weight of each class in the loss. @throws GraftError 'usage' for a weight of a label that the head does not have */
export function weightsOf(head: TaskHead, weights: Readonly<Record<string, number>> = {}): number[] {
  for (const name of Object.keys(weights)) {
    if (head.labels.includes(name)) continue;
    const near = nearest(name, head.labels);
    throw new GraftError('usage', `'${name}' is not one of the labels ${head.labels.join(', ')}`, {
      place: 'class_weights',
      ...(near && { hint: `Did you mean '${near}'?` }),
    });
  }
  return head.labels.map((label) => weights[label] ?? 1);
}
