import { lstatSync, readdirSync, realpathSync, statSync } from 'node:fs';
import { isAbsolute, join, relative, resolve, sep } from 'node:path';
import { RequestError } from '../errors.ts';

/** Files of an adapter's directory, folders in it included, at most. */
const maxFiles = 1000;

const isInside = (root: string, path: string): boolean => {
  const way = relative(root, path);
  return way !== '' && way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way);
};

const refused = (problem: string) =>
  new RequestError(400, `'lora_path' ${problem}.`, { param: 'lora_path', code: 'path_not_allowed' });

/** The folders that adapters may be loaded from. */
export class AllowedFolders {
  readonly #roots: readonly string[];

  /** @param folders the first is where relative paths begin */
  constructor(folders: readonly string[]) {
    this.#roots = folders.map((folder) => realpathSync(folder));
  }

  /**
   * The directory that a path of a request names, links resolved.
   * @throws RequestError 400 for one outside of the folders, also by a link of its files; whether it exists is not told
   */
  dirOf(path: string): string {
    const [first] = this.#roots;
    if (first === undefined) throw refused('cannot be used: this server loads adapters from no folder');
    if (path.includes('\0') || path.split(/[/\\]/).includes('..')) throw refused("must not contain '..'");
    const outside = refused('must be a directory inside a folder that this server may load adapters from');
    let dir: string;
    try {
      dir = realpathSync(resolve(first, path));
      if (!this.#holds(dir) || !statSync(dir).isDirectory() || this.linkOut(dir) !== undefined) throw outside;
    } catch {
      throw outside;
    }
    return dir;
  }

  #holds(path: string): boolean {
    return this.#roots.some((root) => isInside(root, path));
  }

  /** The first entry of a directory that is a link out of the folders, or no file; undefined where there is none. */
  linkOut(dir: string): string | undefined {
    if (!this.#holds(realpathSync(dir))) return dir;
    const names = readdirSync(dir, { recursive: true, encoding: 'utf8' });
    if (names.length > maxFiles) return dir;
    return names.find((name) => {
      const path = join(dir, name);
      const stat = lstatSync(path);
      if (stat.isSymbolicLink()) return !this.#holds(realpathSync(path));
      return !stat.isFile() && !stat.isDirectory();
    });
  }
}
