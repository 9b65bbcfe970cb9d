/** What goes wrong with a request, as OpenAI's clients expect it: a status, and a body that says what and where. */
import { GraftError } from '../base/index.ts';
import { noRoom } from '../generate/index.ts';

/** OpenAI's classes of error. */
export type ErrorType =
  | 'invalid_request_error'
  | 'authentication_error'
  | 'permission_error'
  | 'not_found_error'
  | 'rate_limit_error'
  | 'server_error';

const typeOf = (status: number): ErrorType => {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 404) return 'not_found_error';
  if (status === 429) return 'rate_limit_error';
  return status < 500 ? 'invalid_request_error' : 'server_error';
};

export interface RequestErrorDetails {
  /** The field of the body. */
  readonly param?: string | undefined;
  /** A word for programs, such as `model_not_found`. */
  readonly code?: string | undefined;
  /** After how many seconds it is worth to ask again. */
  readonly retryAfter?: number | undefined;
}

/** OpenAI's body of an error. */
export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: ErrorType;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** An error of a request: its message is shown to whoever sent it. */
export class RequestError extends Error {
  override readonly name = 'RequestError';
  readonly status: number;
  readonly param: string | undefined;
  readonly code: string | undefined;
  readonly retryAfter: number | undefined;

  constructor(status: number, message: string, { param, code, retryAfter }: RequestErrorDetails = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get body(): ErrorBody {
    const { message, status, param = null, code = null } = this;
    return { error: { message, type: typeOf(status), param, code } };
  }
}

export const badRequest = (message: string, param?: string, code?: string) =>
  new RequestError(400, message, { param, code });

export const modelNotFound = (name: string) =>
  new RequestError(404, `The model '${brief(name)}' does not exist. GET /v1/models lists those that do.`, {
    param: 'model',
    code: 'model_not_found',
  });

/** Text of a request that a message repeats: short, and on one line. */
export const brief = (text: string): string => {
  const line = text.replaceAll(/\s+/g, ' ').toWellFormed();
  return line.length > 80 ? `${line.slice(0, 80)}…` : line;
};

export const shuttingDown = () =>
  new RequestError(503, 'The server is shutting down.', { code: 'shutting_down', retryAfter: 10 });

/** A part of a message of Graft's as a sentence of its own, without the paths of this machine. */
const sentence = (text: string): string => {
  const shown = withoutPaths(text).trim();
  return shown.charAt(0).toUpperCase() + shown.slice(1).replace(/([^.!?:])$/, '$1.');
};

const withoutPaths = (message: string): string => message.replaceAll(/(?:[a-z]:)?(?:[/\\][^\s/\\'",:;()]+){2,}/gi, '…');

/**
 * Any thrown value as an answer. What the sender can change keeps its message; everything else is only said to have happened.
 * @param log is given what the sender is not told
 */
export function requestError(error: unknown, log: (line: string) => void): RequestError {
  if (error instanceof RequestError) return error;
  const known = GraftError.of(error);
  const { reason } = known.data;
  const said = (status: number, details?: RequestErrorDetails) =>
    new RequestError(
      status,
      [known.problem, known.hint]
        .filter((text) => text !== undefined)
        .map(sentence)
        .join(' '),
      details,
    );
  if (reason === 'queue-full')
    return new RequestError(429, 'Too many requests wait. Try again later.', { code: 'queue_full', retryAfter: 1 });
  if (reason === 'closing' || reason === 'unknown-adapter') {
    // An adapter that was there a moment ago has been removed since.
    return reason === 'closing' ? shuttingDown() : said(404, { param: 'model', code: 'model_not_found' });
  }
  switch (known.kind) {
    case 'usage': {
      const param = known.place && /^[a-z_]+$/i.test(known.place) ? known.place : undefined;
      return said(400, { param, code: reason === noRoom ? 'context_length_exceeded' : undefined });
    }
    case 'mismatch':
    case 'input':
      return said(400);
    case 'interrupted':
      return shuttingDown();
    default:
      log(`${known.kind}: ${known.message}`);
      return new RequestError(500, 'The server failed on this request. Its log says why.', { code: 'internal_error' });
  }
}
