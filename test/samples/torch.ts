/** Builds files as `torch.save` writes them, and pickles from single instructions. */
import { crc32 } from 'node:zlib';

/** Returns a zip archive of uncompressed members. */
export function zip(members: Readonly<Record<string, Buffer>>, method = 0): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  for (const [name, bytes] of Object.entries(members)) {
    const local = Buffer.alloc(30 + name.length);
    local.writeUInt32LE(0x04034b50);
    local.writeUInt32LE(crc32(bytes), 14);
    local.writeUInt32LE(bytes.length, 18);
    local.writeUInt32LE(bytes.length, 22);
    local.writeUInt16LE(name.length, 26);
    local.write(name, 30);
    const entry = Buffer.alloc(46 + name.length);
    entry.writeUInt32LE(0x02014b50);
    entry.writeUInt16LE(method, 10);
    entry.writeUInt32LE(crc32(bytes), 16);
    entry.writeUInt32LE(bytes.length, 20);
    entry.writeUInt32LE(bytes.length, 24);
    entry.writeUInt16LE(name.length, 28);
    entry.writeUInt32LE(at, 42);
    entry.write(name, 46);
    parts.push(local, bytes);
    directory.push(entry);
    at += local.length + bytes.length;
  }
  const end = Buffer.alloc(22);
  end.writeUInt32LE(0x06054b50);
  end.writeUInt16LE(directory.length, 8);
  end.writeUInt16LE(directory.length, 10);
  end.writeUInt32LE(Buffer.concat(directory).length, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...parts, ...directory, end]);
}

export const text = (value: string) => {
  const bytes = Buffer.from(value);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  return Buffer.concat([Buffer.from('X'), length, bytes]);
};
export const pickle = (...parts: (string | Buffer | number)[]) =>
  Buffer.concat([
    Buffer.from([0x80, 2]),
    ...parts.map((part) =>
      typeof part === 'number' ? Buffer.from([part]) : typeof part === 'string' ? Buffer.from(part, 'latin1') : part,
    ),
    Buffer.from('.'),
  ]);

const integer = (value: number) => {
  const bytes = Buffer.alloc(5);
  bytes.write('J', 'latin1');
  bytes.writeInt32LE(value, 1);
  return bytes;
};
const tuple = (values: readonly number[]) => ['(', ...values.map(integer), 't'];

/** Returns a file of torch.save with a dictionary of float32 tensors. */
export function torchFile(tensors: ReadonlyMap<string, { shape: readonly number[]; bytes: Uint8Array }>): Buffer {
  const members: Record<string, Buffer> = {};
  const items = [...tensors].flatMap(([name, { shape, bytes }], i) => {
    members[`archive/data/${i}`] = Buffer.from(bytes);
    const strides = shape.map((_, d) => shape.slice(d + 1).reduce((a, b) => a * b, 1));
    const storage = [
      '(',
      text('storage'),
      'ctorch\nFloatStorage\n',
      text(`${i}`),
      text('cpu'),
      integer(bytes.length / 4),
      't',
      'Q',
    ];
    const rest = [
      integer(0),
      ...tuple(shape),
      ...tuple(strides),
      0x89,
      'ccollections\nOrderedDict\n',
      ')',
      'R',
      't',
      'R',
    ];
    return [text(name), 'ctorch._utils\n_rebuild_tensor_v2\n', '(', ...storage, ...rest];
  });
  return zip({
    'archive/data.pkl': pickle('}', '(', ...items, 'u'),
    'archive/byteorder': Buffer.from('little'),
    'archive/version': Buffer.from('3\n'),
    ...members,
  });
}
