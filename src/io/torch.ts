/**
 * Reads the files that `torch.save` writes (`*.bin`): a zip archive of a pickle and of raw storages. A pickle is a program; this
 * reader executes only the few instructions that a dictionary of tensors needs, creates no other objects, and refuses
 * everything else. Sources: torch/serialization.py, torch/_utils.py `_rebuild_tensor_v2`, Python's pickletools.
 */
// Not imported by name: where Node.js is too old to have it, node-version.ts is to say so.
import { basename, dirname, join } from 'node:path';
import zlib from 'node:zlib';
import { GraftError } from '../base/index.ts';
import type { DType } from '../tensor/index.ts';
import { brief, damaged, InputFile } from './input-file.ts';
import { readJsonObject } from './jsonfile.ts';
import { bytesOf, elementsOf, type StoredEntry, StoredWeights, type WeightSource } from './weight-source.ts';

/** Element types by the names of torch's storage classes. */
const storages: Readonly<Record<string, DType>> = {
  FloatStorage: 'float32',
  DoubleStorage: 'float64',
  HalfStorage: 'float16',
  BFloat16Storage: 'bfloat16',
  LongStorage: 'int64',
  IntStorage: 'int32',
  ShortStorage: 'int16',
  CharStorage: 'int8',
  ByteStorage: 'uint8',
  BoolStorage: 'bool',
};

/** Bytes of a pickle: enough for the names of some ten thousand tensors. */
const MAX_PICKLE = 64 * 2 ** 20;

/**
 * Opens a file of `torch.save` that contains a dictionary of dense tensors, or an index of such files (`.index.json`).
 * @throws GraftError 'input' for any other file or contents
 */
export function openTorch(path: string): WeightSource {
  if (!path.endsWith('.index.json')) {
    const { file, entries } = openFile(path);
    return new StoredWeights(path, [file], entries, new Map());
  }
  const { weight_map: map } = readJsonObject(path);
  const shards = [...new Set(Object.values((map ?? {}) as Record<string, unknown>).map(String))];
  const wrong = shards.find((name) => name !== basename(name) || !name.endsWith('.bin'));
  if (wrong !== undefined || shards.length === 0)
    throw damaged(path, `"weight_map" ${wrong ? `names ${brief(wrong)}, which is no .bin file` : 'is missing'}`);
  const opened: ReturnType<typeof openFile>[] = [];
  try {
    for (const name of shards) opened.push(openFile(join(dirname(path), name)));
    const entries = new Map(opened.flatMap((shard) => [...shard.entries]));
    const missing = Object.keys(map as object).find((name) => !entries.has(name));
    if (missing) throw damaged(path, `The shards have no tensor ${brief(missing)}`);
    return new StoredWeights(
      path,
      opened.map(({ file }) => file),
      entries,
      new Map(),
    );
  } catch (error) {
    for (const { file } of opened) file[Symbol.dispose]();
    throw error;
  }
}

function openFile(path: string): { file: InputFile; entries: Map<string, StoredEntry> } {
  const file = new InputFile(path);
  try {
    if (isLegacy(file))
      throw new GraftError('input', 'the file is in the format of PyTorch before 1.6', {
        place: path,
        hint: 'Write it again with a current PyTorch: torch.save(torch.load(FILE), FILE); or save the model in transformers as safetensors',
      });
    const members = archive(file);
    const pickle = [...members].find(([name]) => name.endsWith('/data.pkl'));
    if (!pickle) throw damaged(path, 'Not a file of torch.save: it has no data.pkl');
    const root = pickle[0].slice(0, -'data.pkl'.length);
    const order = members.get(`${root}byteorder`);
    if (order && contents(file, order).toString() !== 'little') {
      throw damaged(path, 'The file is big-endian, which Graft does not read');
    }
    if (pickle[1].size > MAX_PICKLE)
      throw damaged(path, `The pickle has ${pickle[1].size} bytes; the maximum is ${MAX_PICKLE}`);
    const value = unpickle(contents(file, pickle[1]), path);
    if (!(value instanceof Map)) throw damaged(path, 'The file does not contain a dictionary of tensors');
    const entries = new Map<string, StoredEntry>();
    for (const [name, tensor] of value) {
      if (typeof name !== 'string' || !(tensor instanceof StoredTensor)) {
        throw damaged(path, `${brief(String(name))} is not a tensor`);
      }
      entries.set(name, entryOf(name, tensor, root, members, file));
    }
    return { file, entries };
  } catch (error) {
    file[Symbol.dispose]();
    throw error;
  }
}

/** Whether the file begins with the pickled magic number of the format before the zip archive. */
function isLegacy(file: InputFile): boolean {
  const head = Buffer.alloc(Math.min(14, file.size));
  file.read(head, 0);
  return head[0] === 0x80 && head.includes(Buffer.from('6cfc9c46f9206aa85019', 'hex'));
}

interface Member {
  readonly at: number;
  readonly size: number;
  readonly crc: number;
}

