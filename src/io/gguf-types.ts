/** The types of values in a GGUF file's metadata. Source: ggml docs/gguf.md, `gguf_metadata_value_type`. */
import type { MetadataValue, NumberArray } from './weight-source.ts';

/** A value type of a fixed size: its number and bytes, and how one value and an array of values are read and written. */
interface NumberType {
  readonly id: number;
  readonly bytes: number;
  read(from: Buffer, at: number): number | bigint;
  write(into: Buffer, value: number | bigint): void;
  over(bytes: ArrayBuffer): NumberArray;
}

/** Returns the integer as a number where that is exact. */
const exactNumber = (value: bigint): number | bigint => (Number.isSafeInteger(Number(value)) ? Number(value) : value);

/** By the names of C types. */
export const numberTypes = {
  uint8: {
    id: 0,
    bytes: 1,
    read: (b, at) => b.readUInt8(at),
    write: (b, x) => b.writeUInt8(Number(x)),
    over: (b) => new Uint8Array(b),
  },
  int8: {
    id: 1,
    bytes: 1,
    read: (b, at) => b.readInt8(at),
    write: (b, x) => b.writeInt8(Number(x)),
    over: (b) => new Int8Array(b),
  },
  uint16: {
    id: 2,
    bytes: 2,
    read: (b, at) => b.readUInt16LE(at),
    write: (b, x) => b.writeUInt16LE(Number(x)),
    over: (b) => new Uint16Array(b),
  },
  int16: {
    id: 3,
    bytes: 2,
    read: (b, at) => b.readInt16LE(at),
    write: (b, x) => b.writeInt16LE(Number(x)),
    over: (b) => new Int16Array(b),
  },
  uint32: {
    id: 4,
    bytes: 4,
    read: (b, at) => b.readUInt32LE(at),
    write: (b, x) => b.writeUInt32LE(Number(x)),
    over: (b) => new Uint32Array(b),
  },
  int32: {
    id: 5,
    bytes: 4,
    read: (b, at) => b.readInt32LE(at),
    write: (b, x) => b.writeInt32LE(Number(x)),
    over: (b) => new Int32Array(b),
  },
  float32: {
    id: 6,
    bytes: 4,
    read: (b, at) => b.readFloatLE(at),
    write: (b, x) => b.writeFloatLE(Number(x)),
    over: (b) => new Float32Array(b),
  },
  uint64: {
    id: 10,
    bytes: 8,
    read: (b, at) => exactNumber(b.readBigUInt64LE(at)),
    write: (b, x) => b.writeBigUInt64LE(BigInt(x)),
    over: (b) => new BigUint64Array(b),
  },
  int64: {
    id: 11,
    bytes: 8,
    read: (b, at) => exactNumber(b.readBigInt64LE(at)),
    write: (b, x) => b.writeBigInt64LE(BigInt(x)),
    over: (b) => new BigInt64Array(b),
  },
  float64: {
    id: 12,
    bytes: 8,
    read: (b, at) => b.readDoubleLE(at),
    write: (b, x) => b.writeDoubleLE(Number(x)),
    over: (b) => new Float64Array(b),
  },
} as const satisfies Readonly<Record<string, NumberType>>;

export type NumberTypeName = keyof typeof numberTypes;

export const BOOL = 7;
export const STRING = 8;
export const ARRAY = 9;

/** The name of a value type; `array` is an array of arrays, whose own types a file can mix. */
export type GgufType = NumberTypeName | 'bool' | 'string' | 'array';

/** A value of GGUF's metadata with its type in the file. */
export interface GgufField {
  /** Its type, or of an array that of its items. */
  readonly type: GgufType;
  /** The value; a list where it is an array. */
  readonly value: MetadataValue;
}

const typeNames = new Map<number, GgufType>([
  ...Object.entries(numberTypes).map(([name, { id }]): [number, GgufType] => [id, name as NumberTypeName]),
  [BOOL, 'bool'],
  [STRING, 'string'],
  [ARRAY, 'array'],
]);

/** Returns the name of the type with a number in the file; undefined where there is none. */
export const ggufTypeOf = (id: number): GgufType | undefined => typeNames.get(id);

/** Returns the type of a fixed size with a number in the file; undefined for all others. */
export function numberTypeOf(id: number): NumberType | undefined {
  const name = typeNames.get(id);
  return name && Object.hasOwn(numberTypes, name) ? numberTypes[name as NumberTypeName] : undefined;
}

/** Returns the number in the file of a type. */
export const idOfGgufType = (name: GgufType): number =>
  ({ bool: BOOL, string: STRING, array: ARRAY })[name as string] ?? numberTypes[name as NumberTypeName].id;
