import { currentEngine } from '../engine/index.ts';

let enabled = true;

/** Runs `body` without recording gradients (evaluation, generation, updates of parameters). Dropout is off inside. */
export function noGrad<T>(body: () => T): T {
  return withGrad(false, body);
}

/** Runs `body` with gradients recorded or not, and restores what was before. */
export function withGrad<T>(on: boolean, body: () => T): T {
  const { native } = currentEngine();
  const before = native.setGradEnabled(on);
  const beforeHere = enabled;
  enabled = on;
  try {
    return body();
  } finally {
    enabled = beforeHere;
    native.setGradEnabled(before);
  }
}

/** Whether gradients are being recorded: then, and only then, a model is training. */
export const gradEnabled = (): boolean => enabled;
