/** Data sets on the hub: their files of rows, in the user's cache. */
// Not imported by name, for matchesGlob: where Node.js is too old to have it, node-version.ts is to say so.
import paths, { extname, join } from 'node:path';
import { cacheDir, GraftError } from '../base/index.ts';
import { completeFiles, downloadSnapshot } from './hub.ts';
import { HubClient } from './hub-client.ts';

/** The revision of a data set that holds its rows as Parquet, which the hub makes of other files. */
const converted = 'refs/convert/parquet';

const SPEC = /^hub:(?<repo>[\w][\w.-]*\/[\w][\w.-]*)(?:@(?<revision>[^\s]+?))?(?:\/\/?(?<files>[^@\s]+))?$/;

/** Whether the name of rows is that of a data set on the hub. */
export const isDataset = (name: string): boolean => name.startsWith('hub:');

/**
 * Returns the local files of a data set on the hub, `hub:owner/name`, `hub:owner/name@revision` or `hub:owner/name/FILES`, where
 * FILES is a path or a pattern in it (`data/test-*`). They are downloaded into the user's cache unless they are there. Without FILES
 * they are those of the split `train`, where there are several splits; a data set without rows in a format that is read has them as
 * Parquet under the revision that the hub makes.
 * @param extensions of files that hold rows
 * @param note is told which of the files are read
 * @throws GraftError 'usage' for a wrong name, and for a data set of several configurations; what `HubClient` throws
 */
export async function resolveDataset(
  spec: string,
  extensions: readonly string[],
  note: (text: string) => void,
  options: { readonly endpoint?: string; readonly token?: string } = {},
): Promise<string[]> {
  const groups = SPEC.exec(spec)?.groups;
  if (!groups?.repo || spec.split(/[/@]/).includes('..'))
    throw new GraftError('usage', 'this is not the name of a data set', {
      place: spec,
      hint: 'Write hub:owner/name, hub:owner/name@revision or hub:owner/name/data/test-*.parquet',
    });
  const { repo, revision = 'main', files: pattern } = groups as { repo: string; revision?: string; files?: string };
  const repoDir = cacheDir('hub', `datasets--${repo.replace('/', '--')}`);
  const what = pattern ?? 'train';
  for (const name of pattern || groups.revision ? [revision] : [revision, converted]) {
    const cached = completeFiles(repoDir, name, what);
    if (!cached) continue;
    if (!pattern && cached.names.some((path) => splitOf(path) === 'train')) note(readNote(cached.names));
    return cached.names.map((path) => join(cached.snapshot, path));
  }
  const hub = await HubClient.connect(repo, { ...options, kind: 'dataset' });
  const find = async (name: string) => {
    const commit = await hub.commit(name);
    const all = (await hub.list(commit)).filter(({ path }) => isRows(path, extensions));
    return { name, commit, all };
  };
  let found = await find(revision);
  if (found.all.length === 0 && !pattern && !groups.revision) found = await find(converted);
  const { name, commit, all } = found;
  const names = all.map(({ path }) => path).sort();
  const selected = pattern
    ? names.filter((path) => path === pattern || paths.matchesGlob(path, pattern))
    : trainFiles(names, spec);
  if (selected.length === 0) {
    throw new GraftError('usage', 'the data set has no such files of rows', {
      place: spec,
      hint: `It has ${names.slice(0, 8).join(', ') || 'none in a format that is read'}`,
    });
  }
  if (selected.length < names.length) note(readNote(selected));
  await downloadSnapshot(hub, repoDir, commit, {
    files: all.filter(({ path }) => selected.includes(path)),
    what,
    revision: name,
  });
  return selected.map((path) => join(repoDir, commit, path));
}

const isRows = (path: string, extensions: readonly string[]) =>
  extensions.includes(extname(path.replace(/\.(gz|zst)$/, ''))) && !/(^|\/)(\.|dataset_infos?\.json$)/.test(path);

const readNote = (names: readonly string[]) =>
  `of its files, these are read: ${names.slice(0, 3).join(', ')}${names.length > 3 ? ` and ${names.length - 3} more` : ''}`;

const splitOf = (path: string) =>
  /(^|[\W_])(train|training|validation|valid|val|dev|test|eval)(?=$|[\W_])/i.exec(path)?.[2]?.toLowerCase();

/** The files of the split `train`, or all where no name says of which split it is. @throws GraftError 'usage' for several configurations */
function trainFiles(paths: readonly string[], spec: string): string[] {
  const splits = new Set(paths.map(splitOf));
  const files = splits.size === 1 ? [...paths] : paths.filter((path) => splitOf(path) === 'train');
  const folders = new Set(files.map((path) => path.slice(0, path.lastIndexOf('/') + 1)));
  if (files.length > 0 && folders.size === 1) return files;
  const choices = [...(files.length > 0 ? folders : new Set(paths))].slice(0, 8).join(', ');
  throw new GraftError('usage', 'the data set has several splits or configurations', {
    place: spec,
    hint: `Name its files, as ${spec}/PATTERN; it has ${choices}`,
  });
}
