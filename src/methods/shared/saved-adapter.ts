import { GraftError } from '../../base/index.ts';
import type { AttachContext, SavedAdapter } from './method.ts';

/** Returns the saved adapter in `dir`. @throws GraftError 'usage' where the caller gave no way to read one */
export function readSaved(dir: string, context: AttachContext): SavedAdapter {
  const saved = context.saved?.(dir);
  if (!saved) {
    const problem = 'a saved adapter cannot be read: attach was called without a reader';
    throw new GraftError('usage', problem, { place: dir, hint: 'Pass savedAdapters(model) as the context' });
  }
  return saved;
}
