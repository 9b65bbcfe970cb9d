import { dealt } from '../distributed/index.ts';
import type { Tensor } from '../tensor/index.ts';

/** The process that updates each parameter, so that each has about as many numbers. */
export function ownersOf(parameters: ReadonlyMap<string, Tensor>, processes: number): ReadonlyMap<Tensor, number> {
  const all = [...parameters.values()];
  const owners = dealt(
    all.map(({ numel }) => numel),
    processes,
  );
  return new Map(all.map((parameter, i) => [parameter, owners[i]!]));
}
