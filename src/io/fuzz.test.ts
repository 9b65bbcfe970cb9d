/**
 * Damaged safetensors and GGUF files: each must either open, with every tensor inside the file and readable, or be
 * refused by a GraftError; quickly, and without making anything much larger than the file. A worker does the work, so
 * that a file that hangs it can be named and a file that eats memory ends it.
 */
import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'node:test';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { allTypes, ggufFile, randomFrom, safetensorsFile, temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { bytesOf, openGguf, openSafetensors, type WeightSource } from './index.ts';
import type { StoredEntry } from './weight-source.ts';

const FILES = 10_000;
const SECONDS = 60;
const SLOWEST_MS = 1000;

interface Tally {
  opened: number;
  refused: Record<string, number>;
  bytesRead: number;
  slowest: number;
  /** The most bytes that were asked for while one file was read, for each byte of it. */
  allocated: number;
  problems: string[];
}

function seeds(): { gguf: boolean; bytes: Buffer }[] {
  const f32 = (name: string, dims: number[]) => ({ name, dims, type: 0, bytes: 4 * dims.reduce((a, b) => a * b, 1) });
  const blocks = [
    { name: 'blk.0.q4_1', dims: [64, 2], type: 3, bytes: 80 },
    { name: 'blk.0.q6_k', dims: [256], type: 14, bytes: 210 },
    { name: 'blk.0.bf16', dims: [3, 1, 2], type: 30, bytes: 12 },
    { name: 'none', dims: [0], type: 0, bytes: 0 },
  ];
  const tokens = Array.from({ length: 60 }, (_, i) => `Ġt${i}`);
  const header = (n: number) =>
    Object.fromEntries(
      Array.from({ length: n }, (_, i) => [
        `layer.${i}`,
        { dtype: 'F32', shape: [2, 2], data_offsets: [16 * i, 16 * i + 16] },
      ]),
    );
  return [
    { gguf: true, bytes: ggufFile({ pairs: allTypes, tensors: [f32('a', [4, 2]), ...blocks] }) },
    {
      gguf: true,
      bytes: ggufFile({
        version: 2,
        pairs: [
          ['tokens', 9, tokens, 8],
          ['types', 9, tokens.map((_, i) => i), 5],
        ],
        tensors: blocks,
      }),
    },
    {
      gguf: true,
      bytes: ggufFile({
        alignment: 64,
        pairs: [['general.alignment', 4, 64]],
        tensors: Array.from({ length: 9 }, (_, i) => f32(`t${i}`, [i, 2])),
      }),
    },
    { gguf: true, bytes: ggufFile({}) },
    { gguf: false, bytes: safetensorsFile({ __metadata__: { format: 'pt' }, ...header(5) }, 80) },
    {
      gguf: false,
      bytes: safetensorsFile(
        {
          b: { dtype: 'BF16', shape: [3], data_offsets: [0, 6] },
          s: { dtype: 'I64', shape: [], data_offsets: [6, 14] },
          z: { dtype: 'U8', shape: [0, 9], data_offsets: [14, 14] },
        },
        14,
      ),
    },
    { gguf: false, bytes: safetensorsFile('{}', 0) },
  ];
}

const edges = [
  0n,
  1n,
  7n,
  8n,
  255n,
  2n ** 16n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 40n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];

function damage(original: Buffer, random: () => number): Buffer {
  const below = (n: number) => Math.floor(random() * n);
  let bytes: Buffer = Buffer.from(original);
  for (let n = random() < 0.6 ? 1 : 1 + below(6); n > 0 && bytes.byteLength > 0; n--) {
    const at = below(bytes.byteLength);
    // half of the time in the part before the data, where the structure is
    const early = below(Math.min(bytes.byteLength, 24));
    const spot = random() < 0.5 ? at : random() < 0.5 ? early : below(Math.ceil(bytes.byteLength * 0.8));
    switch (below(9)) {
      case 0: // a bit flips
        bytes[spot]! ^= 1 << below(8);
        break;
      case 1: // a byte changes
        bytes[spot] = below(256);
        break;
      case 2: // the end is missing
        bytes = bytes.subarray(0, at);
        break;
      case 3: // a range is missing
        bytes = Buffer.concat([bytes.subarray(0, spot), bytes.subarray(spot + below(40))]);
        break;
      case 4: // something is inserted
        bytes = Buffer.concat([
          bytes.subarray(0, spot),
          Buffer.from(Array.from({ length: below(40) }, () => below(256))),
          bytes.subarray(spot),
        ]);
        break;
      case 5: // a 64-bit length, count or offset is blown up
        if (spot + 8 <= bytes.byteLength) bytes.writeBigUInt64LE(edges[below(edges.length)]!, spot);
        break;
      case 6: // a 32-bit type or number
        if (spot + 4 <= bytes.byteLength)
          bytes.writeUInt32LE(random() < 0.5 ? below(45) : Number(edges[below(9)]), spot);
        break;
      case 7: {
        // two ranges change places
        const size = 1 + below(24);
        const [a, b] = [below(bytes.byteLength), below(bytes.byteLength)].sort((x, y) => x - y) as [number, number];
        if (a + size > b || b + size > bytes.byteLength) break;
        const first = Buffer.from(bytes.subarray(a, a + size));
        bytes.copyWithin(a, b, b + size);
        first.copy(bytes, b);
        break;
      }
      default: {
        // a number in text: shapes and offsets of safetensors
        const text = bytes.toString('latin1');
        const digits = [...text.slice(0, -20).matchAll(/\d+/g)];
        const one = digits[below(digits.length)];
        if (!one) break;
        const put =
          random() < 0.3
            ? ['-1', '1e3', '0.5', '1e400', '""', '[]', 'null'][below(7)]!
            : String(edges[below(edges.length)]);
        bytes = Buffer.from(text.slice(0, one.index) + put + text.slice(one.index + one[0].length), 'latin1');
        if (bytes.byteLength >= 8 && bytes[8] === 0x7b && random() < 0.9)
          // keep the length true, to get further in
          bytes.writeBigUInt64LE(original.readBigUInt64LE(0) + BigInt(put.length - one[0].length), 0);
      }
    }
  }
  return bytes;
}

/** A file that is well-formed up to what it says of its tensors: types, shapes, offsets, alignment, names. */
function invent(gguf: boolean, random: () => number): Buffer {
  const one = <T>(of: readonly T[]): T => of[Math.floor(random() * of.length)]!;
  const mostly = <T>(usual: T, others: readonly T[]): T => (random() < 0.85 ? usual : one(others));
  const count = 1 + Math.floor(random() * 5);
  let end = 0;
  const tensors = Array.from({ length: count }, (_, i) => {
    const dims = mostly<(number | bigint)[]>(
      [8],
      [[], [4, 2], [32], [0], [1, 2, 3, 4], [2 ** 31, 2 ** 31], [2n ** 63n], [7]],
    );
    const bytes = mostly(32, [0, 4, 36, 64]);
    const start = mostly(
      end,
      [0, 16, 32, 64, end + 32, end - 32, 2 ** 40].filter((at) => at >= 0),
    );
    end += bytes;
    return { name: mostly(`t${i}`, ['t0', '', '\ud800', 'x'.repeat(99)]), dims, bytes, start };
  });
  if (random() < 0.3) tensors.reverse();
  if (gguf) {
    const alignment = mostly(32, [8, 16, 64]);
    const told = mostly<number | bigint>(alignment, [0, 8, 24, 64, 2 ** 31, -1n & 0xffffffffn]);
    const listed = tensors.map((t) => ({
      ...t,
      type: mostly(0, [1, 2, 3, 8, 14, 24, 28, 30, 31, 99]),
      offset: t.start,
    }));
    return ggufFile({ pairs: [['general.alignment', 4, Number(told)]], alignment, tensors: listed });
  }
  const header = tensors.map(({ name, dims, bytes, start }) => {
    const info = {
      dtype: mostly('F32', ['I64', 'BOOL', 'F8_E5M2', '']),
      shape: dims.map(Number),
      data_offsets: [start, start + bytes],
    };
    return `${JSON.stringify(name)}:${JSON.stringify(info)}`;
  });
  return safetensorsFile(`{${header}}`, mostly(end, [end + 1, Math.max(0, end - 1)]));
}

/** The entries as they are inside: with their place in the file. They must lie in it, apart, and read as what is there. */
function check(weights: WeightSource, file: Buffer): number {
  let end = 0;
  const entries = [...(weights.entries as ReadonlyMap<string, StoredEntry>).values()].sort(
    (a, b) => a.at - b.at || a.bytes - b.bytes,
  );
  for (const { name, at, bytes, format, shape } of entries) {
    if (bytes !== bytesOf(format, shape)) throw new Error(`${name}: ${bytes} bytes for ${format} [${shape}]`);
    if (bytes > 0 && (at < end || at + bytes > file.byteLength))
      throw new Error(`${name}: ${at} + ${bytes}, after ${end} in ${file.byteLength}`);
    end = Math.max(end, at + bytes);
    const into = Buffer.allocUnsafe(bytes);
    weights.read(name, into);
    if (!into.equals(file.subarray(at, at + bytes))) throw new Error(`${name}: other bytes than the file has`);
  }
  return entries.reduce((sum, { bytes }) => sum + bytes, 0);
}

/** Counts from now on what is asked of the constructors that take a size; `asked.bytes` may be set back. */
function countAllocations(): { bytes: number } {
  const asked = { bytes: 0 };
  for (const name of ['ArrayBuffer', 'Uint8Array', 'Array'] as const) {
    const construct = (target: new (...args: unknown[]) => object, args: unknown[], self: unknown): object => {
      if (args.length === 1 && typeof args[0] === 'number') asked.bytes += args[0];
      return Reflect.construct(target, args, self === globalThis[name] ? target : (self as typeof target));
    };
    Object.assign(globalThis, { [name]: new Proxy(globalThis[name], { construct }) });
  }
  const alloc = Buffer.alloc;
  Buffer.alloc = (size, ...rest) => {
    asked.bytes += size;
    return alloc(size, ...rest);
  };
  return asked;
}

function feed(path: string, progress: Int32Array): Tally {
  const tally: Tally = { opened: 0, refused: {}, bytesRead: 0, slowest: 0, allocated: 0, problems: [] };
  const originals = seeds();
  const asked = countAllocations();
  const random = randomFrom(20_240_607);
  for (let i = 0; i < FILES; i++) {
    Atomics.store(progress, 0, i);
    const { gguf, bytes } = originals[i % originals.length]!;
    const file = i < originals.length ? bytes : random() < 0.25 ? invent(gguf, random) : damage(bytes, random);
    rmSync(path, { force: true }); // writing over it would wait for the disk
    writeFileSync(path, file);
    asked.bytes = 0;
    const start = performance.now();
    try {
      {
        using weights = gguf ? openGguf(path) : openSafetensors(path);
        tally.bytesRead += check(weights, file);
      }
      tally.opened++;
    } catch (error) {
      if (error instanceof GraftError && error.kind === 'input') {
        const sort = error.message
          .slice(path.length + 2)
          .replaceAll(/"[^"]*"?|\d+|[“”]/g, '#')
          .slice(0, 40);
        tally.refused[sort] = (tally.refused[sort] ?? 0) + 1;
        if (error.message.length > 1000)
          tally.problems.push(`file ${i}: a message of ${error.message.length} characters`);
      } else tally.problems.push(`file ${i}: ${error instanceof Error ? error.stack : error}`);
    }
    tally.allocated = Math.max(tally.allocated, asked.bytes / (file.byteLength + 64));
    tally.slowest = Math.max(tally.slowest, performance.now() - start);
  }
  return tally;
}

if (isMainThread)
  it(`feeds ${FILES} damaged files to the readers`, { timeout: 1000 * (SECONDS + 20) }, async () => {
    using dir = temporary();
    const progress = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(import.meta.filename, {
      workerData: { path: join(dir.path, 'damaged'), progress },
      resourceLimits: { maxOldGenerationSizeMb: 96 },
    });
    const tally = await new Promise<Tally>((resolve, reject) => {
      const where = () => `at file ${Atomics.load(progress, 0)} of ${FILES}`;
      const late = setTimeout(() => reject(new Error(`still busy after ${SECONDS} s, ${where()}`)), SECONDS * 1000);
      worker.once('message', resolve);
      worker.once('error', (cause) => reject(new Error(`the worker ended ${where()}`, { cause })));
      worker.once('exit', () => clearTimeout(late));
    }).finally(() => worker.terminate());
    const refused = Object.values(tally.refused).reduce((a, b) => a + b, 0);
    console.log(
      `${FILES} files: ${tally.opened} opened (${tally.bytesRead} bytes of tensors read), ${refused} refused in ${Object.keys(tally.refused).length} ways; slowest ${tally.slowest.toFixed(1)} ms; at most ${tally.allocated.toFixed(1)} bytes allocated for each byte of file`,
    );
    assert.deepEqual(tally.problems, []);
    assert.equal(tally.opened + refused, FILES);
    assert(tally.opened > FILES / 20 && refused > FILES / 2, 'both outcomes are tried');
    assert(tally.slowest < SLOWEST_MS, `${tally.slowest} ms for one file`);
    assert(tally.allocated < 8, `${tally.allocated} bytes for each byte of a file`);
  });
else if (workerData) parentPort!.postMessage(feed(workerData.path, workerData.progress));
