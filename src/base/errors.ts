/** The kinds of error, each with its meaning. The kind decides the exit code of the command line. */
export const errorKinds = {
  usage: 'The request is not possible: a wrong recipe field, option or argument.',
  input: 'A file or a data row is damaged, or its content does not follow its format.',
  mismatch: 'Two valid things do not fit together: an adapter and a base model, a config and weights.',
  environment: 'This machine lacks something: a compiler, network, LibTorch, disk space, memory, a permission.',
  state: 'The operation is not possible now: a run directory is in use, the engine has not started.',
  interrupted: 'The user stopped the operation. What was finished is saved.',
  numeric: 'A computation gave NaN or infinity, or training diverged.',
  engine: 'LibTorch rejected an operation, or an error inside Graft was not expected.',
} as const;

/** The kind of an error: one of the keys of `errorKinds`. */
export type ErrorKind = keyof typeof errorKinds;

/** What an error has beside its kind and its problem. */
export interface ErrorDetails {
  /** Where: a file with its line, the path of a recipe field, the name of a tensor. */
  readonly place?: string | undefined;
  /** What the user can do about it: one imperative sentence. */
  readonly hint?: string | undefined;
  /** Machine-readable facts (op, expected, got, shapes): plain data, which `structuredClone` can copy. */
  readonly data?: Readonly<Record<string, unknown>> | undefined;
  /** The error, or any other value, that led to this one. */
  readonly cause?: unknown;
}

/** A GraftError as plain data: what crosses a thread, and what `--json` prints. */
export interface ErrorJson {
  /** The kind of the error. */
  readonly kind: ErrorKind;
  /** The complete sentence, `place: problem. hint.` */
  readonly message: string;
  /** What is wrong, without place and hint. */
  readonly problem: string;
  /** Where: a file with its line, the path of a recipe field, the name of a tensor. */
  readonly place?: string;
  /** What the user can do about it: one imperative sentence. */
  readonly hint?: string;
  /** Machine-readable facts; absent where there are none. */
  readonly data?: Readonly<Record<string, unknown>>;
  /** The cause as plain data, with causes of its own. */
  readonly cause?: CauseJson;
}

/** The cause of an error as plain data: a GraftError, an error of another class, or a thrown value that is not an error. */
export type CauseJson = ErrorJson | OtherErrorJson | string | number | boolean | null;

/** An error of another class as plain data. */
export interface OtherErrorJson {
  /** The name of its class. */
  readonly name: string;
  /** Its message. */
  readonly message: string;
  /** The code of a Node error, such as ENOENT. */
  readonly code?: string | number;
  /** Its cause, with causes of its own. */
  readonly cause?: CauseJson;
}

/**
 * The one error class that leaves Graft. `message` is a complete sentence, `place: problem. hint.`, which is shown to the
 * user unchanged; `kind`, `place` and `data` are for programs.
 */
export class GraftError extends Error {
  /** The name of the class. */
  override readonly name = 'GraftError';
  /** The kind, which decides the exit code. */
  readonly kind: ErrorKind;
  /** What is wrong, without place and hint. */
  readonly problem: string;
  /** Where: a file with its line, the path of a recipe field, the name of a tensor. */
  readonly place: string | undefined;
  /** What the user can do about it: one imperative sentence. */
  readonly hint: string | undefined;
  /** Machine-readable facts; empty where there are none. */
  readonly data: Readonly<Record<string, unknown>>;

  /**
   * Makes an error; its message is put together from place, problem and hint.
   * @param problem what is wrong, without place and hint
   */
  constructor(kind: ErrorKind, problem: string, { place, hint, data, cause }: ErrorDetails = {}) {
    const sentences = [problem, hint].filter((sentence) => sentence !== undefined).map(withFullStop);
    super((place ? `${place}: ` : '') + sentences.join(' '), cause === undefined ? {} : { cause });
    this.kind = kind;
    this.problem = problem;
    this.place = place;
    this.hint = hint;
    this.data = data ?? {};
  }

  /** The exit code of the command line: 2 for wrong use, 130 (as in shells after Ctrl-C) when interrupted, otherwise 1. */
  get exitCode(): 1 | 2 | 130 {
    return this.kind === 'usage' ? 2 : this.kind === 'interrupted' ? 130 : 1;
  }

  /** Returns the same error at another place. */
  at(place: string): GraftError {
    const { kind, problem, hint, data, cause } = this;
    return new GraftError(kind, problem, { place, hint, data, cause });
  }

  /** Returns the error as plain data, with its chain of causes; `GraftError.from` is the inverse. */
  toJSON(): ErrorJson {
    return causeToJson(this) as ErrorJson;
  }

  /** Returns any thrown value as a GraftError; another class of error becomes the kind 'engine', with its stack in `data`. */
  static of(error: unknown): GraftError {
    if (error instanceof GraftError) return error;
    const { message = String(error), stack } = Object(error) as Error;
    return new GraftError('engine', message, { ...(stack && { data: { stack } }), cause: error });
  }

  /** Returns the error that `toJSON` described: its kind, problem, place, hint, data and chain of causes. */
  static from({ kind, problem, place, hint, data, cause }: ErrorJson): GraftError {
    return new GraftError(kind, problem, { place, hint, data, cause: causeFromJson(cause) });
  }
}

/** How many causes of a chain are written at most: a chain may lead in a circle. */
const maxCauses = 16;

function causeToJson(cause: unknown, depth = 0): CauseJson {
  if (cause === null || typeof cause === 'string' || typeof cause === 'number' || typeof cause === 'boolean')
    return cause;
  if (!(cause instanceof Error)) return String(cause);
  const { name, message, code, cause: next } = cause as NodeJS.ErrnoException;
  const chain = next !== undefined && depth < maxCauses ? { cause: causeToJson(next, depth + 1) } : {};
  if (!(cause instanceof GraftError)) return { name, message, ...(code !== undefined && { code }), ...chain };
  const { kind, problem, place, hint, data } = cause;
  return {
    kind,
    message,
    problem,
    ...(place !== undefined && { place }),
    ...(hint !== undefined && { hint }),
    ...(Object.keys(data).length > 0 && { data }),
    ...chain,
  };
}

function causeFromJson(json: CauseJson | undefined): unknown {
  if (typeof json !== 'object' || json === null) return json;
  if ('kind' in json) return GraftError.from(json);
  const { name, message, code, cause } = json;
  const error = new Error(message, cause === undefined ? {} : { cause: causeFromJson(cause) });
  return Object.assign(error, { name }, code !== undefined && { code });
}

const withFullStop = (text: string): string => {
  const sentence = text.trimEnd();
  return /[.!?:]$/.test(sentence) ? sentence : `${sentence}.`;
};
