/** Compiles grammars, and says of the answers that follow them which tokens may come next: in a thread of its own. */
import { parentPort, workerData } from 'node:worker_threads';
import { GraftError } from '../base/index.ts';
import { Grammars } from './grammar.ts';
import { FilterState, type GrammarBegun, type GrammarCall } from './grammar-threads.ts';
import type { GrammarMatcher, VocabularyTokens } from './xgrammar.ts';

const port = parentPort!;
const grammars = new Grammars(() => workerData as VocabularyTokens);
const answers = new Map<number, { readonly matcher: GrammarMatcher; readonly state: Int32Array }>();

/** Writes what may come next, and lets go who waits for it. */
function tell({ matcher, state }: { readonly matcher: GrammarMatcher; readonly state: Int32Array }): void {
  state.set(matcher.allowed(), FilterState.allowed);
  state[FilterState.ended] = matcher.ended ? 1 : 0;
}

async function begin({ answer, ebnf, state }: Extract<GrammarCall, { readonly type: 'begin' }>): Promise<void> {
  try {
    const begun = { matcher: await grammars.begin(ebnf), state };
    answers.set(answer, begun);
    tell(begun);
    port.postMessage({ answer } satisfies GrammarBegun);
  } catch (error) {
    port.postMessage({ answer, error: GraftError.of(error).toJSON() } satisfies GrammarBegun);
  }
}

port.on('message', (call: GrammarCall) => {
  if (call.type === 'begin') return void begin(call);
  const known = answers.get(call.answer);
  if (!known) return;
  if (call.type === 'end') {
    known.matcher[Symbol.dispose]();
    answers.delete(call.answer);
    return;
  }
  const { matcher, state } = known;
  try {
    matcher.accept(call.id);
    tell(known);
  } catch {
    state[FilterState.failed] = 1;
  }
  Atomics.add(state, FilterState.accepted, 1);
  Atomics.notify(state, FilterState.accepted);
});
