import { averageAdapters, type CombineOptions, combineAdapters, isAdapterHub } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';

export interface CombineArgs extends Omit<CombineOptions, 'draw'> {
  readonly adapters: readonly string[];
  readonly out: string;
}

interface Combined {
  readonly out: string;
  readonly adapters: number;
  readonly how: CombineOptions['how'];
  /** Of LoRA. */
  readonly rank?: number;
  readonly modules?: number;
  /** Of bottleneck adapters. */
  readonly tensors?: number;
}

/** Writes what several adapters are together. */
export function combineJob({ adapters, out, ...options }: CombineArgs): Combined {
  if (adapters.some(isAdapterHub)) {
    if (options.how !== 'linear') {
      throw new GraftError('usage', `bottleneck adapters have no ${options.how}`, {
        hint: 'Use linear: the mean of their weights',
      });
    }
    const { tensors } = averageAdapters(adapters, options.weights, out);
    return { out, adapters: adapters.length, how: options.how, tensors };
  }
  return { out, adapters: adapters.length, how: options.how, ...combineAdapters(adapters, out, options) };
}
