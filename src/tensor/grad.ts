import { currentEngine } from '../engine/index.ts';

let enabled = true;

/** Returns `body()`, run without recording gradients (evaluation, generation, updates of parameters). Dropout is off inside. */
export function noGrad<T>(body: () => T): T {
  return withGrad(false, body);
}

/** Returns `body()`, run with gradients recorded or not; the mode is restored afterwards. */
export function withGrad<T>(isRecorded: boolean, body: () => T): T {
  const { native } = currentEngine();
  const nativeBefore = native.setGradEnabled(isRecorded);
  const enabledBefore = enabled;
  enabled = isRecorded;
  try {
    return body();
  } finally {
    enabled = enabledBefore;
    native.setGradEnabled(nativeBefore);
  }
}

/** Returns whether gradients are recorded: then, and only then, a model is in training mode. */
export const gradEnabled = (): boolean => enabled;
