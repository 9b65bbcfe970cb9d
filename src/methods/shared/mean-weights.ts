import { GraftError } from '../../base/index.ts';

/** Weights of a mean, divided by their sum. @throws GraftError 'usage' where there is not one for each adapter, or they cancel out */
export function normalizedWeights(weights: readonly number[], adapters: number): number[] {
  const place = 'weights';
  if (weights.length !== adapters) {
    const problem = `${weights.length} weights for ${adapters} adapters`;
    throw new GraftError('usage', problem, { place, hint: 'Give one for each adapter' });
  }
  const total = weights.reduce((a, b) => a + b, 0);
  if (total === 0) {
    const problem = 'the weights come to 0, and a mean divides by that';
    throw new GraftError('usage', problem, { place, hint: 'Give weights that do not cancel out' });
  }
  return weights.map((weight) => weight / total);
}
