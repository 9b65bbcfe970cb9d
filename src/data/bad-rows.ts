import { GraftError } from '../base/index.ts';

/** Bad rows that are told at once. */
const maxTold = 20;
/** Characters of a message about several rows, and of the problem of one of them, at most. */
const [maxMessage, maxProblem] = [1600, 160];

/** The first of some places. */
const listed = (places: readonly string[]) =>
  places.slice(0, 5).join(', ') + (places.length > 5 ? ` and ${places.length - 5} more` : '');

/** `rows.csv:` of `rows.csv:12`, and what follows it. */
function parts(place: string): [file: string, rest: string] {
  const at = place.lastIndexOf(':') + 1;
  const rest = place.slice(at);
  return [place.slice(0, at), at > 0 && /^\d+$/.test(rest) ? `line ${rest}` : rest];
}

/** The rows of a source that cannot be used: the first twenty are told in one error. */
export class BadRows {
  readonly #errors: GraftError[] = [];

  /**
   * Returns what `read` returns; undefined where it throws an error about a row (kind 'input').
   * @throws GraftError when twenty rows are bad; any other error at once
   */
  try<T>(read: () => T): T | undefined {
    try {
      return read();
    } catch (error) {
      this.#keep(error);
      return undefined;
    }
  }

  /** As `try`, for what is read later. */
  async tryLater<T>(read: () => Promise<T>): Promise<T | undefined> {
    try {
      return await read();
    } catch (error) {
      this.#keep(error);
      return undefined;
    }
  }

  #keep(error: unknown): void {
    if (!(error instanceof GraftError) || error.kind !== 'input' || error.place === undefined) throw error;
    this.#errors.push(error);
    if (this.#errors.length === maxTold) this.refuse();
  }

  /** @throws GraftError 'input' with the places of all bad rows, if there are any */
  refuse(): void {
    const [first] = this.#errors;
    if (!first) return;
    if (this.#errors.length === 1) throw first;
    const byProblem = [...Map.groupBy(this.#errors, ({ problem }) => problem).values()];
    const lines = byProblem.map((errors, i) => {
      const { place = '', problem } = errors[0]!;
      const same = errors.slice(1).map((error) => {
        const [file, rest] = parts(error.place!);
        return file === parts(place)[0] ? rest : error.place!;
      });
      const short = problem.length > maxProblem && i > 0 ? `${problem.slice(0, maxProblem)}…` : problem;
      return `${i > 0 ? `${place}: ` : ''}${short}${same.length > 0 ? ` (also ${listed(same)})` : ''}`.replace(
        /[^.…]$/,
        '$&.',
      );
    });
    let told = lines[0]!;
    const rest = lines.slice(1);
    while (rest.length > 0 && told.length + rest[0]!.length < maxMessage) told += `\n  ${rest.shift()}`;
    if (rest.length > 0) told += `\n  and ${rest.length} other problems.`;
    const count = this.#errors.length === maxTold ? `the first ${maxTold}` : String(this.#errors.length);
    throw new GraftError('input', `${told}\n${count} rows cannot be used`, {
      place: first.place,
      hint: first.hint,
      data: { rows: this.#errors.map(({ place, problem }) => ({ place, problem })) },
      cause: first.cause,
    });
  }
}

/** `read` of each row. @throws GraftError 'input' with the first twenty rows for which it throws one */
export function mapRows<T, R>(rows: Iterable<T>, read: (row: T) => R): R[] {
  const bad = new BadRows();
  const results: R[] = [];
  for (const row of rows) {
    const result = bad.try(() => read(row));
    if (result !== undefined) results.push(result);
  }
  bad.refuse();
  return results;
}
