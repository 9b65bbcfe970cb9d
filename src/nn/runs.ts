/** Which adapter each part of a pass uses, where adapters of several requests share a batch. */

/** Consecutive packed tokens that use one adapter. Offsets are those of the tokens as a layer sees them, virtual ones included. */
export interface Run {
  /** The adapter's number; 0: the base alone. */
  readonly adapter: number;
  readonly start: number;
  /** One behind the last. */
  readonly end: number;
}

/**
 * Returns the runs of rows; neighbours with one adapter are one run.
 * @param rowStarts R + 1 offsets
 * @param adapters the adapter's number for each row; undefined: not served, so no runs
 */
export function runsOf(rowStarts: readonly number[], adapters: readonly number[] | undefined): readonly Run[] {
  if (!adapters) return [];
  const runs: Run[] = [];
  adapters.forEach((adapter, r) => {
    const [start, end] = [rowStarts[r]!, rowStarts[r + 1]!];
    if (start === end) return;
    const last = runs.at(-1);
    if (last?.adapter === adapter) runs[runs.length - 1] = { ...last, end };
    else runs.push({ adapter, start, end });
  });
  return runs;
}
