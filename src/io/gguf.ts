import { basename, dirname, join } from 'node:path';
import type { GraftError } from '../base/index.ts';
import { formatOfGgmlType, ggmlBlockNames, unsupportedGgmlTypes } from '../quant/index.ts';
import { ARRAY, BOOL, type GgufField, ggufTypeOf, numberTypeOf, STRING } from './gguf-types.ts';
import { brief, damaged, guessFormat, InputFile } from './input-file.ts';
import { bytesOf, type MetadataValue, type StoredEntry, StoredWeights, type WeightSource } from './weight-source.ts';

export type GgufMetadata = ReadonlyMap<string, MetadataValue>;

/** Bytes of the header that are read at once. */
const WINDOW = 2 ** 20;
const MAX_STRING = 2 ** 28;
const MAX_DEPTH = 4;

/** Reads a GGUF header in order. Every length is checked against the rest of the file before memory is allocated for it. */
class HeaderReader {
  readonly file: InputFile;
  /** Offset of the next byte to read. */
  at = 0;
  #window = Buffer.alloc(0);
  #start = 0;

  constructor(file: InputFile) {
    this.file = file;
  }

  fail(problem: string): GraftError {
    return damaged(this.file.path, problem);
  }

  /** Returns `count`; throws where the rest of the file is too short for that many items of `minBytes` or more. */
  #checked(count: number, minBytes: number, what: string): number {
    const rest = this.file.size - this.at;
    if (count * minBytes <= rest) return count;
    throw this.fail(
      `${what} at byte ${this.at} needs ${count * minBytes} bytes or more, but the file has only ${rest} left`,
    );
  }

  /** Loads the next `bytes` into `#window`, advances past them and returns their offset in it. */
  #take(bytes: number, what: string): number {
    if (this.at < this.#start || this.at + bytes > this.#start + this.#window.byteLength) {
      this.#checked(1, bytes, what);
      this.#window = Buffer.alloc(Math.min(Math.max(bytes, WINDOW), this.file.size - this.at));
      this.file.read(this.#window, this.at);
      this.#start = this.at;
    }
    this.at += bytes;
    return this.at - bytes - this.#start;
  }

  u32(what: string): number {
    const at = this.#take(4, what);
    return this.#window.readUInt32LE(at);
  }

  /** Reads a 64-bit length, count or offset; throws beyond 2^53. */
  u64(what: string): number {
    const at = this.#take(8, what);
    const value = this.#window.readUInt32LE(at) + this.#window.readUInt32LE(at + 4) * 2 ** 32;
    if (Number.isSafeInteger(value)) return value;
    throw this.fail(
      `${what} at byte ${this.at - 8} is ${this.#window.readBigUInt64LE(at)}, more than the size of any file`,
    );
  }

  /** Reads the number of items of `minBytes` or more that follow. */
  count(minBytes: number, what: string): number {
    return this.#checked(this.u64(what), minBytes, what);
  }

  string(what: string, maxBytes = MAX_STRING): string {
    const length = this.u64(what);
    if (length > maxBytes)
      throw this.fail(`${what} at byte ${this.at - 8} has length ${length}; the maximum is ${maxBytes}`);
    const at = this.#take(length, what);
    return this.#window.toString('utf8', at, at + length);
  }

  value(type: number, what: string, depth = 0): MetadataValue {
    const number = numberTypeOf(type);
    if (number) {
      const at = this.#take(number.bytes, what);
      return number.read(this.#window, at);
    }
    if (type === BOOL) return this.#bool(this.value(0, what) as number, what);
    if (type === STRING) return this.string(what);
    if (type === ARRAY && depth < MAX_DEPTH) return this.#array(this.u32(what), what, depth + 1);
    throw this.fail(
      type === ARRAY
        ? `${what} nests arrays more than ${MAX_DEPTH} deep`
        : `${what} has the unknown value type ${type}`,
    );
  }

  /** Reads the type of a metadata value and the value. */
  field(what: string): GgufField {
    const id = this.u32(`The type of ${what}`);
    const itemId = id === ARRAY ? this.u32(what) : id;
    const value = id === ARRAY ? this.#array(itemId, what, 1) : this.value(id, what);
    return { type: ggufTypeOf(itemId)!, value };
  }

  #array(type: number, what: string, depth: number): MetadataValue {
    const number = numberTypeOf(type === BOOL ? 0 : type);
    if (!number && type !== STRING && type !== ARRAY)
      throw this.fail(`${what} is an array of the unknown type ${type}`);
    const count = this.count(number?.bytes ?? (type === STRING ? 8 : 12), `${what}, an array,`);
    if (!number) {
      const values: MetadataValue[] = [];
      for (let i = 0; i < count; i++) values.push(this.value(type, what, depth));
      return values;
    }
    const bytes = new Uint8Array(count * number.bytes);
    this.file.read(bytes, this.at);
    this.at += bytes.byteLength;
    return type === BOOL ? Array.from(bytes, (byte) => this.#bool(byte, what)) : number.over(bytes.buffer);
  }

  #bool(byte: number, what: string): boolean {
    if (byte > 1) throw this.fail(`${what} is a boolean of ${byte}; only 0 and 1 are allowed`);
    return byte === 1;
  }
}

