import { GraftError } from '../base/index.ts';
import { type FormatName, formats } from '../quant/index.ts';
import { writeFile } from './directory.ts';
import { ARRAY, type GgufField, idOfGgufType, numberTypes } from './gguf-types.ts';
import { brief } from './input-file.ts';
import { bytesOf } from './weight-source.ts';

/** A tensor to be written to a GGUF file. */
export interface GgufTensor {
  /** Its name in the file. */
  readonly name: string;
  /** Its number format, one that ggml has. */
  readonly format: FormatName;
  /** Axes in torch's order: the last one is contiguous, and is cut into blocks. */
  readonly shape: readonly number[];
  /** Is called once, when the tensor is written, so that only one tensor is in memory. Little-endian. */
  bytes(): Uint8Array;
}

/** Longer names are refused by ggml (`GGML_MAX_NAME`, with the zero that ends them). */
const maxName = 63;

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
const u64 = (value: number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};
const text = (value: string) => {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.byteLength), bytes]);
};

/**
 * Writes a GGUF file, version 3, atomically: metadata in the given order, then the tensors in theirs, one at a time, each
 * at a multiple of `general.alignment` (default 32). Source: ggml docs/gguf.md.
 * @throws GraftError `environment` for a full disk or missing rights; `usage` for a format that ggml does not have, wrong sizes,
 *   names that are repeated or too long, and values that do not have their type
 */
export function writeGguf(path: string, fields: ReadonlyMap<string, GgufField>, tensors: Iterable<GgufTensor>): void {
  const alignment = Number(fields.get('general.alignment')?.value ?? 32);
  const padded = (size: number) => Math.ceil(size / alignment) * alignment;
  const invalid = (problem: string) => new GraftError('usage', problem, { place: path });
  const list = [...tensors];
  const parts: Buffer[] = [Buffer.from('GGUF'), u32(3), u64(list.length), u64(fields.size)];
  for (const [key, field] of fields) {
    const encoded = encode(field);
    if (typeof encoded === 'string') throw invalid(`the metadata value ${brief(key)} ${encoded}`);
    parts.push(text(key), encoded);
  }
  const names = new Set<string>();
  const sizes: number[] = [];
  let offset = 0;
  for (const { name, format, shape } of list) {
    const { ggmlType } = formats[format];
    const size = bytesOf(format, shape);
    const problem =
      ggmlType === undefined
        ? `has the format ${format}, which GGUF does not have`
        : typeof size === 'string'
          ? size
          : names.has(name)
            ? 'is given more than once'
            : Buffer.byteLength(name) > maxName
              ? `has a name of more than ${maxName} bytes`
              : shape.length > 4 && `has ${shape.length} axes; the maximum is 4`;
    if (problem) throw invalid(`tensor ${brief(name)} ${problem}`);
    names.add(name);
    sizes.push(size as number);
    parts.push(text(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(ggmlType!), u64(offset));
    offset += padded(size as number);
  }
  const header = Buffer.concat(parts);
  const zeros = Buffer.alloc(alignment);
  writeFile(path, (write) => {
    write(header);
    write(zeros.subarray(0, padded(header.byteLength) - header.byteLength));
    list.forEach(({ name, bytes }, i) => {
      const data = bytes();
      const size = sizes[i]!;
      if (data.byteLength !== size)
        throw invalid(`tensor ${brief(name)} takes ${size} bytes, but ${data.byteLength} were given`);
      write(data);
      write(zeros.subarray(0, padded(size) - size));
    });
  });
}

/** Returns the type and the value as the file has them, or the end of a sentence that says what is wrong. */
function encode({ type, value }: GgufField): Buffer | string {
  if (type === 'array') return 'is an array of arrays, which Graft does not write';
  const isArray = typeof value === 'object';
  const items = isArray ? Array.from<unknown>(value as ArrayLike<unknown>) : [value];
  const bytes: Buffer[] = [];
  for (const item of items) {
    const encoded = encodeOne(type, item);
    if (!encoded) return `has ${brief(item)}, which is not a ${type}`;
    bytes.push(encoded);
  }
  const header = isArray ? [u32(ARRAY), u32(idOfGgufType(type)), u64(items.length)] : [u32(idOfGgufType(type))];
  return Buffer.concat([...header, ...bytes]);
}

function encodeOne(type: Exclude<GgufField['type'], 'array'>, value: unknown): Buffer | undefined {
  if (type === 'string') return typeof value === 'string' && value.isWellFormed() ? text(value) : undefined;
  if (type === 'bool') return typeof value === 'boolean' ? Buffer.from([Number(value)]) : undefined;
  if (typeof value !== 'number' && typeof value !== 'bigint') return undefined;
  const bytes = Buffer.alloc(numberTypes[type].bytes);
  try {
    numberTypes[type].write(bytes, value);
    return bytes;
  } catch (error) {
    if (error instanceof RangeError) return undefined; // too large for the type, or a fraction
    throw error;
  }
}
