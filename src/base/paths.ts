import { homedir } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';
import { GraftError } from './errors.ts';

/** The root of the checkout or of the installed package: the directory that contains `native/`. */
export const packageRoot = resolve(import.meta.dirname, '..', '..');

/**
 * Returns a path in the user's cache of LibTorch, the built addon and downloaded models: below `GRAFT_CACHE`, else
 * `$XDG_CACHE_HOME/graft`, else `~/.cache/graft`. An empty variable counts as unset, as the XDG specification says.
 * @throws GraftError 'environment' where the cache would be in the current directory: a relative path, or no home directory
 */
export function cacheDir(...parts: string[]): string {
  const { GRAFT_CACHE, XDG_CACHE_HOME } = process.env;
  if (GRAFT_CACHE) return join(absolute('GRAFT_CACHE', GRAFT_CACHE), ...parts);
  if (XDG_CACHE_HOME) return join(absolute('XDG_CACHE_HOME', XDG_CACHE_HOME), 'graft', ...parts);
  return join(absolute('HOME', home()), '.cache', 'graft', ...parts);
}

/** Returns the user's home directory: `HOME`, else the one in the password database; empty where there is neither. */
function home(): string {
  try {
    return homedir();
  } catch {
    return ''; // a user id without an entry, as in some containers
  }
}

/** Returns the value of an environment variable. @throws GraftError 'environment' where it is not an absolute path */
function absolute(name: string, value: string): string {
  if (isAbsolute(value)) return value;
  const problem = value === '' ? `${name} is not set, or empty` : `${name} is a relative path, ${value}`;
  throw new GraftError(
    'environment',
    `${problem}, so the cache of downloads and builds would be in the current directory`,
    {
      place: name,
      hint: 'Set GRAFT_CACHE to the absolute path of a directory',
    },
  );
}
