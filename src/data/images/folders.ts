import { readdirSync, statSync } from 'node:fs';
import { extname, join } from 'node:path';
import type { RawRecord } from '../record.ts';
import { imageError } from './error.ts';

const extensions = ['.png', '.jpg', '.jpeg'];

/**
 * The images of a directory with one folder for each label: records `{ image: path, label }`, sorted by label and file name.
 * @throws GraftError 'input' for a directory without such folders
 */
export function imageRecords(dir: string): RawRecord[] {
  const folders = readdirSync(dir).filter((name) => statSync(join(dir, name)).isDirectory());
  const records = folders.sort().flatMap((label) =>
    readdirSync(join(dir, label))
      .filter((name) => extensions.includes(extname(name).toLowerCase()))
      .sort()
      .map((name) => ({ value: { image: join(dir, label, name), label }, place: join(dir, label, name) })),
  );
  if (records.length > 0) return records;
  throw imageError(
    `none of its folders contains images (${extensions.join(', ')})`,
    dir,
    'Put the images of each label in a folder named after the label',
  );
}
