/** Builds small files for the tests of src/io: every byte is chosen here, none by the code under test. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Returns a temporary directory, which is removed with the scope; `put` writes a file into it and returns its path. */
export function temporary(): Disposable & { path: string; put(name: string, bytes: Uint8Array | string): string } {
  const path = mkdtempSync(join(tmpdir(), 'graft-io-'));
  return {
    path,
    put(name, bytes) {
      writeFileSync(join(path, name), bytes);
      return join(path, name);
    },
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  };
}

/** Returns a generator of numbers in [0, 1) from a seed (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Returns a safetensors file with this header (an object, or raw text) and so many bytes of data, 0, 1, 2 and so on. */
export function safetensorsFile(header: unknown, dataBytes: number, headerLength?: bigint): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(headerLength ?? BigInt(json.byteLength));
  return Buffer.concat([length, json, Buffer.from(Array.from({ length: dataBytes }, (_, i) => i & 255))]);
}

export type GgufPair = readonly [key: string, type: number, value: unknown, itemType?: number];

export interface GgufTensor {
  readonly name: string;
  /** In ggml's order: the fastest axis first. */
  readonly dims: readonly (number | bigint)[];
  readonly type: number;
  readonly bytes: number;
  /** From the start of the data; the default is the next aligned offset. */
  readonly offset?: number | bigint;
}

export interface GgufFile {
  readonly version?: number;
  readonly pairs?: readonly GgufPair[];
  readonly tensors?: readonly GgufTensor[];
  readonly alignment?: number;
  readonly tensorCount?: bigint;
  readonly pairCount?: bigint;
}

/** Returns a GGUF file as ggml's docs/gguf.md describes it. The data of tensor i is i, i + 1, i + 2 and so on; the counts can be wrong on purpose. */
export function ggufFile({ version = 3, pairs = [], tensors = [], alignment = 32, ...counts }: GgufFile): Buffer {
  const parts: Buffer[] = [Buffer.from('GGUF'), u32(version)];
  parts.push(u64(counts.tensorCount ?? tensors.length), u64(counts.pairCount ?? pairs.length));
  for (const [key, type, value, item] of pairs) parts.push(text(key), u32(type), ggufValue(type, value, item));
  const data: Buffer[] = [];
  let end = 0;
  tensors.forEach(({ name, dims, type, bytes, offset }, i) => {
    const padding = (alignment - (end % alignment)) % alignment;
    parts.push(text(name), u32(dims.length), ...dims.map(u64), u32(type), u64(offset ?? end + padding));
    data.push(Buffer.alloc(padding), Buffer.from(Array.from({ length: bytes }, (_, j) => (i + j) & 255)));
    end += padding + bytes;
  });
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc((alignment - (header.byteLength % alignment)) % alignment), ...data]);
}

function ggufValue(type: number, value: unknown, itemType = 0): Buffer {
  const b = Buffer.alloc(8);
  const n = value as number;
  if (type === 0) return b.subarray(0, b.writeUInt8(n));
  if (type === 1) return b.subarray(0, b.writeInt8(n));
  if (type === 2) return b.subarray(0, b.writeUInt16LE(n));
  if (type === 3) return b.subarray(0, b.writeInt16LE(n));
  if (type === 4) return b.subarray(0, b.writeUInt32LE(n));
  if (type === 5) return b.subarray(0, b.writeInt32LE(n));
  if (type === 6) return b.subarray(0, b.writeFloatLE(n));
  if (type === 7) return b.subarray(0, b.writeUInt8(Number(value)));
  if (type === 8) return text(value as string);
  if (type === 10) return b.subarray(0, b.writeBigUInt64LE(BigInt(n)));
  if (type === 11) return b.subarray(0, b.writeBigInt64LE(BigInt(n)));
  if (type === 12) return b.subarray(0, b.writeDoubleLE(n));
  const items = value as unknown[];
  const nested = itemType === 9 ? 4 : 0; // nested arrays are of uint32 here
  return Buffer.concat([u32(itemType), u64(items.length), ...items.map((item) => ggufValue(itemType, item, nested))]);
}

function u32(value: number): Buffer {
  const b = Buffer.alloc(4);
  b.writeUInt32LE(value);
  return b;
}

function u64(value: number | bigint): Buffer {
  const b = Buffer.alloc(8);
  b.writeBigUInt64LE(BigInt(value));
  return b;
}

const text = (value: string) => Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);

/** Metadata with every value type and every kind of array. */
export const allTypes: readonly GgufPair[] = [
  ['general.architecture', 8, 'llama'],
  ['t.uint8', 0, 200],
  ['t.int8', 1, -100],
  ['t.uint16', 2, 60000],
  ['t.int16', 3, -30000],
  ['t.uint32', 4, 4_000_000_000],
  ['t.int32', 5, -2_000_000_000],
  ['t.float32', 6, 0.5],
  ['t.bool', 7, true],
  ['t.string', 8, 'Ġé漢😀'],
  ['t.uint64', 10, 2n ** 53n - 1n],
  ['t.uint64.big', 10, 2n ** 64n - 1n],
  ['t.int64', 11, -(2n ** 53n) + 1n],
  ['t.int64.big', 11, -(2n ** 63n)],
  ['t.float64', 12, Math.PI],
  ['a.uint8', 9, [1, 2, 255], 0],
  ['a.int8', 9, [-1], 1],
  ['a.uint16', 9, [1, 65535], 2],
  ['a.int16', 9, [-2], 3],
  ['a.uint32', 9, [7, 8, 9], 4],
  ['a.int32', 9, [-7], 5],
  ['a.float32', 9, [0.25, -1.5], 6],
  ['a.bool', 9, [true, false], 7],
  ['a.string', 9, ['a', '', 'Ġt'], 8],
  ['a.array', 9, [[1, 2], [], [3]], 9],
  ['a.uint64', 9, [1n, 2n ** 64n - 1n], 10],
  ['a.int64', 9, [-1n], 11],
  ['a.float64', 9, [1e300], 12],
  ['a.empty', 9, [], 8],
];
