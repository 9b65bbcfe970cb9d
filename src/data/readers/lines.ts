/** The bytes, text and lines of a data file, which may be compressed. */
import { createReadStream } from 'node:fs';
import type { Transform } from 'node:stream';
// Not imported by name: where Node.js is too old to have it, node-version.ts is to say so.
import zlib from 'node:zlib';
import { GraftError } from '../../base/index.ts';

/** Decompression by the last extension of a file's name. */
const decompressions: Readonly<Record<string, () => Transform>> = {
  '.gz': () => zlib.createGunzip(),
  '.zst': () => zlib.createZstdDecompress(),
};

/** Extensions of compressed files. */
export const compressedExtensions = Object.keys(decompressions);

const decompressionOf = (file: string) =>
  Object.entries(decompressions).find(([extension]) => file.toLowerCase().endsWith(extension))?.[1];

/** The name of a file without the extension of its compression. */
export const uncompressedName = (file: string): string =>
  compressedExtensions.reduce((name, extension) => name.replace(new RegExp(`\\${extension}$`, 'i'), ''), file);

async function* chunksOf(file: string): AsyncGenerator<Buffer> {
  const stored = createReadStream(file);
  const decompress = decompressionOf(file)?.();
  if (!decompress) return yield* stored as AsyncIterable<Buffer>;
  stored.on('error', (error) => decompress.destroy(error));
  try {
    yield* stored.pipe(decompress) as AsyncIterable<Buffer>;
  } finally {
    stored.destroy();
  }
}

/** The lines of a file without their line feeds. Other line separators do not end a line, since JSON strings may contain them. */
export async function* linesOf(file: string): AsyncGenerator<Buffer> {
  let line: Buffer[] = []; // the chunks of the line so far
  for await (const chunk of chunksOf(file)) {
    let start = 0;
    for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, start)) {
      line.push(chunk.subarray(start, at));
      yield line.length === 1 ? line[0]! : Buffer.concat(line);
      line = [];
      start = at + 1;
    }
    if (start < chunk.length) line.push(chunk.subarray(start));
  }
  if (line.length > 0) yield Buffer.concat(line);
}

/** Decodes UTF-8, without a byte order mark, and refuses what is not UTF-8. */
export const utf8 = new TextDecoder('utf-8', { fatal: true });

/** The text of a file, without a byte order mark. @throws GraftError 'input' where it is not valid UTF-8 */
export async function textOf(file: string): Promise<string> {
  const bytes = Buffer.concat(await Array.fromAsync(chunksOf(file)));
  try {
    return utf8.decode(bytes);
  } catch (cause) {
    throw new GraftError('input', 'the file is not valid UTF-8', { place: file, hint: 'Save it as UTF-8', cause });
  }
}
