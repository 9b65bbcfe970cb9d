/** Makes grammars of schemas, in a thread that is ended where one takes too long. */
import { parentPort, workerData } from 'node:worker_threads';
import { GraftError } from '../../base/index.ts';
import { Grammars, type VocabularyTokens, XGrammar } from '../../generate/index.ts';

export interface GrammarRequest {
  readonly id: number;
  /** JSON. */
  readonly schema: string;
  /** Whether properties and items that the schema does not name are excluded. */
  readonly strict: boolean;
}

export type GrammarReply =
  | { readonly id: number; readonly started: true }
  | { readonly id: number; readonly grammar: string }
  | { readonly id: number; readonly problem: string };

const port = parentPort!;
const grammars = new Grammars(() => workerData as VocabularyTokens);
const ready = grammars.begin('root ::= "{"'); // the vocabulary is read once

port.on('message', async ({ id, schema, strict }: GrammarRequest) => {
  try {
    await ready;
    port.postMessage({ id, started: true } satisfies GrammarReply);
    const grammar = await new XGrammar().fromJsonSchema(schema, strict);
    // The engine compiles it again: what that costs is known here first.
    const matcher = await grammars.begin(grammar);
    matcher[Symbol.dispose]();
    port.postMessage({ id, grammar } satisfies GrammarReply);
  } catch (error) {
    port.postMessage({ id, problem: GraftError.of(error).problem } satisfies GrammarReply);
  }
});
