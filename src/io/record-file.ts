import { closeSync, fstatSync, ftruncateSync, openSync, readSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { fileError, makeDirectory } from '../base/index.ts';

/** First bytes of the file; the digest of what it belongs to follows. */
const magic = Buffer.from('GRAFTREC');
const digestBytes = 16;
const fileHeader = magic.length + digestBytes;
/** Before each record: its number, its length in bytes, the CRC-32 of both, and the CRC-32 of its bytes; 32 bits each, little-endian. */
const recordHeader = 16;

/** Bytes that this process can still write to the disk of a file or directory; 0 where it is gone. */
export function freeDisk(path: string): number {
  try {
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

/**
 * A file of numbered records that are appended, each with a checksum: a store of values that can be computed again. What a killed
 * process, a full disk or a power cut leaves of a record is never read as one.
 */
export class RecordFile implements Disposable {
  readonly path: string;
  /** Whether there was a file that belongs to something else. */
  readonly replaced: boolean;
  readonly #places = new Map<number, { readonly at: number; readonly length: number; readonly crc: number }>();
  #fd: number | undefined;
  #size = fileHeader;

  /** Returns how large a file with records of these lengths is, in bytes. */
  static sizeOf(lengths: readonly number[]): number {
    return lengths.reduce((sum, length) => sum + recordHeader + length, fileHeader);
  }

  /**
   * Opens the file, or creates it; one that belongs to something else begins anew.
   * @param digest 16 hexadecimal digits of what the records belong to
   * @throws GraftError `environment` for a full disk or missing rights
   */
  constructor(path: string, digest: string) {
    this.path = path;
    const header = Buffer.concat([magic, Buffer.from(digest.padEnd(digestBytes).slice(0, digestBytes))]);
    try {
      makeDirectory(dirname(path));
      this.#fd = openSync(path, 'a+');
      const { size } = fstatSync(this.#fd);
      const found = Buffer.alloc(fileHeader);
      readSync(this.#fd, found, 0, fileHeader, 0);
      this.replaced = size >= fileHeader && !found.equals(header);
      if (found.equals(header)) this.#scan(size);
      else {
        ftruncateSync(this.#fd);
        this.#write(header);
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw fileError(error, path, 'written');
    }
  }

  /** Finds the whole records, and removes what stands behind the last one. */
  #scan(size: number): void {
    const header = Buffer.alloc(recordHeader);
    for (;;) {
      if (readSync(this.#fd!, header, 0, recordHeader, this.#size) < recordHeader) break;
      const [number, length, check, crc] = [0, 4, 8, 12].map((at) => header.readUInt32LE(at)) as [
        number,
        number,
        number,
        number,
      ];
      const at = this.#size + recordHeader;
      if (crc32(header.subarray(0, 8)) !== check || at + length > size) break;
      this.#places.set(number, { at, length, crc });
      this.#size = at + length;
    }
    ftruncateSync(this.#fd!, this.#size);
  }

  #write(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.byteLength; ) done += writeSync(this.#fd!, bytes, done);
  }

  /** How many records there are. */
  get count(): number {
    return this.#places.size;
  }

  /** Bytes of the file. */
  get size(): number {
    return this.#size;
  }

  /** Bytes of the file with one more record of this length. */
  sizeWith(length: number): number {
    return this.#size + recordHeader + length;
  }

  /** Fills `into` with the record; false where there is none of this length, or its bytes cannot be read or are damaged. */
  read(number: number, into: Uint8Array): boolean {
    const place = this.#places.get(number);
    if (!place || place.length !== into.byteLength) return false;
    try {
      for (let done = 0; done < place.length; ) {
        const count = readSync(this.#fd!, into, done, place.length - done, place.at + done);
        if (count === 0) return false;
        done += count;
      }
    } catch {
      return false;
    }
    return crc32(into) === place.crc;
  }

  /**
   * Appends a record; of two with one number the later counts.
   * @throws GraftError `environment` for a full disk; the file is then as before
   */
  append(number: number, bytes: Uint8Array): void {
    const header = Buffer.alloc(recordHeader);
    const crc = crc32(bytes);
    header.writeUInt32LE(number, 0);
    header.writeUInt32LE(bytes.byteLength, 4);
    header.writeUInt32LE(crc32(header.subarray(0, 8)), 8);
    header.writeUInt32LE(crc, 12);
    try {
      this.#write(header);
      this.#write(bytes);
    } catch (error) {
      ftruncateSync(this.#fd!, this.#size);
      throw fileError(error, this.path, 'written');
    }
    this.#places.set(number, { at: this.#size + recordHeader, length: bytes.byteLength, crc });
    this.#size += recordHeader + bytes.byteLength;
  }

  /** Closes the file and deletes it, where the disk allows that. */
  remove(): void {
    this[Symbol.dispose]();
    try {
      rmSync(this.path, { force: true });
    } catch {
      // A disk that has become read-only: what writes to it next says so.
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
    this.#places.clear();
  }
}
