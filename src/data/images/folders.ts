import { readdirSync, statSync } from 'node:fs';
import { extname, join } from 'node:path';
import type { RawRecord } from '../record.ts';
import { imageError } from './error.ts';

const extensions = ['.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp'];
/** Extensions of images that are not read: a folder that has one would lose it. */
const otherExtensions =
  /^\.(gif|bmp|dib|tiff?|ppm|pgm|pbm|pnm|avif|avifs|hei[cf]|jxl|jp2|j2k|svg|ico|tga|psd|exr|hdr)$/i;
const isHidden = (name: string) => /^\.|^(__MACOSX|Thumbs\.db|desktop\.ini)$/i.test(name);

/**
 * The images of a directory with one folder for each label: records `{ image: path, label }`, sorted by label and file name.
 * @param note is told which files are no images
 * @throws GraftError 'input' for a directory without such folders, for a folder without images, and for images of a format that
 *   is not read
 */
export function imageRecords(dir: string, note: (text: string) => void = () => {}): RawRecord[] {
  const names = readdirSync(dir).filter((name) => !isHidden(name));
  const isFolder = (...path: string[]) => statSync(join(...path)).isDirectory();
  const folders = names.filter((name) => isFolder(dir, name)).sort();
  const inFolders = folders.map((label) => ({
    label,
    names: readdirSync(join(dir, label))
      .filter((name) => !isHidden(name))
      .sort(),
  }));
  const all = [
    ...names.filter((name) => !folders.includes(name)),
    ...inFolders.flatMap(({ label, names }) => names.map((name) => join(label, name))),
  ];
  const firstOf = (paths: readonly string[]) =>
    paths.slice(0, 5).join(', ') + (paths.length > 5 ? ` and ${paths.length - 5} more` : '');
  const unread = all.filter((path) => otherExtensions.test(extname(path)));
  if (unread.length > 0) {
    const kinds = [...new Set(unread.map((path) => extname(path).toLowerCase()))].join(', ');
    throw imageError(`images in the formats ${kinds} are not read: ${firstOf(unread)}`, dir, 'Convert them to PNG');
  }
  const isImage = (path: string) => extensions.includes(extname(path).toLowerCase());
  const labelled = inFolders.map(({ label, names }) => ({ label, images: names.filter(isImage) }));
  const records = labelled.flatMap(({ label, images }) =>
    images.map((name) => ({ value: { image: join(dir, label, name), label }, place: join(dir, label, name) })),
  );
  if (records.length === 0) {
    const split = inFolders.find(({ label, names }) => names.some((name) => isFolder(dir, label, name)))?.label;
    throw imageError(
      `none of its folders contains images (${extensions.join(', ')})`,
      dir,
      split === undefined
        ? 'Put the images of each label in a folder named after the label'
        : `Name the folder of one split: ${join(dir, split)}`,
    );
  }
  const empty = labelled.filter(({ images }) => images.length === 0).map(({ label }) => label);
  if (empty.length > 0)
    throw imageError(
      `these folders contain no images, and a label would be missing: ${firstOf(empty)}`,
      dir,
      'Put images in them, or move them away',
    );
  const unlabelled = all.filter((path) => isImage(path) && !path.includes('/'));
  if (unlabelled.length > 0)
    throw imageError(`these images are in no folder of a label: ${firstOf(unlabelled)}`, dir, 'Move them into one');
  const others = all.filter((path) => !isImage(path));
  if (others.length > 0) note(`${dir}: not images, and not read: ${firstOf(others)}`);
  return records;
}
