/** What one adapter does at a linear layer, in the form in which its bank computes it. */
import type { LinearLayer } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import type { RowUpdate } from '../shared/index.ts';
import type { LinearEntry } from './linear-bank.ts';

/** The number formats in which factors of low rank are held: that of the file, where it is one of these. */
export type FactorType = 'float32' | 'float16' | 'bfloat16';

/** Why an adapter cannot be held; `takeOver` returns its message. */
export class NotHeld extends Error {}

/** What an adapter does at a linear layer, from the innermost on. */
export interface LinearSource {
  module?: LinearLayer;
  readonly updates: (() => RowUpdate)[];
}

/** Keeps a tensor beyond the scope in which it was made. */
export type Own = (tensor: Tensor) => Tensor;

/** Returns a layer's entry: what its updates multiply the layer's input by is taken out of them, and B is transposed. */
export function linearEntry(
  path: string,
  { module, updates }: LinearSource,
  factors: FactorType,
  own: Own,
): LinearEntry {
  let inputGain: Tensor | undefined;
  const held: RowUpdate[] = [];
  for (const { inputGain: gain, lowRank, ...rest } of updates.map((update) => update()).toReversed()) {
    const outer = inputGain;
    if (outer && rest.after) throw new NotHeld(`one of its methods scales what another reads at '${path}'`);
    const numbers = lowRank?.map(({ a, b, scaling }) => ({
      a: own(outer ? ops.mul(a, outer) : inFactorType(a, factors)),
      b: own(inFactorType(ops.t(b), factors)),
      scaling,
    }));
    held.unshift({
      ...rest,
      ...(numbers && { lowRank: numbers }),
      ...(rest.gain && { gain: own(ops.contiguous(rest.gain)) }),
      ...(rest.shift && { shift: own(rest.shift) }),
    });
    if (gain) inputGain = outer ? ops.mul(outer, gain) : gain;
  }
  return {
    ...(module && { module }),
    ...(inputGain && { inputGain: own(ops.contiguous(inputGain)) }),
    updates: held.filter((update) => Object.keys(update).length > 0),
  };
}

export const inFactorType = (factor: Tensor, type: FactorType): Tensor => {
  const rows = ops.contiguous(factor);
  return type === 'float32' ? rows : ops.toCopy(rows, { dtype: type });
};
