import { GraftError } from '../base/index.ts';
import { type Model, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/** Tokens that are read at one time. */
const budget = 1024;

/** A prompt with the first tokens of some continuation behind it, and what is asked of it. */
interface Probe {
  readonly ids: readonly number[];
  /** Continuations whose tokens but the last begin the row's continuation: each token is looked up at the position before it. */
  readonly asks: { readonly prompt: number; readonly choice: number }[];
}

/**
 * Log-probability, in nats, of each continuation after each prompt: the sum over its tokens. A continuation whose tokens but the last are
 * the beginning of another one shares its row, so "ham" (one token) and "spam" (two) cost one pass over the prompt.
 * @param tasks which of several tasks that share an adapter each prompt is of
 * @returns [prompts][choices]
 * @throws GraftError 'usage' for an empty prompt or continuation, and where the two do not fit the model's context
 */
export function scoreChoices(
  model: Model,
  prompts: readonly (readonly number[])[],
  choices: readonly (readonly number[])[],
  tasks: readonly (number | undefined)[] = prompts.map(() => undefined),
): number[][] {
  check(model, prompts, choices);
  // The longest first, so that the row of a continuation that begins like another one is there already.
  const longestFirst = [...choices.keys()].sort((a, b) => choices[b]!.length - choices[a]!.length);
  const probes: Probe[] = prompts.flatMap((prompt, p) => {
    const rows: Probe[] = [];
    for (const c of longestFirst) {
      const start = choices[c]!.slice(0, -1);
      const shared = rows.find(({ ids }) => start.every((id, i) => ids[prompt.length + i] === id));
      if (shared) shared.asks.push({ prompt: p, choice: c });
      else rows.push({ ids: [...prompt, ...start], asks: [{ prompt: p, choice: c }] });
    }
    return rows;
  });
  const scores = prompts.map(() => choices.map(() => 0));
  for (let first = 0; first < probes.length; ) {
    let [last, tokens] = [first, 0];
    while (last < probes.length && (last === first || tokens + probes[last]!.ids.length <= budget))
      tokens += probes[last++]!.ids.length;
    scoreProbes(model, prompts, choices, tasks, probes.slice(first, last), scores);
    first = last;
  }
  return scores;
}

function check(model: Model, prompts: readonly (readonly number[])[], choices: readonly (readonly number[])[]): void {
  const wrong = (place: string, problem: string) => new GraftError('usage', problem, { place });
  choices.forEach((choice, c) => {
    if (choice.length === 0) throw wrong(`choice ${c}`, 'the continuation has no tokens');
  });
  const longest = Math.max(0, ...choices.map((choice) => choice.length));
  prompts.forEach((prompt, p) => {
    if (prompt.length === 0) throw wrong(`prompt ${p}`, 'the prompt has no tokens');
    // The last token of a continuation is only predicted, never read.
    const { virtualLength } = model.ports;
    if (virtualLength + prompt.length + longest - 1 > model.contextLength) {
      const virtual = virtualLength > 0 ? `, ${virtualLength} virtual ones` : '';
      const tokens = `${prompt.length} tokens${virtual}, and ${longest} of the longest continuation`;
      throw wrong(`prompt ${p}`, `the prompt has ${tokens}; the model reads ${model.contextLength}`);
    }
  });
}

function scoreProbes(
  model: Model,
  prompts: readonly (readonly number[])[],
  choices: readonly (readonly number[])[],
  tasks: readonly (number | undefined)[],
  probes: readonly Probe[],
  scores: number[][],
): void {
  noGrad(() => {
    using _ = scope();
    const packed = packTokens(
      probes.map(({ ids }) => ids),
      0,
      probes.map(({ asks }) => tasks[asks[0]!.prompt]),
    );
    const hidden = model.hidden(packed);
    // The positions whose next token is asked for: from each prompt's end to its row's end.
    const spans = probes.map(({ ids, asks }, r) => {
      const promptLength = prompts[asks[0]!.prompt]!.length;
      return { from: packed.rowStarts[r]! + promptLength - 1, count: ids.length - promptLength + 1 };
    });
    const positions = spans.flatMap(({ from, count }) => Array.from({ length: count }, (_, i) => from + i));
    const rows = ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(positions, BigInt)));
    const logProbabilities = ops.logSoftmax(model.logits(rows, [0, rows.size(0)]), -1);
    const width = model.vocabSize;
    const values = logProbabilities.data() as Float32Array;
    let at = 0;
    probes.forEach(({ asks }, r) => {
      for (const { prompt, choice } of asks) {
        scores[prompt]![choice] = choices[choice]!.reduce((sum, id, i) => sum + values[(at + i) * width + id]!, 0);
      }
      at += spans[r]!.count;
    });
  });
}
