import {
  adapterIn,
  averageAdapters,
  type CombineOptions,
  combineAdapters,
  isAdapterHub,
  settingNames,
} from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import { type Combination, combinations } from '../../methods/index.ts';

/** How adapters are combined, and where the result goes. */
export interface CombineSettings {
  /** One for each adapter; any sign. */
  readonly weights: readonly number[];
  /** New directory for the combined adapter. */
  readonly out: string;
  /** How updates are combined, as in PEFT's `add_weighted_adapter`. Default: cat; linear for bottleneck adapters. */
  readonly how?: Combination | undefined;
  /** Rank after a decomposition. Default: the highest of the adapters. */
  readonly svdRank?: number | undefined;
  /** Share of the numbers that ties, dare and magnitude_prune keep. Default: 0.5. */
  readonly density?: number | undefined;
  /** What decides the sign of a place under ties. Default: total. */
  readonly majoritySignMethod?: 'total' | 'frequency' | undefined;
  /** Decides what dare drops. Default: 0. */
  readonly seed?: number | undefined;
}

/** The result of combining adapters. */
export interface CombineResult {
  /** Directory of the combined adapter. */
  readonly out: string;
  /** How many adapters it was made of. */
  readonly adapters: number;
  /** How updates were combined. */
  readonly how: Combination;
  /** LoRA: the rank of the combined adapter. */
  readonly rank?: number;
  /** LoRA: how many modules it updates. */
  readonly modules?: number;
  /** Bottleneck adapters: how many tensors were averaged. */
  readonly tensors?: number;
  /** Methods whose settings some of the adapters have, and the combination has not. */
  readonly leftOut: readonly string[];
}

/** The settings that only some ways of combining read. */
const readers = [
  ['density', /ties|dare|prune/],
  ['majoritySignMethod', /ties/],
  ['seed', /dare/],
  ['svdRank', /svd/],
] as const;

/** @throws GraftError 'usage' for a setting that this way of combining does not read */
function requireRead(settings: Omit<CombineSettings, 'weights' | 'out'>, how: Combination): void {
  for (const [name, reading] of readers) {
    if (settings[name] === undefined || reading.test(how)) continue;
    throw new GraftError('usage', `${how} does not read ${name}`, {
      place: name,
      hint: `Leave it out; it is for ${combinations.filter((other) => reading.test(other)).join(', ')}`,
    });
  }
}

export type CombineArgs = CombineSettings & { readonly adapters: readonly string[] };

/** Writes several adapters as one. */
export function combine({ adapters: paths, out, weights, ...settings }: CombineArgs): CombineResult {
  const adapters = paths.map(adapterIn);
  const {
    how = adapters.some(isAdapterHub) ? 'linear' : 'cat',
    svdRank,
    density = 0.5,
    majoritySignMethod,
    seed = 0,
  } = settings;
  requireRead(settings, how);
  const leftOut = [...new Set(adapters.flatMap(settingNames))];
  if (adapters.some(isAdapterHub)) {
    if (how !== 'linear') {
      throw new GraftError('usage', `bottleneck adapters cannot be combined by ${how}`, {
        hint: 'Use linear: the mean of their weights',
      });
    }
    const { tensors } = averageAdapters(adapters, weights, out);
    return { out, adapters: adapters.length, how, tensors, leftOut };
  }
  const options: CombineOptions = {
    weights,
    how,
    density,
    majority_sign_method: majoritySignMethod ?? 'total',
    seed,
    ...(svdRank !== undefined && { svd_rank: svdRank }),
  };
  return { out, adapters: adapters.length, how, ...combineAdapters(adapters, out, options), leftOut };
}
