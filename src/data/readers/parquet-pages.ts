/**
 * Checks of what a Parquet file states of itself, made before it is read: the reader makes room for as many values as headers and runs say,
 * whatever the file holds. Layout: parquet.thrift and Encodings.md of apache/parquet-format.
 */
import type { AsyncBuffer, ColumnMetaData, Compressors, FileMetaData, SchemaTree } from 'hyparquet';
import { Thrift, type ThriftStruct } from './thrift.ts';

/** Values that the columns of a file may have together, and further ones for each byte of it: a run of one value takes no room. */
const [baseValues, valuesPerByte] = [2 ** 20, 8];
/** Bytes that a page may have unpacked, and further ones for each byte of it packed. */
const [basePageBytes, pageBytesPerByte] = [2 ** 24, 1000];

/** Numbers of parquet.thrift. */
const pageType = { data: 0, dictionary: 2, dataV2: 3 };
/** The numbers that headers must have: without one, hyparquet reads from no place, for ever. */
const required = { page: [1, 2, 3], data: [1, 2, 3, 4], dictionary: [1, 2], dataV2: [1, 2, 3, 4, 5, 6] };
const encoding = { plainDictionary: 2, rle: 3, rleDictionary: 8 };

/** @throws Error where a list in the footer has more entries than the footer has bytes */
export async function checkFooter(file: AsyncBuffer): Promise<void> {
  const end = file.byteLength - 8;
  if (end < 0) return; // the reader says so
  const length = new DataView(await file.slice(end)).getUint32(0, true);
  if (length <= end) new Thrift(new DataView(await file.slice(end - length, end))).struct();
}

/**
 * Checks the pages of the first `limit` rows.
 * @throws Error for a column with fewer values than there are rows, for runs that are longer than their page, and for more values or
 *   bytes than a file of this size is likely to hold
 */
export async function checkPages(
  file: AsyncBuffer,
  { row_groups: groups }: FileMetaData,
  schema: SchemaTree,
  unpack: Compressors,
  limit: number,
): Promise<void> {
  let left = baseValues + valuesPerByte * file.byteLength;
  let rowsBefore = 0;
  for (const { columns, num_rows: stated } of groups) {
    const groupRows = Math.max(0, Number(stated));
    const rows = Math.min(groupRows, limit - rowsBefore);
    rowsBefore += groupRows;
    if (rows <= 0) continue;
    for (const { meta_data: column } of columns) {
      if (!column) continue; // the reader says so
      const place = `column '${column.path_in_schema.join('.')}'`;
      const start = Number(column.dictionary_page_offset || column.data_page_offset);
      const chunk = await file.slice(start, Math.min(file.byteLength, start + Number(column.total_compressed_size)));
      let values = 0;
      for (const count of valuesOfPages(new Uint8Array(chunk), column, pathTo(schema, column), unpack, rows)) {
        left -= count;
        values += count;
        if (left < 0 || count < 0)
          throw new Error(`${place} states more values than a file of ${file.byteLength} bytes is likely to hold`);
      }
      if (values < rows) throw new Error(`${place} has ${values} values for ${rows} rows`);
    }
  }
}

/** The columns of the schema on the way to one that has values. */
function pathTo(schema: SchemaTree, { path_in_schema: names }: ColumnMetaData): SchemaTree[] {
  const path: SchemaTree[] = [];
  for (const name of names) {
    const next = (path.at(-1) ?? schema).children.find(({ element }) => element.name === name);
    if (!next) throw new Error(`the schema has no column '${names.join('.')}'`);
    path.push(next);
  }
  return path;
}

