let last: Promise<unknown> = Promise.resolve();

/** Runs work in the engine thread after all work that was given before: one thing at a time uses the engine. */
export function inTurn<T>(work: () => T | Promise<T>): Promise<T> {
  const result = last.then(work);
  last = result.catch(() => {});
  return result;
}
