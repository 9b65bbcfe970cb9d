import { type CombineOptions, combineAdapters } from '../export/index.ts';

export interface CombineArgs extends Omit<CombineOptions, 'draw'> {
  readonly adapters: readonly string[];
  readonly out: string;
}

/** Writes what several adapters are together. */
export function combineJob({ adapters, out, ...options }: CombineArgs) {
  return { out, adapters: adapters.length, how: options.how, ...combineAdapters(adapters, out, options) };
}
