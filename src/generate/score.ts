import { type Model, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/**
 * Log-probability, in nats, of each continuation of `prompt`: the sum over its tokens. One packed pass over a row for
 * each continuation.
 */
export function scoreChoices(model: Model, prompt: readonly number[], choices: readonly (readonly number[])[]): number[] {
  return noGrad(() => {
    using _ = scope();
    const rows = choices.map((choice) => [...prompt, ...choice]);
    const packed = packTokens(rows);
    const hidden = model.hidden(packed);
    return choices.map((choice, r) => {
      using _inner = scope();
      const first = packed.rowStarts[r]! + prompt.length - 1;
      const logProbabilities = ops.logSoftmax(model.logits(ops.narrow(hidden, 0, first, choice.length)), -1);
      const picked = ops.gather(logProbabilities, 1, Tensor.from(BigInt64Array.from(choice, BigInt), [choice.length, 1]));
      return ops.sum(picked).item();
    });
  });
}
