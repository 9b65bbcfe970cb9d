import { Worker } from 'node:worker_threads';
import type { Tokenizer } from '../../data/index.ts';
import { type VocabularyTokens, vocabularyTokens } from '../../generate/index.ts';
import { badRequest, RequestError } from '../errors.ts';
import type { Limits } from '../limits.ts';
import { checkSchema } from './schema.ts';
import type { GrammarReply, GrammarRequest } from './worker.ts';

/** What came of a schema: a grammar, or what is wrong with it. */
type Outcome = Exclude<GrammarReply, { readonly started: true }> | RequestError;

/** Grammars that are kept by their schema. */
const kept = 256;

/** Schemas that wait for their grammar at most. */
const maxWaiting = 64;

interface Waiting {
  readonly onStarted: () => void;
  readonly settle: (outcome: Outcome) => void;
}

/** The grammars of schemas, made in a thread of their own, one after another. */
export class SchemaGrammars {
  readonly #tokens: () => VocabularyTokens;
  readonly #limits: Limits;
  readonly #made = new Map<string, string>();
  #worker: Worker | undefined;
  #waiting = new Map<number, Waiting>();
  #queue: Promise<unknown> = Promise.resolve();
  #queued = 0;
  #nextId = 0;

  constructor(tokenizer: Tokenizer, vocabSize: number, limits: Limits) {
    this.#tokens = () => vocabularyTokens(tokenizer, vocabSize);
    this.#limits = limits;
  }

  /**
   * The grammar, as EBNF, of JSON that follows a schema.
   * @param param the field that has it
   * @param strict whether properties and items that the schema does not name are excluded
   * @throws RequestError 400 for a schema that cannot be followed whole, or takes too long
   */
  async of(schema: unknown, param: string, strict = false): Promise<string> {
    const text = JSON.stringify(schema);
    if (text.length > this.#limits.schemaLength)
      throw badRequest(`The schema is longer than ${this.#limits.schemaLength} characters.`, param, 'too_long');
    checkSchema(schema, param);
    const key = `${strict}${text}`;
    const made = this.#made.get(key);
    if (made !== undefined) return made;
    if (this.#queued >= maxWaiting)
      throw new RequestError(429, 'Too many schemas wait for their grammar.', { code: 'queue_full', retryAfter: 1 });
    this.#queued++;
    const making = this.#queue.then(() => this.#make(text, strict));
    this.#queue = making.catch(() => {});
    const reply = await making.finally(() => this.#queued--);
    if (reply instanceof RequestError) throw reply;
    if ('problem' in reply) throw badRequest(`${reply.problem}.`, param, 'unsupported_schema');
    this.#made.set(key, reply.grammar);
    if (this.#made.size > kept) this.#made.delete(this.#made.keys().next().value!);
    return reply.grammar;
  }

  #make(schema: string, strict: boolean): Promise<Outcome> {
    return new Promise((resolve) => {
      const worker = this.#start();
      const id = this.#nextId++;
      const seconds = this.#limits.schemaSeconds;
      let late: NodeJS.Timeout | undefined;
      this.#waiting.set(id, {
        onStarted: () => {
          const problem = `Making a grammar of the schema takes longer than ${seconds} s. Use a simpler one.`;
          late = setTimeout(
            () => this.#end(new RequestError(400, problem, { code: 'unsupported_schema' })),
            seconds * 1000,
          );
        },
        settle: (outcome) => {
          clearTimeout(late);
          this.#waiting.delete(id);
          resolve(outcome);
        },
      });
      worker.postMessage({ id, schema, strict } satisfies GrammarRequest);
    });
  }

  #start(): Worker {
    if (this.#worker) return this.#worker;
    const file = import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js';
    const options = { workerData: this.#tokens(), resourceLimits: { maxOldGenerationSizeMb: 512 } };
    const worker = new Worker(new URL(file, import.meta.url), options);
    worker.unref();
    worker.on('message', (reply: GrammarReply) => {
      const waiting = this.#waiting.get(reply.id);
      if ('started' in reply) waiting?.onStarted();
      else waiting?.settle(reply);
    });
    const lost = () => {
      if (this.#worker === worker)
        this.#end(new RequestError(400, 'The schema needs too much memory. Use a simpler one.'));
    };
    worker.on('error', lost);
    worker.on('exit', lost);
    this.#worker = worker;
    return worker;
  }

  /** Ends the thread; what waits for it is answered so. */
  #end(answer: RequestError): void {
    const worker = this.#worker;
    this.#worker = undefined;
    void worker?.terminate();
    for (const { settle } of [...this.#waiting.values()]) settle(answer);
  }

  close(): void {
    this.#end(new RequestError(503, 'The server is shutting down.', { code: 'shutting_down' }));
  }
}
