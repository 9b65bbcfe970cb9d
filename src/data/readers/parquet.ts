import { setImmediate } from 'node:timers/promises';
// Not imported by name: where Node.js is too old to have it, node-version.ts is to say so.
import zlib from 'node:zlib';
import type { AsyncBuffer, Compressors } from 'hyparquet';
import { GraftError } from '../../base/index.ts';
import { checkFooter, checkPages } from './parquet-pages.ts';
import { type Reader, requireDistinct, toRecord } from './reader.ts';

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Bytes as the text that they are, or as bytes: Parquet files need not say which of the two a column holds. */
function textOrBytes(bytes: Uint8Array): string | Uint8Array {
  try {
    return utf8.decode(bytes);
  } catch {
    return bytes;
  }
}

/** Whether a value is an image as the datasets library stores it: the bytes of its file, and its path or none. */
const isImage = (value: object): value is { bytes: Uint8Array | null } =>
  'bytes' in value && 'path' in value && (value.bytes === null || value.bytes instanceof Uint8Array);

/**
 * The value of a column with typed arrays as lists, and 64-bit integers as numbers where these are exact. Objects in it have no
 * fields that are null: all objects of a column share their fields, so null is how Parquet leaves one out. Bytes stay bytes where
 * they are an image's, or no text.
 */
function plain(value: unknown): unknown {
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Uint8Array) return textOrBytes(value);
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<unknown>, plain);
  if (value === null || typeof value !== 'object' || value instanceof Date) return value;
  const { bytes } = isImage(value) ? value : {};
  return {
    ...Object.fromEntries(
      Object.entries(value).flatMap(([key, item]) => (item === null || item === undefined ? [] : [[key, plain(item)]])),
    ),
    ...(bytes && { bytes: Uint8Array.from(bytes) }), // a copy, without the rest of the file
  };
}

/**
 * Whether bytes are in Hadoop's frames of LZ4, each after its lengths unpacked and packed, big-endian. The package looks for them in everything
 * that is LZ4, and goes round for ever where a length is negative.
 */
function isFramed(input: Uint8Array): boolean {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  let at = 0;
  while (at + 8 < input.length) {
    const [unpacked, packed] = [view.getInt32(at), view.getInt32(at + 4)];
    if (unpacked < 0 || packed <= 0) return false;
    at += 8 + packed;
  }
  return at === input.length;
}

/** Unpacking; of zstd and brotli by Node.js, which is faster and keeps to the stated length, and of nothing by nobody: the package's LZ4 fails there. */
export function unpacking(compressors: Compressors): Compressors {
  const all: Compressors = {
    ...compressors,
    ZSTD: (input, length) => zlib.zstdDecompressSync(input, { maxOutputLength: length }),
    BROTLI: (input, length) => zlib.brotliDecompressSync(input, { maxOutputLength: length }),
    LZ4: (input, length) => (isFramed(input) ? compressors.LZ4 : compressors.LZ4_RAW)!(input, length),
  };
  const entries = Object.entries(all) as [keyof Compressors, NonNullable<Compressors[keyof Compressors]>][];
  return Object.fromEntries(
    entries.map(([name, unpack]) => [
      name,
      (input: Uint8Array, length: number) => (length === 0 ? new Uint8Array() : unpack(input, length)),
    ]),
  );
}

/**
 * Runs `read` on a file. Where one column is damaged, hyparquet leaves the promises of the others behind, and one of these that is
 * rejected would end the process: they are waited for.
 */
async function contained<T>(file: AsyncBuffer, read: (file: AsyncBuffer) => Promise<T>): Promise<T> {
  const pending = new Set<Promise<unknown>>();
  const slice: AsyncBuffer['slice'] = async (start, end) => {
    const bytes = Promise.resolve(file.slice(start, end));
    pending.add(bytes);
    try {
      return await bytes;
    } finally {
      pending.delete(bytes);
    }
  };
  const stray = (reason: unknown) => {
    if (!(reason instanceof Error && reason.stack?.includes('hyparquet'))) throw reason;
  };
  process.on('unhandledRejection', stray);
  try {
    return await read({ byteLength: file.byteLength, slice });
  } finally {
    do {
      await Promise.allSettled(pending);
      await setImmediate();
    } while (pending.size > 0);
    process.off('unhandledRejection', stray);
  }
}

export const parquet: Reader = async (file, limit) => {
  const [{ asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects, parquetSchema }, { compressors }] =
    await Promise.all([import('hyparquet'), import('hyparquet-compressors')]);
  try {
    const stored = await asyncBufferFromFile(file);
    await checkFooter(stored);
    const metadata = await parquetMetadataAsync(stored);
    const schema = parquetSchema(metadata);
    requireDistinct(
      schema.children.map(({ element }) => element.name),
      file,
    );
    const unpack = unpacking(compressors);
    await checkPages(stored, metadata, schema, unpack, limit);
    const rows = await contained(stored, (file) =>
      parquetReadObjects({
        file,
        metadata,
        compressors: unpack,
        utf8: false,
        ...(Number.isFinite(limit) && { rowEnd: limit }),
      }),
    );
    return rows.map((row, i) => {
      const columns = Object.entries(row).map(([name, value]) => [name, plain(value ?? null)]); // a list that is null comes undefined
      return toRecord(Object.fromEntries(columns), `${file}:row ${i + 1}`);
    });
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    throw new GraftError('input', `the Parquet file cannot be read: ${(cause as Error).message}`, {
      place: file,
      cause,
    });
  }
};
