import { GraftError } from '../base/index.ts';
import { type Model, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/** Tokens of a batch. */
const TOKEN_BUDGET = 1024;

/** A row to run the model on: a prompt and all tokens of a continuation but the last. */
interface ScoringRow {
  readonly ids: readonly number[];
  /** The continuations that the row scores: the tokens but the last of each begin the row's continuation. */
  readonly scored: { readonly prompt: number; readonly choice: number }[];
}

/**
 * Log-probability, in nats, of each continuation after each prompt: the sum over its tokens. A continuation whose tokens but the
 * last begin another one shares its row, so that "ham" (one token) and "spam" (two) cost one forward pass over the prompt.
 * @param prompts token ids
 * @param choices for each prompt, the token ids of its continuations; as many for each
 * @param tasks for each prompt, its task among several that share an adapter
 * @param onBatch is called after each batch with how many rows are done, and may throw to stop
 * @returns [prompts][choices]
 * @throws GraftError 'usage' for an empty prompt or continuation, and where the two exceed the model's context
 */
export function scoreChoices(
  model: Model,
  prompts: readonly (readonly number[])[],
  choices: readonly (readonly (readonly number[])[])[],
  tasks: readonly (number | undefined)[] = prompts.map(() => undefined),
  onBatch: (done: number, total: number) => void = () => {},
): number[][] {
  checkLengths(model, prompts, choices);
  const rows: ScoringRow[] = prompts.flatMap((prompt, p) => {
    const promptRows: ScoringRow[] = [];
    const own = choices[p]!;
    // The longest first, so that the row of a continuation that begins like another one exists already.
    for (const c of [...own.keys()].sort((a, b) => own[b]!.length - own[a]!.length)) {
      const start = own[c]!.slice(0, -1);
      const shared = promptRows.find(({ ids }) => start.every((id, i) => ids[prompt.length + i] === id));
      if (shared) shared.scored.push({ prompt: p, choice: c });
      else promptRows.push({ ids: [...prompt, ...start], scored: [{ prompt: p, choice: c }] });
    }
    return promptRows;
  });
  const scores = choices.map((own) => own.map(() => 0));
  for (let first = 0; first < rows.length; ) {
    let [last, tokens] = [first, 0];
    while (last < rows.length && (last === first || tokens + rows[last]!.ids.length <= TOKEN_BUDGET))
      tokens += rows[last++]!.ids.length;
    scoreRows(model, prompts, choices, tasks, rows.slice(first, last), scores);
    first = last;
    onBatch(first, rows.length);
  }
  return scores;
}

function checkLengths(
  model: Model,
  prompts: readonly (readonly number[])[],
  choices: readonly (readonly (readonly number[])[])[],
): void {
  const usageError = (place: string, problem: string) => new GraftError('usage', problem, { place });
  prompts.forEach((prompt, p) => {
    if (prompt.length === 0) throw usageError(`prompt ${p}`, 'the prompt has no tokens');
    choices[p]!.forEach((choice, c) => {
      if (choice.length === 0) throw usageError(`choice ${c}`, 'the continuation has no tokens');
    });
    const longest = Math.max(0, ...choices[p]!.map((choice) => choice.length));
    // The last token of a continuation is predicted but is not an input.
    const { virtualLength } = model.ports;
    if (virtualLength + prompt.length + longest - 1 > model.contextLength) {
      const virtual = virtualLength > 0 ? `${virtualLength} virtual tokens, ` : '';
      const lengths = `${virtual}${prompt.length} tokens of the prompt and ${longest} of the longest continuation`;
      throw usageError(`prompt ${p}`, `${lengths} exceed the model's context length of ${model.contextLength}`);
    }
  });
}

/** Runs the model on one batch of rows and writes the log-probabilities to `scores`. */
function scoreRows(
  model: Model,
  prompts: readonly (readonly number[])[],
  choices: readonly (readonly (readonly number[])[])[],
  tasks: readonly (number | undefined)[],
  rows: readonly ScoringRow[],
  scores: number[][],
): void {
  noGrad(() => {
    using _ = scope();
    const packed = packTokens(
      rows.map(({ ids }) => ids),
      rows.map(({ scored }) => tasks[scored[0]!.prompt]),
    );
    const hidden = model.hidden(packed);
    // The positions before the tokens of the continuations: from the last token of each prompt to the end of its row.
    const spans = rows.map(({ ids, scored }, r) => {
      const promptLength = prompts[scored[0]!.prompt]!.length;
      return { from: packed.rowStarts[r]! + promptLength - 1, count: ids.length - promptLength + 1 };
    });
    const positions = spans.flatMap(({ from, count }) => Array.from({ length: count }, (_, i) => from + i));
    const selected = ops.indexSelect(hidden, 0, Tensor.from(BigInt64Array.from(positions, BigInt)));
    const logProbabilities = ops.logSoftmax(model.logits(selected, [0, selected.size(0)]), -1);
    const values = logProbabilities.data() as Float32Array;
    let at = 0;
    rows.forEach(({ scored }, r) => {
      for (const { prompt, choice } of scored) {
        scores[prompt]![choice] = choices[prompt]![choice]!.reduce(
          (sum, id, i) => sum + values[(at + i) * model.vocabSize + id]!,
          0,
        );
      }
      at += spans[r]!.count;
    });
  });
}
