/** What kind of thing went wrong; decides the exit code of the command line. */
export type ErrorKind =
  | 'usage' // the caller asked for something that cannot be: a recipe, a flag, an argument
  | 'input' // a file or a data row is not what it says it is
  | 'mismatch' // two good things do not belong together: adapter and base, config and weights
  | 'environment' // this machine lacks something: compiler, network, LibTorch, disk, memory
  | 'state' // a run directory in use, a disposed tensor, a second engine
  | 'interrupted' // the user stopped it; what was done is kept
  | 'numeric' // NaN, overflow, divergence
  | 'engine'; // LibTorch refused an operation

export interface ErrorDetails {
  /** Where: a file with its line, a recipe path, a tensor's name. */
  readonly place?: string;
  /** What the reader can do about it, one imperative sentence. */
  readonly hint?: string;
  /** Machine-readable facts: op, expected, got, shapes. */
  readonly data?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/**
 * The one error class that leaves Graft. `message` is a complete sentence, `place: problem. hint.`, meant to be shown
 * as it is; `kind` and `data` are for programs.
 */
export class GraftError extends Error {
  override readonly name = 'GraftError';
  readonly kind: ErrorKind;
  readonly place: string | undefined;
  readonly hint: string | undefined;
  readonly #problem: string;
  readonly data: Readonly<Record<string, unknown>>;

  constructor(kind: ErrorKind, problem: string, details: ErrorDetails = {}) {
    const sentences = [problem, details.hint].filter((s) => s !== undefined).map(closed);
    super((details.place ? `${details.place}: ` : '') + sentences.join(' '), { cause: details.cause });
    this.kind = kind;
    this.#problem = problem;
    this.place = details.place;
    this.hint = details.hint;
    this.data = details.data ?? {};
  }

  /** 2 for wrong use, 130 as shells have it for Ctrl-C, 1 for everything else (design §7). */
  get exitCode(): 1 | 2 | 130 {
    return this.kind === 'usage' ? 2 : this.kind === 'interrupted' ? 130 : 1;
  }

  /** The same error at another place. */
  at(place: string): GraftError {
    const { kind, hint, data, cause } = this;
    return new GraftError(kind, this.#problem, { place, ...(hint && { hint }), data, cause });
  }

  /** The error as plain data, to cross a thread or to be printed with `--json`. */
  toJSON(): Record<string, unknown> {
    const { kind, message, place, hint, data } = this;
    return { kind, message, ...(place && { place }), ...(hint && { hint }), ...(Object.keys(data).length && { data }) };
  }

  /** Anything that was thrown, as a GraftError; what is none is of kind 'engine', its stack in `data`. */
  static of(error: unknown): GraftError {
    if (error instanceof GraftError) return error;
    const { message = String(error), stack } = Object(error) as Error;
    return new GraftError('engine', message, { data: { stack }, cause: error });
  }

  static from(json: { kind: ErrorKind; message: string; data?: Record<string, unknown> }): GraftError {
    const error = new GraftError(json.kind, json.message, json.data ? { data: json.data } : {});
    error.message = json.message;
    return error;
  }
}

const closed = (sentence: string): string => (/[.!?:]$/.test(sentence.trimEnd()) ? sentence.trimEnd() : `${sentence}.`);
