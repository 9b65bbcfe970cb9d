/** The files that the name of a source stands for: a file, a folder of shards, a pattern, or a data set on the hub. */
// Not imported by name, for globSync: where Node.js is too old to have it, node-version.ts is to say so.
import fs, { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, extname, join } from 'node:path';
import { GraftError, nearestPath } from '../../base/index.ts';
import { isDataset, resolveDataset } from '../../io/index.ts';
import { uncompressedName } from './lines.ts';

/** The extension that says how a file is read, without that of its compression. */
export const formatExtension = (file: string): string => extname(uncompressedName(file)).toLowerCase();

/** What of a folder says nothing about its rows. */
const notRows = /^\.|^(README|LICEN[CS]E|NOTICE)\b|^(dataset_infos?|state)\.json$|^Thumbs\.db$|^desktop\.ini$/i;
/** The split of a data set in the name of a file or folder. */
const split = /(^|[\W_])(train|training|validation|valid|val|dev|test|eval)(?=$|[\W_])/i;

/** Files to read, or a folder of images. */
export type Source = { readonly files: readonly string[] } | { readonly imageFolder: string };

/**
 * The files of a source, in the order of their names.
 * @param supported extensions of files that have a reader
 * @throws GraftError 'usage' where there are none, or where a folder holds several splits
 */
export async function sourceOf(
  name: string,
  supported: readonly string[],
  note: (text: string) => void,
): Promise<Source> {
  if (isDataset(name)) return { files: await resolveDataset(name, supported, note) };
  const stat = statSync(name, { throwIfNoEntry: false });
  if (stat?.isDirectory()) return folderSource(name, supported, note);
  if (stat) return { files: [name] };
  if (/[*?[{]/.test(name)) {
    const files = fs
      .globSync(name)
      .filter((path) => statSync(path).isFile())
      .sort();
    if (files.length > 0) return { files };
    throw new GraftError('usage', 'no file matches this pattern', { place: name, hint: 'Check the path' });
  }
  const near = nearestPath(name);
  throw new GraftError('usage', 'the data file was not found', {
    place: name,
    hint: near ? `Did you mean ${near}?` : 'Check the path',
  });
}

/** The paths that a name stands for on this disk: itself, or what its pattern matches; none for a data set on the hub. */
export const localPaths = (name: string): string[] =>
  isDataset(name) ? [] : existsSync(name) ? [name] : fs.globSync(name).sort();

/** The shards in a folder; a folder without any is one of images. */
function folderSource(dir: string, supported: readonly string[], note: (text: string) => void): Source {
  const names = readdirSync(dir)
    .filter((name) => !notRows.test(name) && statSync(join(dir, name)).isFile())
    .sort();
  if (names.some((name) => /\.arrow$/.test(name)))
    throw new GraftError('usage', 'this is a data set that save_to_disk wrote, and files of Arrow are not read', {
      place: dir,
      hint: 'Write it with to_parquet or to_json instead',
    });
  const shards = names.filter((name) => supported.includes(formatExtension(name)));
  if (shards.length === 0) return { imageFolder: dir };
  const others = names.filter((name) => !shards.includes(name));
  if (others.length > 0) note(`not read: ${others.slice(0, 5).join(', ')}${others.length > 5 ? ' and more' : ''}`);
  requireOneKind(shards, dir, formatExtension, 'formats', 'Name the files that you mean, as a list or as a pattern');
  requireOneSplit(shards, dir);
  return { files: shards.map((name) => join(dir, name)) };
}

/** @throws GraftError 'usage' where the names of files say that they are several splits of a data set */
export const requireOneSplit = (files: readonly string[], place: string): void =>
  requireOneKind(
    files,
    place,
    (file) => split.exec(basename(file))?.[2]?.toLowerCase() ?? '',
    'splits',
    `Name the files of one: ${place.replace(/\/$/, '')}/train*`,
  );

function requireOneKind(
  files: readonly string[],
  place: string,
  kindOf: (file: string) => string,
  kinds: string,
  hint: string,
): void {
  const found = new Set(files.map(kindOf));
  if (found.size <= 1) return;
  const named = [...found].map((kind) => kind || 'no name').join(', ');
  throw new GraftError('usage', `this has files of several ${kinds}: ${named}`, { place, hint });
}
