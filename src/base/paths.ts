import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** The root of the checkout or of the installed package: the directory that contains `native/`. */
export const packageRoot = resolve(import.meta.dirname, '..', '..');

/**
 * Returns a path in the user's cache of LibTorch, the built addon and downloaded models: below `GRAFT_CACHE`, else
 * `$XDG_CACHE_HOME/graft`, else `~/.cache/graft`.
 */
export function cacheDir(...parts: string[]): string {
  const root = process.env.GRAFT_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'graft');
  return join(root, ...parts);
}
