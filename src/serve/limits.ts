/** Bounds on what one request, one key and one client may take. */
export interface Limits {
  /** Bytes of a request's body. Default: 4 MiB. */
  readonly bodyBytes: number;
  /** Bytes of a request's headers. Default: 16 KiB. */
  readonly headerBytes: number;
  /** Messages of a conversation. Default: 1024. */
  readonly messages: number;
  /** Tools of a conversation. Default: 128. */
  readonly tools: number;
  /** Stop strings. Default: 16. */
  readonly stops: number;
  /** Characters of a stop string. Default: 256. */
  readonly stopLength: number;
  /** Entries of `logit_bias`. Default: 1024. */
  readonly logitBiases: number;
  /** Prompts or inputs of one request. Default: 256. */
  readonly inputs: number;
  /** Answers of one request: prompts times `n`. Default: 64. */
  readonly answers: number;
  /** Characters of a JSON schema. Default: 64 KiB. */
  readonly schemaLength: number;
  /** Seconds that making a grammar of a schema may take. Default: 2. */
  readonly schemaSeconds: number;
  /** Requests of one key that run at a time. Default: 256. */
  readonly requestsPerKey: number;
  /** Requests of one key in a minute; 0: as many as come. Default: 0. */
  readonly requestsPerMinute: number;
  /** Connections that are open at a time. Default: 2048. */
  readonly connections: number;
  /** Seconds in which the headers of a request have to arrive. Default: 10. */
  readonly headerSeconds: number;
  /** Seconds in which a whole request has to arrive. Default: 30. */
  readonly bodySeconds: number;
  /** Seconds for which a client may read nothing of its answer before that is stopped. Default: 30. */
  readonly stallSeconds: number;
  /** Pieces of a request's answers that wait to be read at most; with more, the answers are cut. Default: 4096. */
  readonly unreadPieces: number;
  /** Seconds that an answer may take in all. Default: 600. */
  readonly answerSeconds: number;
}

/** Limits that differ from their defaults. */
export type LimitChoices = { readonly [K in keyof Limits]?: Limits[K] | undefined };

export const defaultLimits: Limits = {
  bodyBytes: 4 * 2 ** 20,
  headerBytes: 16 * 2 ** 10,
  messages: 1024,
  tools: 128,
  stops: 16,
  stopLength: 256,
  logitBiases: 1024,
  inputs: 256,
  answers: 64,
  schemaLength: 64 * 2 ** 10,
  schemaSeconds: 2,
  requestsPerKey: 256,
  requestsPerMinute: 0,
  connections: 2048,
  headerSeconds: 10,
  bodySeconds: 30,
  stallSeconds: 30,
  unreadPieces: 4096,
  answerSeconds: 600,
};

export const limitsOf = (choices: LimitChoices = {}): Limits => ({
  ...defaultLimits,
  ...(Object.fromEntries(Object.entries(choices).filter(([, value]) => value !== undefined)) as Partial<Limits>),
});
