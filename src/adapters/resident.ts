/** Adapters that are loaded to be served beside others, on one model. */
import { complete, type Steps } from '../base/index.ts';
import type { AttachedAdapter, Banks, FactorType } from '../methods/index.ts';
import type { Model } from '../nn/index.ts';
import { headFits, loadingAdapter, storedTensors, switchedOff } from './load.ts';

/** An adapter in memory, which rows name by its number. */
export interface ResidentAdapter {
  /** By which rows name it (`PackedTokens.adapters`). */
  readonly number: number;
  /**
   * Where no bank can hold it: the adapter, attached and switched off, and why. Rows that use it need a batch of their own, in which it
   * is switched on.
   */
  readonly alone?: { readonly adapter: AttachedAdapter; readonly reason: string };
  /** Bytes of its tensors in memory. */
  readonly bytes: number;
  /** Takes it out of memory. */
  remove(): void;
}

/**
 * Loads a saved adapter into the banks of a model, under a number.
 * @throws GraftError as `loadAdapter` does; 'usage' for a number that is taken
 */
export const loadResident = (model: Model, banks: Banks, dir: string, number: number): ResidentAdapter =>
  complete(loadingResident(model, banks, dir, number));

/** The first steps of loading, which read the config and the header of the file, and none of its values. */
export const stepsWithoutValues = 2;

/** As `loadResident`, in steps, between which passes may run that do not use the adapter. */
export function* loadingResident(model: Model, banks: Banks, dir: string, number: number): Steps<ResidentAdapter> {
  const head = headFits(model, dir) ? 'file' : 'own';
  yield;
  const adapter = yield* loadingAdapter(model, dir, head);
  let loaded = false;
  try {
    const reason = yield* switchedOff(adapter, banks.add(number, adapter, factorTypeOf(dir)));
    loaded = true;
    if (reason === undefined) return { number, bytes: banks.bytesOf(number), remove: () => banks.remove(number) };
    adapter.enabled = false;
    const bytes = [...adapter.parameters.values()].reduce((sum, { nbytes }) => sum + nbytes, 0);
    return { number, bytes, alone: { adapter, reason }, remove: () => adapter.detach() };
  } finally {
    if (!loaded) adapter.detach();
  }
}

/** The type of the file's numbers, where they all have one of half the size: factors are then held as they are stored. */
function factorTypeOf(dir: string): FactorType {
  const [format, other] = new Set(storedTensors(dir).map((entry) => entry.format));
  return other === undefined && (format === 'float16' || format === 'bfloat16') ? format : 'float32';
}