interface Parsed {
  readonly entries: Map<string, StoredEntry>;
  readonly fields: Map<string, GgufField>;
}

function parse(file: InputFile): Parsed {
  const { path, size } = file;
  const head = Buffer.alloc(Math.min(size, 64));
  file.read(head, 0);
  if (head.toString('latin1', 0, 4) !== 'GGUF')
    throw damaged(path, `Not a GGUF file: ${guessFormat(head)}`, 'Give the path of a GGUF or safetensors file');
  const reader = new HeaderReader(file);
  reader.at = 4;
  const version = reader.u32('The version');
  if (version !== 0 && version % 65536 === 0)
    throw damaged(
      path,
      'This GGUF file is big-endian, which Graft does not read',
      'Convert it with gguf_convert_endian.py of llama.cpp',
    );
  if (version !== 2 && version !== 3)
    throw damaged(
      path,
      `This is GGUF version ${version}; Graft reads 2 and 3`,
      'Convert the model again with a current llama.cpp',
    );
  const tensors = reader.count(24, 'The table of tensors');
  const pairs = reader.count(13, 'The metadata');
  const fields = new Map<string, GgufField>();
  for (let i = 0; i < pairs; i++) {
    const key = reader.string(`Metadata key ${i + 1} of ${pairs}`, 65535);
    if (fields.has(key)) throw reader.fail(`The metadata has the key ${brief(key)} more than once`);
    fields.set(key, reader.field(`The metadata value ${brief(key)}`));
  }
  const alignment = fields.get('general.alignment')?.value ?? 32;
  if (typeof alignment !== 'number' || alignment < 8 || alignment > 2 ** 30 || !Number.isInteger(Math.log2(alignment)))
    throw reader.fail(`general.alignment is ${brief(alignment)}; it must be a power of two and at least 8`);
  const infos = Array.from({ length: tensors }, (_, i) => readInfo(reader, `tensor ${i + 1} of ${tensors}`));
  const start = Math.ceil(reader.at / alignment) * alignment;
  const entries = new Map<string, StoredEntry>();
  for (const { name, shape, format, bytes, offset } of infos) {
    if (entries.has(name)) throw reader.fail(`There are two tensors named ${brief(name)}`);
    const problem =
      offset % alignment !== 0
        ? `starts at byte ${offset} of the data, which is not a multiple of the alignment ${alignment}`
        : start + offset + bytes > size && `ends at byte ${start + offset + bytes}, but the file at byte ${size}`;
    if (problem) throw reader.fail(`Tensor ${brief(name)} ${problem}`);
    entries.set(name, { name, shape, format, bytes, file, at: start + offset });
  }
  const inOrder = [...entries.values()].filter((entry) => entry.bytes > 0).sort((a, b) => a.at - b.at);
  inOrder.forEach(({ name, at }, i) => {
    const previous = inOrder[i - 1];
    if (previous && previous.at + previous.bytes > at)
      throw reader.fail(`Tensors ${brief(previous.name)} and ${brief(name)} overlap`);
  });
  return { entries, fields };
}

