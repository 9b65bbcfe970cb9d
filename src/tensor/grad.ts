import { currentEngine } from '../engine/index.ts';

/** Runs `body` without recording gradients (evaluation, generation, updates of parameters). */
export function noGrad<T>(body: () => T): T {
  return withGrad(false, body);
}

/** Runs `body` with gradients recorded or not, and restores what was before. */
export function withGrad<T>(enabled: boolean, body: () => T): T {
  const { native } = currentEngine();
  const before = native.setGradEnabled(enabled);
  try {
    return body();
  } finally {
    native.setGradEnabled(before);
  }
}
