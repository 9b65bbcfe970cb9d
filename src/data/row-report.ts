/** What happened to the rows of a source when tokens were made of them. */
import { type Example, unusedNotes } from './example.ts';

/** The first places of rows, of each kind that is counted. */
export interface RowPlaces {
  /** Rows that were truncated. */
  readonly cut: readonly string[];
  /** Rows that lost everything that is learned. */
  readonly lost: readonly string[];
  /** Rows that had nothing to learn or to read. */
  readonly empty: readonly string[];
  /** Rows whose answer has no content. */
  readonly emptyAnswers: readonly string[];
  /** Questions whose answer no window has whole. */
  readonly splitAnswers: readonly string[];
  /** Questions with several answers. */
  readonly severalAnswers: readonly string[];
}

/** Counts of rows made, truncated and left out. */
export interface RowReport {
  /** Rows that were made. */
  readonly rows: number;
  /** Rows that were truncated. */
  readonly cutRows: number;
  /** Tokens that these rows lost. */
  readonly cutTokens: number;
  /** Rows that lost a part of what is learned. */
  readonly shortenedAnswers: number;
  /** Rows that lost everything that is learned, and are left out. */
  readonly lostRows: number;
  /** Rows that had nothing to learn or to read, and are left out. */
  readonly emptyRows: number;
  /** Rows whose answer has no content: only its end is learned. */
  readonly emptyAnswers: number;
  /** Questions whose answer no window of the context has whole: they are learned and measured as questions without one. */
  readonly splitAnswers: number;
  /** Questions with several answers, of which the first is learned; metrics count all of them. */
  readonly severalAnswers: number;
  /** Texts and completions without an end token, which neither the tokenizer nor the model names. */
  readonly endlessRows: number;
  /** Rows of which the chat template leaves something out, by what it is. */
  readonly notPrinted?: Readonly<Record<string, number>>;
  /** The first five places of what is counted. */
  readonly places: RowPlaces;
}

/** Places of a kind that are kept. */
const maxPlaces = 5;

/** A report that is being made. */
export class ReportBuilder {
  readonly #counts = {
    cutRows: 0,
    cutTokens: 0,
    shortenedAnswers: 0,
    lostRows: 0,
    emptyRows: 0,
    emptyAnswers: 0,
    splitAnswers: 0,
    severalAnswers: 0,
  };
  readonly #notPrinted = new Map<string, number>();
  readonly #places: Record<keyof RowPlaces, string[]> = {
    cut: [],
    lost: [],
    empty: [],
    emptyAnswers: [],
    splitAnswers: [],
    severalAnswers: [],
  };
  #endlessRows = 0;

  #at(kind: keyof RowPlaces, place: string): void {
    if (this.#places[kind].length < maxPlaces) this.#places[kind].push(place);
  }

  cut(place: string, tokens: number): void {
    if (tokens <= 0) return;
    this.#counts.cutRows++;
    this.#counts.cutTokens += tokens;
    this.#at('cut', place);
  }

  lost(place: string): void {
    this.#counts.lostRows++;
    this.#at('lost', place);
  }

  shortenedAnswer(): void {
    this.#counts.shortenedAnswers++;
  }

  empty(place: string): void {
    this.#counts.emptyRows++;
    this.#at('empty', place);
  }

  emptyAnswer(place: string): void {
    this.#counts.emptyAnswers++;
    this.#at('emptyAnswers', place);
  }

  splitAnswer(place: string): void {
    this.#counts.splitAnswers++;
    this.#at('splitAnswers', place);
  }

  severalAnswers(place: string): void {
    this.#counts.severalAnswers++;
    this.#at('severalAnswers', place);
  }

  endless(): void {
    this.#endlessRows++;
  }

  notPrinted(what: string): void {
    this.#notPrinted.set(what, (this.#notPrinted.get(what) ?? 0) + 1);
  }

  /** The report. @param rows that were made */
  of(rows: number): RowReport {
    return {
      rows,
      ...this.#counts,
      endlessRows: this.#endlessRows,
      ...(this.#notPrinted.size > 0 && { notPrinted: Object.fromEntries(this.#notPrinted) }),
      places: this.#places,
    };
  }
}

/**
 * What of the rows of a source is truncated, left out or not used, in a note each.
 * @param task of the rows: language modelling learns answers, the others labels
 */
export function rowNotes(report: RowReport, examples: readonly Example[], source: string, task: string): string[] {
  const { cutRows, cutTokens, shortenedAnswers, lostRows, emptyRows, emptyAnswers, endlessRows, notPrinted } = report;
  const { splitAnswers, severalAnswers, places } = report;
  const rows = (count: number, one: string, several: string) =>
    `${count} ${count === 1 ? `row ${one}` : `rows ${several}`}`;
  const at = (kind: keyof RowPlaces, count: number) =>
    ` (${places[kind].join(', ')}${count > places[kind].length ? ' …' : ''})`;
  const notes = [
    cutRows > 0 &&
      `${rows(cutRows, 'was', 'were')} longer than max_length; ${cutTokens} tokens were cut${shortenedAnswers > 0 ? `, of ${shortenedAnswers === 1 ? 'one answer' : `${shortenedAnswers} answers`} too (data.truncate: middle keeps answers)` : ''}${at('cut', cutRows)}`,
    lostRows > 0 &&
      (task === 'causal-lm'
        ? `${rows(lostRows, 'lost its whole answer to max_length and is', 'lost their whole answers to max_length and are')} left out: data.truncate: middle keeps answers${at('lost', lostRows)}`
        : `${rows(lostRows, 'lost all of its labels to max_length and is', 'lost all of their labels to max_length and are')} left out: raise max_length${at('lost', lostRows)}`),
    emptyRows > 0 &&
      `${rows(emptyRows, 'has nothing to learn and is', 'have nothing to learn and are')} left out${at('empty', emptyRows)}`,
    emptyAnswers > 0 &&
      `${rows(emptyAnswers, 'has an empty answer', 'have empty answers')}, of which only the end is learned${at('emptyAnswers', emptyAnswers)}`,
    splitAnswers > 0 &&
      `${rows(splitAnswers, 'has an answer', 'have answers')} that no window of the context has whole, and ${splitAnswers === 1 ? 'counts' : 'count'} as without one: raise max_length, or stride above the longest answer${at('splitAnswers', splitAnswers)}`,
    severalAnswers > 0 &&
      `${rows(severalAnswers, 'has several answers: the loss is', 'have several answers: the loss is')} of the first, and all of them count as right${at('severalAnswers', severalAnswers)}`,
    endlessRows > 0 &&
      `${endlessRows} rows have no end token, from which the model would learn where to stop: no file of the model names one (eos_token, eos_token_id)`,
    ...Object.entries(notPrinted ?? {}).map(
      ([what, count]) => `the chat template leaves out ${what} of ${count} ${count === 1 ? 'row' : 'rows'}`,
    ),
  ];
  return [
    ...notes.filter((note) => note !== false).map((note) => `${source}: ${note}`),
    ...unusedNotes(examples, source),
  ];
}