function contents(file: InputFile, { at, size, crc }: Member): Buffer {
  const bytes = Buffer.alloc(size);
  file.read(bytes, at);
  if (zlib.crc32(bytes) !== crc) throw damaged(file.path, 'A checksum of the archive is wrong');
  return bytes;
}

/** Returns the members of a zip archive of uncompressed files by name (APPNOTE.TXT 4.3). */
function archive(file: InputFile): Map<string, Member> {
  const { path, size } = file;
  const bad = (what: string) => damaged(path, `Not a file of torch.save (zip): ${what}`);
  const tail = Buffer.alloc(Math.min(size, 22 + 0xffff));
  file.read(tail, size - tail.length);
  const end = tail.lastIndexOf(Buffer.from('PK\x05\x06', 'latin1'));
  if (end < 0 || end + 22 > tail.length) throw bad('it has no end record');
  const [count, length, start] = [
    tail.readUInt16LE(end + 10),
    tail.readUInt32LE(end + 12),
    tail.readUInt32LE(end + 16),
  ];
  if (count === 0xffff || start === 0xffffffff) throw bad('archives larger than 4 GB are not supported');
  if (start + length > size) throw bad('its directory lies outside the file');
  const directory = Buffer.alloc(length);
  file.read(directory, start);
  const members = new Map<string, Member>();
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > length || directory.readUInt32LE(at) !== 0x02014b50) throw bad('its directory is damaged');
    const [method, crc] = [directory.readUInt16LE(at + 10), directory.readUInt32LE(at + 16)];
    const [packed, bytes] = [directory.readUInt32LE(at + 20), directory.readUInt32LE(at + 24)];
    const [nameLength, extra, comment] = [28, 30, 32].map((o) => directory.readUInt16LE(at + o)) as [
      number,
      number,
      number,
    ];
    const local = directory.readUInt32LE(at + 42);
    const name = directory.toString('utf8', at + 46, at + 46 + nameLength);
    if (method !== 0 || packed !== bytes) throw bad(`${brief(name)} is compressed`);
    const head = Buffer.alloc(30);
    if (local + 30 > size) throw bad(`${brief(name)} lies outside the file`);
    file.read(head, local);
    if (head.readUInt32LE(0) !== 0x04034b50) throw bad(`${brief(name)} has no header`);
    const data = local + 30 + head.readUInt16LE(26) + head.readUInt16LE(28);
    if (data + bytes > size) throw bad(`${brief(name)} lies outside the file`);
    members.set(name, { at: data, size: bytes, crc });
    at += 46 + nameLength + extra + comment;
  }
  return members;
}

function entryOf(
  name: string,
  { storage, offset, shape, strides }: StoredTensor,
  root: string,
  members: ReadonlyMap<string, Member>,
  file: InputFile,
): StoredEntry {
  const member = members.get(`${root}data/${storage.key}`);
  if (!member) throw damaged(file.path, `The storage of ${brief(name)} is not in the archive`);
  let expected = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    if (shape[d] !== 1 && strides[d] !== expected) {
      throw damaged(file.path, `${brief(name)} is not contiguous (it may be transposed); save a contiguous copy`);
    }
    expected *= shape[d]!;
  }
  const bytes = bytesOf(storage.dtype, shape);
  if (typeof bytes === 'string') throw damaged(file.path, `${brief(name)} ${bytes}`);
  const size = bytes / (elementsOf(shape) || 1);
  const at = offset * size;
  if (at + bytes > member.size) throw damaged(file.path, `${brief(name)} exceeds its storage`);
  return { name, shape, format: storage.dtype, bytes, file, at: member.at + at };
}

class Storage {
  readonly dtype: DType;
  readonly key: string;
  constructor(dtype: DType, key: string) {
    this.dtype = dtype;
    this.key = key;
  }
}

class StoredTensor {
  readonly storage: Storage;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  constructor(storage: Storage, offset: number, shape: readonly number[], strides: readonly number[]) {
    this.storage = storage;
    this.offset = offset;
    this.shape = shape;
    this.strides = strides;
  }
}

/** A name that the pickle refers to: it is compared, never imported. */
class Global {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

const MARK = Symbol('mark');

const isCounts = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && (n as number) >= 0);

