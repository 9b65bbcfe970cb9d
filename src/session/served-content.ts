import type { ResidentAdapter } from '../adapters/index.ts';

/** One content of an adapter: a new one, under another number, takes its place when the files change. */
export interface Served {
  readonly name: string;
  readonly dir: string;
  /** Its number in runs and batch keys. */
  readonly number: number;
  /** The state of its files when they were last read; undefined before. */
  files: string | undefined;
  /** Another number for each other state of files. */
  content: number;
  /** Whether it stays in memory once it is there. */
  readonly pinned: boolean;
  resident: ResidentAdapter | undefined;
  loading: Promise<void> | undefined;
  /** Requests that use it, also in mixtures. */
  users: number;
}

/** An adapter of which nothing has been read. */
export const unread = (name: string, dir: string, number: number, pinned: boolean): Served => ({
  name,
  dir,
  number,
  pinned,
  files: undefined,
  content: 0,
  resident: undefined,
  loading: undefined,
  users: 0,
});
