import { existsSync, readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { GraftError } from '../base/index.ts';
import type { DType } from '../tensor/index.ts';
import { writeFile } from './directory.ts';
import { brief, damaged, guessFormat, InputFile } from './input-file.ts';
import { isObject, parseJson, readJsonObject } from './jsonfile.ts';
import { bytesOf, type MetadataValue, type StoredEntry, StoredWeights, type WeightSource } from './weight-source.ts';

/** Element types by their names in the file, in the order in which the reference library 0.8.0 writes them. */
const dtypeNames = {
  I64: 'int64',
  F64: 'float64',
  F32: 'float32',
  I32: 'int32',
  BF16: 'bfloat16',
  F16: 'float16',
  I16: 'int16',
  I8: 'int8',
  U8: 'uint8',
  BOOL: 'bool',
} as const satisfies Record<string, DType>;
const fileNames = Object.fromEntries(Object.entries(dtypeNames).map(([file, dtype]) => [dtype, file])) as Record<
  DType,
  string
>;
const writingOrder: readonly DType[] = Object.values(dtypeNames);
/** Names of element types that the format has and Graft does not. */
const unsupported = /^(U16|U32|U64|C64|F8_|F4|F6_)/;

const MAX_HEADER = 100_000_000;

/**
 * Opens a safetensors file, an index of shards (`*.safetensors.index.json`), or a directory with either. The whole header is
 * checked, as the reference implementation does and more strictly (repeated keys); no tensor is read.
 * Source: github.com/huggingface/safetensors, README "Format" and safetensors/src/tensor.rs.
 * @throws GraftError `input` with the file and its problem: wrong lengths, JSON, types, shapes or offsets
 */
export function openSafetensors(path: string): WeightSource {
  const files: InputFile[] = [];
  const open = (file: string) => {
    files.push(new InputFile(file));
    return headerOf(files.at(-1)!);
  };
  try {
    if (!existsSync(path)) new InputFile(path); // throws
    const file = statSync(path).isDirectory() ? weightsIn(path) : path;
    const { entries, metadata } = file.endsWith('.json') ? joinShards(file, open) : open(file);
    return new StoredWeights(path, files, entries, metadata);
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
}

interface Header {
  readonly entries: ReadonlyMap<string, StoredEntry>;
  readonly metadata: ReadonlyMap<string, MetadataValue>;
}

/** The header that was read last: a directory is asked many things before it is loaded, and each opens its file. */
let lastHeader: { readonly state: string; readonly header: Header } | undefined;

function headerOf(file: InputFile): Header {
  if (lastHeader?.state !== file.state) {
    const header = readHeader(file);
    // One that was written just now can be written again with the same time.
    lastHeader = file.isSettled ? { state: file.state, header } : undefined;
    return header;
  }
  const { entries, metadata } = lastHeader.header;
  return { entries: new Map([...entries].map(([name, entry]) => [name, { ...entry, file }])), metadata };
}

/** Returns the file to open in a directory: the one that transformers, then PEFT, opens, else the only one. */
function weightsIn(directory: string): string {
  const standardNames = ['model.safetensors', 'model.safetensors.index.json', 'adapter_model.safetensors'];
  const names = readdirSync(directory).sort();
  const standardName = standardNames.find((name) => names.includes(name));
  if (standardName) return join(directory, standardName);
  const indices = names.filter((name) => name.endsWith('.safetensors.index.json'));
  const candidates = indices.length > 0 ? indices : names.filter((name) => name.endsWith('.safetensors'));
  if (candidates.length === 1) return join(directory, candidates[0]!);
  const pickles =
    names.some((name) => /\.(bin|pt|pth)$/.test(name)) &&
    'only PyTorch pickles, which Graft does not read because they can run code';
  throw new GraftError(
    'input',
    candidates.length > 1
      ? `There are ${candidates.length} safetensors files in this directory and no index of shards`
      : `There is no safetensors file in this directory${pickles ? `, ${pickles}` : ''}`,
    {
      place: directory,
      hint:
        candidates.length > 1
          ? `Give the path of one of them: ${candidates.slice(0, 3).join(', ')}`
          : 'Convert the weights to safetensors, or download them in this format',
    },
  );
}

function joinShards(index: string, open: (file: string) => Header): Header {
  const { weight_map: map } = readJsonObject(index);
  if (!isObject(map)) throw damaged(index, 'The index has no "weight_map"');
  const shards = new Map<string, Header>();
  const entries = new Map<string, StoredEntry>();
  const missing: string[] = [];
  for (const [name, shard] of Object.entries(map)) {
    if (typeof shard !== 'string' || shard !== basename(shard) || !shard.endsWith('.safetensors'))
      throw damaged(
        index,
        `"weight_map" places ${brief(name)} in ${brief(shard)}, which is not the name of a safetensors file`,
      );
    if (!shards.has(shard)) shards.set(shard, open(join(dirname(index), shard)));
    const entry = shards.get(shard)!.entries.get(name);
    if (entry) entries.set(name, entry);
    else missing.push(`${name} (${shard})`);
  }
  if (missing.length > 0)
    throw damaged(
      index,
      `${missing.length} of ${Object.keys(map).length} tensors are not in the shard that the index names, such as ${missing.slice(0, 3).join(', ')}`,
    );
  const metadata = new Map<string, MetadataValue>();
  for (const header of shards.values()) {
    for (const [key, value] of header.metadata) if (!metadata.has(key)) metadata.set(key, value);
    for (const [name, entry] of header.entries) if (!entries.has(name)) entries.set(name, entry); // not in the index
  }
  return { entries, metadata };
}

function readHeader(file: InputFile): Header {
  const { path, size } = file;
  const head = Buffer.alloc(Math.min(size, 64));
  file.read(head, 0);
  const length = size < 8 ? undefined : head.readBigUInt64LE(0);
  if (length === undefined || length > BigInt(size - 8)) {
    const claim = length === undefined ? '' : `; its first 8 bytes give a header of ${length} bytes`;
    throw damaged(
      path,
      `Not a safetensors file, or a truncated one: it has ${size} bytes${claim}; ${guessFormat(head)}`,
    );
  }
  if (length > MAX_HEADER) throw damaged(path, `The header has ${length} bytes; the maximum is ${MAX_HEADER}`);
  const bytes = Buffer.alloc(Number(length));
  file.read(bytes, 8);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw damaged(path, `The header of ${length} bytes is not valid UTF-8`);
  }
  const header = parseJson(text, `${path} (header)`, { unique: true });
  if (!isObject(header)) throw damaged(path, 'The header is JSON, but not an object');
  const start = 8 + bytes.byteLength;
  const infos = Object.entries(header).filter(([name]) => name !== '__metadata__');
  const entries = infos.map(([name, info]) => readEntry(file, start, name, info));
  entries.sort((a, b) => a.at - b.at || a.bytes - b.bytes);
  let end = start;
  for (const entry of entries) {
    if (entry.at !== end) {
      const problem =
        entry.at < end ? 'overlaps the one before it' : `leaves a gap of ${entry.at - end} bytes before it`;
      throw damaged(path, `Tensor ${brief(entry.name)} at byte ${entry.at - start} of the data ${problem}`);
    }
    end += entry.bytes;
  }
  if (end !== size)
    throw damaged(
      path,
      `The tensors end at byte ${end} and the file at byte ${size}: ${end > size ? `${end - size} bytes are missing` : `${size - end} bytes belong to no tensor`}`,
    );
  return {
    entries: new Map(entries.map((entry) => [entry.name, entry])),
    metadata: readMetadata(path, header.__metadata__),
  };
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function readEntry(file: InputFile, start: number, name: string, info: unknown): StoredEntry {
  const fail = (problem: string) => damaged(file.path, `Tensor ${brief(name)} ${problem}`);
  if (!name.isWellFormed()) throw fail('has a name that is not Unicode text');
  if (!isObject(info)) throw fail('has a description that is not a JSON object');
  const { dtype, shape, data_offsets: offsets } = info;
  if (typeof dtype !== 'string') throw fail('has no "dtype"');
  if (!Object.hasOwn(dtypeNames, dtype)) {
    if (!unsupported.test(dtype)) throw fail(`has the unknown type ${brief(dtype)}`);
    throw damaged(
      file.path,
      `Tensor ${brief(name)} has type ${dtype}, which is not supported`,
      'Convert it to F32, F16 or BF16',
    );
  }
  if (!Array.isArray(shape) || !shape.every(isCount))
    throw fail(`has a "shape" that is not a list of sizes: ${brief(shape)}`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount))
    throw fail(`has "data_offsets" that are not two numbers: ${brief(offsets)}`);
  const [from, to] = offsets as [number, number];
  const format = dtypeNames[dtype as keyof typeof dtypeNames];
  const bytes = bytesOf(format, shape);
  if (typeof bytes === 'string') throw fail(bytes);
  if (to - from !== bytes)
    throw fail(
      `of type ${dtype} and shape ${brief(shape)} takes ${bytes} bytes, but its offsets ${from} to ${to} span ${to - from}`,
    );
  return { name, shape, format, bytes, file, at: start + from };
}

function readMetadata(path: string, metadata: unknown): Map<string, string> {
  if (metadata === undefined || metadata === null) return new Map();
  if (isObject(metadata)) {
    const pairs = Object.entries(metadata);
    if (pairs.every((pair): pair is [string, string] => typeof pair[1] === 'string')) return new Map(pairs);
  }
  throw damaged(path, '"__metadata__" in the header is not an object of strings');
}

/** A tensor to be written to a file. */
export interface TensorToWrite {
  /** Its name in the file. */
  readonly name: string;
  /** Its element type. */
  readonly dtype: DType;
  /** The size of each dimension. */
  readonly shape: readonly number[];
  /** Little-endian bytes. A function is called once, when the tensor is written, so that only one tensor is in memory. */
  readonly bytes: Uint8Array | (() => Uint8Array);
}

/**
 * Writes a safetensors file atomically, byte for byte as the Python library does: sorted by type, then name; header padded with
 * spaces to 8 bytes; metadata sorted.
 * @param metadata strings; Hugging Face libraries expect `{ format: 'pt' }`
 * @throws GraftError `environment` for a full disk or missing rights; `usage` for wrong sizes and repeated names
 */
export function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const sorted = Array.from(tensors, (tensor) => ({ ...tensor, key: Buffer.from(tensor.name) })).sort(
    (a, b) => writingOrder.indexOf(a.dtype) - writingOrder.indexOf(b.dtype) || Buffer.compare(a.key, b.key),
  );
  const invalid = (name: string, problem: string) =>
    new GraftError('usage', `Tensor ${JSON.stringify(name)} ${problem}`, { place: path });
  const fields: string[] = [];
  const metadataKeys = Object.keys(metadata).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  if (metadataKeys.length > 0)
    fields.push(
      `"__metadata__":{${metadataKeys.map((key) => `${JSON.stringify(key)}:${JSON.stringify(metadata[key])}`)}}`,
    );
  const seen = new Set(['__metadata__']);
  const sizes: number[] = [];
  let offset = 0;
  for (const { name, dtype, shape } of sorted) {
    if (!name.isWellFormed()) throw invalid(name, 'has a name that is not Unicode text');
    if (seen.has(name))
      throw invalid(name, name === '__metadata__' ? 'has a reserved name' : 'is given more than once');
    seen.add(name);
    const size = bytesOf(dtype, shape);
    if (typeof size === 'string') throw invalid(name, size);
    sizes.push(size);
    fields.push(
      `${JSON.stringify(name)}:{"dtype":"${fileNames[dtype]}","shape":[${shape}],"data_offsets":[${offset},${offset + size}]}`,
    );
    offset += size;
  }
  const json = Buffer.from(`{${fields}}`);
  const header = Buffer.alloc(8 + Math.ceil(json.byteLength / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.byteLength - 8), 0);
  json.copy(header, 8);
  if (header.byteLength > MAX_HEADER)
    throw new GraftError('usage', `${sorted.length} tensors need a header of more than ${MAX_HEADER} bytes`, {
      place: path,
    });
  writeFile(path, (write) => {
    write(header);
    sorted.forEach(({ name, bytes }, i) => {
      const data = typeof bytes === 'function' ? bytes() : bytes;
      if (data.byteLength !== sizes[i])
        throw invalid(name, `takes ${sizes[i]} bytes, but ${data.byteLength} were given`);
      write(data);
    });
  });
}