/** Executes the pickle of a dictionary of tensors and returns its value. */
function unpickle(bytes: Buffer, path: string): unknown {
  const refused = (what: string) =>
    new GraftError('input', `the pickle contains ${what}, which Graft does not read because pickles can run code`, {
      place: path,
      hint: 'Save the weights as safetensors',
    });
  const stack: unknown[] = [];
  const memo = new Map<number, unknown>();
  let at = 0;
  const take = (length: number) => {
    if (at + length > bytes.length) throw damaged(path, 'The pickle ends too early');
    at += length;
    return at - length;
  };
  const text = (length: number) => bytes.toString('utf8', take(length), at);
  const line = () => {
    const end = bytes.indexOf(10, at);
    if (end < 0) throw damaged(path, 'The pickle ends too early');
    const value = bytes.toString('utf8', at, end);
    at = end + 1;
    return value;
  };
  const pop = () => {
    if (stack.length === 0) throw damaged(path, 'The pickle pops from an empty stack');
    return stack.pop();
  };
  const toMark = () => {
    const from = stack.lastIndexOf(MARK);
    if (from < 0) throw damaged(path, 'The pickle has no mark');
    const items = stack.splice(from);
    items.shift();
    return items;
  };
  const setItems = (items: unknown[]) => {
    const target = stack.at(-1);
    if (!(target instanceof Map)) throw refused('an item of something other than a dictionary');
    for (let i = 0; i + 1 < items.length; i += 2) target.set(items[i], items[i + 1]);
  };
  const global = (module: string, name: string) => stack.push(new Global(`${module}.${name}`));

  const persistent = (id: unknown) => {
    const [kind, type, key] = Array.isArray(id) ? id : [];
    const dtype = type instanceof Global && type.name.startsWith('torch.') ? storages[type.name.slice(6)] : undefined;
    if (kind !== 'storage' || !dtype || typeof key !== 'string') {
      throw refused(type instanceof Global ? type.name : 'a reference to something other than a storage');
    }
    return new Storage(dtype, key);
  };

  const reduce = (callable: unknown, args: unknown) => {
    if (!(callable instanceof Global) || !Array.isArray(args)) throw refused('a call');
    if (callable.name === 'collections.OrderedDict' && args.length === 0) return new Map();
    if (callable.name === 'torch._utils._rebuild_parameter' && args[0] instanceof StoredTensor) return args[0];
    if (callable.name === 'torch._utils._rebuild_tensor_v2') {
      const [storage, offset, shape, strides] = args;
      if (storage instanceof Storage && isCounts([offset]) && isCounts(shape) && isCounts(strides)) {
        if (shape.length === strides.length) return new StoredTensor(storage, offset as number, shape, strides);
      }
      throw damaged(path, 'The description of a tensor is invalid');
    }
    throw refused(callable.name);
  };

  for (;;) {
    const op = bytes[take(1)]!;
    switch (op) {
      case 0x80: // PROTO
        if (bytes[take(1)]! > 5) throw damaged(path, 'The pickle has an unknown protocol');
        break;
      case 0x95: // FRAME
        take(8);
        break;
      case 0x2e: // STOP
        return pop();
      case 0x28: // MARK
        stack.push(MARK);
        break;
      case 0x4e: // NONE
        stack.push(null);
        break;
      case 0x88: // NEWTRUE
      case 0x89: // NEWFALSE
        stack.push(op === 0x88);
        break;
      case 0x4b: // BININT1
        stack.push(bytes[take(1)]);
        break;
      case 0x4d: // BININT2
        stack.push(bytes.readUInt16LE(take(2)));
        break;
      case 0x4a: // BININT
        stack.push(bytes.readInt32LE(take(4)));
        break;
      case 0x8a: {
        // LONG1
        const length = bytes[take(1)]!;
        const start = take(length);
        let value = 0n;
        for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[start + i]!);
        stack.push(Number(BigInt.asIntN(8 * length, value)));
        break;
      }
      case 0x58: // BINUNICODE
        stack.push(text(bytes.readUInt32LE(take(4))));
        break;
      case 0x8c: // SHORT_BINUNICODE
        stack.push(text(bytes[take(1)]!));
        break;
      case 0x7d: // EMPTY_DICT
        stack.push(new Map());
        break;
      case 0x5d: // EMPTY_LIST
      case 0x29: // EMPTY_TUPLE
        stack.push([]);
        break;
      case 0x74: // TUPLE
        stack.push(toMark());
        break;
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        stack.push(stack.splice(Math.max(0, stack.length - (op - 0x84))));
        break;
      case 0x71: // BINPUT
        memo.set(bytes[take(1)]!, stack.at(-1));
        break;
      case 0x72: // LONG_BINPUT
        memo.set(bytes.readUInt32LE(take(4)), stack.at(-1));
        break;
      case 0x94: // MEMOIZE
        memo.set(memo.size, stack.at(-1));
        break;
      case 0x68: // BINGET
        stack.push(memo.get(bytes[take(1)]!));
        break;
      case 0x6a: // LONG_BINGET
        stack.push(memo.get(bytes.readUInt32LE(take(4))));
        break;
      case 0x63: // GLOBAL
        global(line(), line());
        break;
      case 0x93: {
        // STACK_GLOBAL
        const name = pop();
        global(String(pop()), String(name));
        break;
      }
      case 0x51: // BINPERSID
        stack.push(persistent(pop()));
        break;
      case 0x52: {
        // REDUCE
        const args = pop();
        stack.push(reduce(pop(), args));
        break;
      }
      case 0x73: {
        // SETITEM
        const value = pop();
        setItems([pop(), value]);
        break;
      }
      case 0x75: // SETITEMS
        setItems(toMark());
        break;
      case 0x62: // BUILD: attributes of an OrderedDict (`_metadata`), which tensors do not need
        pop();
        if (!(stack.at(-1) instanceof Map)) throw refused('the state of something other than a dictionary');
        break;
      default:
        throw refused(`the instruction 0x${op.toString(16)}`);
    }
  }
}