/** How many values each page of a column's bytes has; told before what is in the page is looked at. */
function* valuesOfPages(
  chunk: Uint8Array,
  { codec, type }: ColumnMetaData,
  path: readonly SchemaTree[],
  unpack: Compressors,
  rows: number,
): Generator<number> {
  const repeated = path.filter(({ element }) => element.repetition_type === 'REPEATED').length;
  const optional = path.filter(({ element }) => element.repetition_type !== 'REQUIRED').length;
  const headers = new Thrift(viewOf(chunk));
  const unpacked = (packed: Uint8Array, size: number): Uint8Array => {
    requireLikelySize(packed.length, size);
    return unpack[codec]?.(packed, size) ?? packed;
  };
  // Where a row is a value, pages after the last row are not read.
  for (let values = 0; headers.at < chunk.length - 1 && (path.length > 1 || repeated > 0 || values < rows); ) {
    const header = headers.struct();
    const { 1: kind, 2: size, 3: packedSize, 5: data, 7: dictionary, 8: dataV2 } = header;
    requireNumbers(header, 'page');
    for (const [name, fields] of Object.entries({ data, dictionary, dataV2 }))
      if (fields !== undefined) requireNumbers(fields as ThriftStruct, name as keyof typeof required);
    const { 1: stated = 0, 2: nulls = 0 } = (data ?? dictionary ?? dataV2 ?? {}) as ThriftStruct;
    const count = Number(stated);
    yield kind === pageType.dictionary ? 0 : count;
    values += kind === pageType.dictionary ? 0 : count;
    const end = headers.at + Number(packedSize);
    if (end < headers.at || end > chunk.length)
      throw new Error(`a page states ${packedSize} bytes, and ends outside of its column`);
    const packed = chunk.subarray(headers.at, end);
    headers.at = end;
    if (kind === pageType.data && data) {
      const page = new Runs(unpacked(packed, Number(size)));
      if (repeated > 0) page.skip(page.length(), bitsFor(repeated), count);
      const present = optional > 0 ? page.skip(page.length(), bitsFor(optional), count, optional) : count;
      checkIndices(page, Number((data as ThriftStruct)[2]), type, present);
    } else if (kind === pageType.dataV2 && dataV2) {
      const { 4: encoded, 5: optionalBytes, 6: repeatedBytes, 7: isPacked = true } = dataV2 as ThriftStruct;
      const levels = new Runs(packed);
      if (repeated > 0) levels.skip(Number(repeatedBytes), bitsFor(repeated), count);
      levels.at = Number(repeatedBytes);
      if (optional > 0) levels.skip(Number(optionalBytes), bitsFor(optional), count);
      const levelBytes = Number(repeatedBytes) + Number(optionalBytes);
      const rest = packed.subarray(levelBytes);
      const page = new Runs(isPacked ? unpacked(rest, Number(size) - levelBytes) : rest);
      checkIndices(page, Number(encoded), type, count - Number(nulls));
    } else if (kind === pageType.dictionary) {
      requireLikelySize(packed.length, Number(size));
      if (count < 0 || count > Number(size)) throw new Error(`a dictionary of ${size} bytes states ${count} values`);
    }
  }
}

/** @throws Error for a header without one of its numbers */
function requireNumbers(header: ThriftStruct, kind: keyof typeof required): void {
  const missing = required[kind].find((field) => typeof header[field] !== 'number');
  if (missing !== undefined) throw new Error(`a page has no number in field ${missing} of its header (${kind})`);
}

function requireLikelySize(packed: number, unpacked: number): void {
  if (unpacked > basePageBytes + pageBytesPerByte * packed)
    throw new Error(`a page of ${packed} bytes states ${unpacked} bytes unpacked`);
}

/** Checks the runs in which a page stores indices into the dictionary, or booleans. */
function checkIndices(page: Runs, encoded: number, type: ColumnMetaData['type'], count: number): void {
  const isDictionary = encoded === encoding.plainDictionary || encoded === encoding.rleDictionary;
  if (!isDictionary && encoded !== encoding.rle) return;
  if (type === 'BOOLEAN') page.skip(page.length(), 1, count);
  else {
    const width = page.byte();
    if (width > 0) page.skip(page.rest, width, count);
  }
}

const bitsFor = (level: number) => 32 - Math.clz32(level);
const viewOf = ({ buffer, byteOffset, length }: Uint8Array) => new DataView(buffer, byteOffset, length);

/** A page whose values stand in runs: a run has its length and one value, or values packed into bits. */
class Runs {
  readonly #view: DataView;
  at = 0;

  constructor(bytes: Uint8Array) {
    this.#view = viewOf(bytes);
  }

  get rest(): number {
    return this.#view.byteLength - this.at;
  }

  byte(): number {
    return this.#view.getUint8(this.at++);
  }

  /** The number of bytes that the runs take, where it stands before them. */
  length(): number {
    this.at += 4;
    return this.#view.getUint32(this.at - 4, true);
  }

  /**
   * Passes over the runs of `count` values of `width` bits in the next `bytes` bytes.
   * @returns how many of the values are `wanted`
   * @throws Error for a run of more values than are left
   */
  skip(bytes: number, width: number, count: number, wanted = -1): number {
    const end = this.at + bytes;
    let found = 0;
    for (let seen = 0; seen < count; ) {
      const header = this.#varInt();
      if (header & 1) {
        const packed = (header >>> 1) * 8;
        const values = Math.min(packed, count - seen);
        if (wanted >= 0) for (let i = 0; i < values; i++) found += Number(this.#bits(i * width, width) === wanted);
        this.at += (packed / 8) * width;
        seen += values;
      } else {
        const run = header >>> 1;
        if (run > count - seen) throw new Error(`a run of ${run} values stands where ${count - seen} are left`);
        const value = this.#bits(0, width);
        this.at += Math.ceil(width / 8);
        if (value === wanted) found += run;
        seen += run;
      }
    }
    this.at = end;
    return found;
  }

  /** `width` bits from bit `from` on, the lowest first. */
  #bits(from: number, width: number): number {
    let value = 0;
    for (let bit = 0; bit < width; bit++) {
      const at = from + bit;
      value |= ((this.#view.getUint8(this.at + (at >> 3)) >> (at & 7)) & 1) << bit;
    }
    return value;
  }

  #varInt(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.byte();
      value |= (byte & 127) << shift;
      if (byte < 128) return value >>> 0;
    }
  }
}