function readInfo(reader: HeaderReader, which: string) {
  const name = reader.string(`The name of ${which}`, 65535);
  const what = `Tensor ${brief(name)}`;
  const axes = reader.u32(what);
  if (axes > 4) throw reader.fail(`${what} has ${axes} axes; the maximum is 4`);
  const shape = Array.from({ length: axes }, () => reader.u64(`${what}: a size`)).reverse(); // ggml: fastest axis first
  const type = reader.u32(what);
  const format = formatOfGgmlType(type);
  if (!format) {
    const unsupported = unsupportedGgmlTypes[type];
    if (!unsupported) throw reader.fail(`${what} has the unknown type ${type}`);
    throw damaged(
      reader.file.path,
      `${what} has type ${unsupported} (${type}), which Graft does not read`,
      `Quantise the model as one of ${ggmlBlockNames.join(', ')}`,
    );
  }
  const bytes = bytesOf(format, shape);
  if (typeof bytes === 'string') throw reader.fail(`${what} ${bytes}`);
  return { name, shape, format, bytes, offset: reader.u64(`${what}: its offset`) };
}

/** An open GGUF file; `fields` has the metadata with their types, as `writeGguf` takes them. */
export interface GgufSource extends WeightSource {
  readonly fields: ReadonlyMap<string, GgufField>;
}

class GgufWeights extends StoredWeights implements GgufSource {
  readonly fields: ReadonlyMap<string, GgufField>;

  constructor(
    path: string,
    files: readonly InputFile[],
    entries: ReadonlyMap<string, StoredEntry>,
    fields: ReadonlyMap<string, GgufField>,
  ) {
    super(path, files, entries, new Map([...fields].map(([key, { value }]) => [key, value])));
    this.fields = fields;
  }
}

const SHARD = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/;

/**
 * Opens a GGUF file, version 2 or 3, little-endian. Given any shard of a model (`NAME-00001-of-000NN.gguf`), it opens all of
 * them, with the metadata of the first. The whole header is checked: counts, lengths, types, shapes, alignment, offsets,
 * overlaps; no tensor is read. Shapes are in torch's order (the file has the fastest axis first).
 * Source: ggml docs/gguf.md.
 * @throws GraftError `input` with the file and what is wrong in it
 */
export function openGguf(path: string): GgufSource {
  const match = SHARD.exec(basename(path));
  const shard = match && Number(match[2]) >= 1 && Number(match[2]) <= Number(match[3]) ? match : undefined;
  const count = Number(shard?.[3] ?? 1);
  const files: InputFile[] = [];
  try {
    const entries = new Map<string, StoredEntry>();
    let fields: Parsed['fields'] | undefined;
    for (let i = 0; i < count; i++) {
      const name = shard
        ? join(dirname(path), `${shard[1]}-${String(i + 1).padStart(5, '0')}-of-${shard[3]}.gguf`)
        : path;
      files.push(new InputFile(name));
      const part = parse(files[i]!);
      fields ??= part.fields;
      const no = part.fields.get('split.no')?.value ?? i;
      const of = part.fields.get('split.count')?.value ?? count;
      if (of !== count || no !== i)
        throw damaged(
          name,
          `By its metadata this is shard ${brief(no)} (from 0) of ${brief(of)}, by its name shard ${i} of ${count}`,
          'Rename all shards to the names that they were written with',
        );
      for (const [key, entry] of part.entries) {
        if (entries.has(key))
          throw damaged(name, `Tensor ${brief(key)} is also in ${basename(entries.get(key)!.file.path)}`);
        entries.set(key, entry);
      }
    }
    const total = fields?.get('split.tensors.count')?.value;
    if (shard && total !== undefined && total !== entries.size)
      throw damaged(path, `The ${count} shards hold ${entries.size} tensors instead of ${brief(total)}`);
    return new GgufWeights(path, files, entries, fields ?? new Map());
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
}
