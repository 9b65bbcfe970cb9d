/** The rows of a recipe as the model will see them, and what of them it learns. */
import { type Row, type Tokenizer, tokenizerIfAny } from '../data/index.ts';
import { resolveModel } from '../io/index.ts';
import type { TaskHead } from '../nn/index.ts';
import type { ClassCount } from '../tasks/index.ts';
import type { Recipe } from './recipe.ts';
import { openTaskModels } from './task-models.ts';
import { plansOf, readLessons } from './task-runs.ts';

/** A part of a row's text. */
export interface RowPiece {
  /** What the tokens of this part decode to. */
  readonly text: string;
  /** Whether its tokens are learned; in a question's context, whether they are the answer. */
  readonly learned: boolean;
}

/** A row as the model will see it. */
export interface RowPreview {
  /** The file and line, or the number among rows in memory. */
  readonly place: string;
  /** Tokens of the row, the second text of a pair included. */
  readonly tokens: number;
  /** Tokens that are learned. */
  readonly learned: number;
  /** Its text, with its special tokens; empty for an image. */
  readonly pieces: readonly RowPiece[];
  /** Class, classes, number or tags that are learned, where the row has them. */
  readonly label?: string;
}

/** Rows by their number of tokens. */
export interface LengthBin {
  /** The fewest tokens of a row in it. */
  readonly from: number;
  /** The most tokens of a row in it. */
  readonly to: number;
  /** Rows in it. */
  readonly rows: number;
}

/** The rows of a task. */
export interface TaskPreview {
  /** The task's name in the recipe, where it has several. */
  readonly name?: string;
  /** What is learned. */
  readonly task: string;
  /** Rows to learn from. */
  readonly rows: number;
  /** Rows held out. */
  readonly heldOut: number;
  /** Tokens of all rows to learn from. */
  readonly tokens: number;
  /** Those that are learned. */
  readonly learned: number;
  /** The first rows. */
  readonly examples: readonly RowPreview[];
  /** All rows to learn from by their length, the shortest first. */
  readonly lengths: readonly LengthBin[];
  /** The classes with their counts; empty for tasks without. */
  readonly classes: readonly ClassCount[];
  /** What of the rows is cut, left out or not used, in a sentence each. */
  readonly notes: readonly string[];
}

/** Rows that are shown, and bins of lengths. */
const [shownRows, binCount] = [10, 10];

/**
 * Makes the rows of a recipe without loading its model's weights, and writes nothing.
 * @throws GraftError for anything that is wrong with the recipe, the model's config or the data
 */
export async function previewRows(recipe: Recipe): Promise<TaskPreview[]> {
  const modelPath = await resolveModel(recipe.model);
  const lessons = await readLessons(recipe, modelPath);
  using sketch = openTaskModels(recipe, modelPath, lessons, true);
  const plans = await plansOf(lessons, sketch, modelPath);
  const tokenizer = tokenizerIfAny(modelPath);
  return lessons.map(({ name }, i) => {
    const { task: head } = sketch.models[i]!;
    const { trainRows, heldOut, classes, warnings } = plans[i]!;
    return {
      ...(name !== undefined && { name }),
      task: head.name,
      rows: trainRows.length,
      heldOut: heldOut.length,
      tokens: trainRows.reduce((sum, row) => sum + tokensIn(row), 0),
      learned: trainRows.reduce((sum, row) => sum + learnedIn(row, head), 0),
      examples: trainRows.slice(0, shownRows).map((row) => previewOf(row, head, tokenizer)),
      lengths: lengthsOf(trainRows.map(tokensIn)),
      classes,
      notes: warnings,
    };
  });
}

const tokensIn = ({ ids, pair }: Row): number => ids.length + (pair?.ids.length ?? 0);
const learnedIn = (row: Row, head: TaskHead): number => [...row.ids.keys()].filter(isLearnedIn(row, head)).length;

/** Whether a token of a row is learned. The first token of language modelling is not: nothing comes before it. */
function isLearnedIn({ labels, target }: Row, { name }: TaskHead): (i: number) => boolean {
  if (name === 'question-answering') {
    const [first = 0, last = 0] = target ?? [];
    return (i) => last > 0 && i >= first && i <= last;
  }
  return (i) => labels.length > 0 && labels[i] !== -100 && !(name === 'causal-lm' && i === 0);
}

function previewOf(row: Row, head: TaskHead, tokenizer: Tokenizer | undefined): RowPreview {
  const { example, pair, pixels, place } = row;
  const label = labelIn(row, head);
  const pieces = pixels ? [] : piecesOf(row.ids, isLearnedIn(row, head), tokenizer);
  const second = pair ? [{ text: '\n', learned: false }, ...piecesOf(pair.ids, () => false, tokenizer)] : [];
  const image = example?.kind === 'image' && typeof example.image === 'string' ? example.image : undefined;
  return {
    place: image ?? place,
    tokens: tokensIn(row),
    learned: learnedIn(row, head),
    pieces: [...pieces, ...second],
    ...(label !== undefined && { label }),
  };
}

/** The text of runs of tokens that are learned, and of those that are not. */
function piecesOf(ids: Int32Array, isLearned: (i: number) => boolean, tokenizer: Tokenizer | undefined): RowPiece[] {
  const pieces: RowPiece[] = [];
  for (let from = 0; from < ids.length; ) {
    const learned = isLearned(from);
    let to = from + 1;
    while (to < ids.length && isLearned(to) === learned) to++;
    pieces.push({ text: textBetween(ids, from, to, tokenizer), learned });
    from = to;
  }
  return pieces;
}

/** The text that tokens add to those before them: a tokenizer may write the first token of a text without its space. */
function textBetween(ids: Int32Array, from: number, to: number, tokenizer: Tokenizer | undefined): string {
  if (!tokenizer) return ` ${ids.subarray(from, to).join(' ')}`;
  const [before, all] = [from, to].map((end) => tokenizer.decode(ids.subarray(0, end))) as [string, string];
  return all.startsWith(before) ? all.slice(before.length) : tokenizer.decode(ids.subarray(from, to));
}

function labelIn({ target, labels }: Row, { name, labels: classes, multiLabel }: TaskHead): string | undefined {
  if (name === 'token-classification')
    return [...labels]
      .filter((c) => c >= 0)
      .map((c) => classes[c])
      .join(' ');
  if (!target || name === 'question-answering') return undefined;
  if (multiLabel) return target.flatMap((bit, c) => (bit ? [classes[c]!] : [])).join(', ') || '(none)';
  return classes.length > 1 ? classes[target[0]!] : String(target[0]);
}

/** Rows by length, in bins of equal width. */
function lengthsOf(lengths: readonly number[]): LengthBin[] {
  const [shortest, longest] = lengths.reduce(([low, high], n) => [Math.min(low, n), Math.max(high, n)], [Infinity, 0]);
  if (lengths.length === 0) return [];
  const width = Math.max(1, Math.ceil((longest - shortest + 1) / binCount));
  const bins = Array.from({ length: Math.ceil((longest - shortest + 1) / width) }, (_, b) => ({
    from: shortest + b * width,
    to: Math.min(longest, shortest + (b + 1) * width - 1),
    rows: 0,
  }));
  for (const n of lengths) bins[Math.floor((n - shortest) / width)]!.rows++;
  return bins;
}
