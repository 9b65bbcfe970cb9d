import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { readAdapterConfig, storedTensors } from '../../adapters/index.ts';
import { GraftError } from '../../base/index.ts';
import type { AllowedFolders } from './allowed.ts';

/** What a folder tells of its sub-directories. */
export interface FolderChanges {
  /** A complete adapter is there: a new one, or one that was written again. */
  onAdapter(name: string, dir: string, isNew: boolean): Promise<void>;
  onRemoved(name: string): Promise<void>;
  log(line: string): void;
}

/** Names that are being written: Graft, Hugging Face and rsync rename these when they are complete. */
const unfinished = /^\.|\.(part|tmp|partial|incomplete)$|~$/;

/** Files that were written this long ago are complete, when the server starts. */
const settledMs = 2000;

/** When the server starts and finds files that were written just now, it looks again after so long. */
const secondLookMs = 500;

interface Seen {
  /** Names, sizes and times of the files. */
  readonly state: string;
  /** Of the file that was written last. */
  readonly newest: number;
  /** Whether it was told of, or refused, in this state. */
  readonly handled: boolean;
  readonly accepted: boolean;
}

/**
 * A folder whose sub-directories are adapters, looked at again and again. A sub-directory counts once two looks find it the same, and
 * its files are whole.
 */
export class AdapterFolder {
  readonly #dir: string;
  readonly #allowed: AllowedFolders;
  readonly #changes: FolderChanges;
  readonly #seen = new Map<string, Seen>();
  #timer: NodeJS.Timeout | undefined;
  #looking: Promise<void> | undefined;
  #closed = false;

  constructor(dir: string, allowed: AllowedFolders, changes: FolderChanges) {
    this.#dir = dir;
    this.#allowed = allowed;
    this.#changes = changes;
  }

  /** Looks, and then again every `seconds`. Files that were not written just now count at once. */
  async start(seconds: number): Promise<void> {
    await this.look(Date.now() - settledMs);
    if ([...this.#seen.values()].some(({ handled }) => !handled)) {
      await new Promise((resolve) => setTimeout(resolve, secondLookMs));
      await this.look();
    }
    const next = () => {
      this.#timer = setTimeout(async () => {
        await this.look().catch((error) => this.#changes.log(`${this.#dir}: ${(error as Error).message}`));
        if (!this.#closed) next();
      }, seconds * 1000);
      this.#timer.unref();
    };
    next();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.#looking?.catch(() => {});
  }

  /** Looks once. @param settledBefore files written before this time count as complete at the first look */
  look(settledBefore = Number.NEGATIVE_INFINITY): Promise<void> {
    this.#looking = (this.#looking ?? Promise.resolve()).catch(() => {}).then(() => this.#look(settledBefore));
    return this.#looking;
  }

  async #look(settledBefore: number): Promise<void> {
    const entries = await readdir(this.#dir, { withFileTypes: true });
    const names = new Set<string>();
    for (const entry of entries) {
      if (unfinished.test(entry.name) || !(entry.isDirectory() || entry.isSymbolicLink())) continue;
      const now = await stateOf(join(this.#dir, entry.name));
      if (!now) continue;
      names.add(entry.name);
      const before = this.#seen.get(entry.name);
      if (before?.state !== now.state) {
        // A first look counts only for files that have been left alone for a while.
        const seen = { ...now, handled: false, accepted: before?.accepted ?? false };
        this.#seen.set(entry.name, seen);
        if (now.newest < settledBefore) await this.#take(entry.name, seen);
      } else if (!before.handled) await this.#take(entry.name, before);
    }
    for (const [name, { accepted }] of this.#seen) {
      if (names.has(name)) continue;
      this.#seen.delete(name);
      if (accepted) await this.#changes.onRemoved(name);
    }
  }

  async #take(name: string, seen: Seen): Promise<void> {
    const dir = join(this.#dir, name);
    try {
      const link = this.#allowed.linkOut(dir);
      if (link !== undefined)
        throw new GraftError('input', `a link leads out of the folders that adapters may be in: ${link}`);
      readAdapterConfig(dir);
      storedTensors(dir); // the headers, whose lengths have to be the files'
      await this.#changes.onAdapter(name, dir, !seen.accepted);
      this.#seen.set(name, { ...seen, handled: true, accepted: true });
    } catch (error) {
      this.#changes.log(
        `the adapter '${name}' is not served${seen.accepted ? ' as it is now' : ''}: ${(error as Error).message}`,
      );
      this.#seen.set(name, { ...seen, handled: true });
    }
  }
}

/** Names, sizes and times of the files in a directory and its folders; undefined for one without files. */
async function stateOf(dir: string): Promise<Pick<Seen, 'state' | 'newest'> | undefined> {
  try {
    const names = (await readdir(dir, { recursive: true })).sort();
    let newest = 0;
    const files: unknown[] = [];
    for (const name of names) {
      const { size, mtimeMs, ctimeMs, ino } = await stat(join(dir, name));
      newest = Math.max(newest, mtimeMs, ctimeMs);
      files.push([name, size, mtimeMs, ino]);
    }
    return files.length > 0 ? { state: JSON.stringify(files), newest } : undefined;
  } catch {
    return undefined; // it is being written or removed: the next look tells
  }
}
