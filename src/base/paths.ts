import { homedir } from 'node:os';
import { join, resolve } from 'node:path';

/** Root of the checkout or of the installed package: the folder that holds `native/`. */
export const packageRoot = resolve(import.meta.dirname, '..', '..');

/**
 * Per-user cache for LibTorch, the built addon and downloaded models. `GRAFT_CACHE` overrides it;
 * otherwise `$XDG_CACHE_HOME/graft` or `~/.cache/graft`.
 */
export function cacheDir(...parts: string[]): string {
  const root = process.env.GRAFT_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'graft');
  return join(root, ...parts);
}
