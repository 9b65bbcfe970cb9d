/** Work in steps, between which a thread may do something else. */
export type Steps<T> = Generator<undefined, T>;

/** Takes all steps at once. */
export function complete<T>(steps: Steps<T>): T {
  let step = steps.next();
  while (!step.done) step = steps.next();
  return step.value;
}
