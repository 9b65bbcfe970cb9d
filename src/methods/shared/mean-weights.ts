import { GraftError } from '../../base/index.ts';

/**
 * Returns the weights divided by their sum.
 * @throws GraftError 'usage' where there is not one weight for each adapter, or their sum is 0
 */
export function normalizedWeights(weights: readonly number[], adapters: number): number[] {
  const place = 'weights';
  if (weights.length !== adapters) {
    const problem = `there are ${weights.length} weights for ${adapters} adapters`;
    throw new GraftError('usage', problem, { place, hint: 'Give one weight for each adapter' });
  }
  const total = weights.reduce((a, b) => a + b, 0);
  if (total === 0) {
    const problem = 'the weights sum to 0, so they cannot be normalised';
    throw new GraftError('usage', problem, { place, hint: 'Give weights with a sum other than 0' });
  }
  return weights.map((weight) => weight / total);
}
