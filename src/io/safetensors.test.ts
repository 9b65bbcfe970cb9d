import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { safetensorsFile, temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { openSafetensors, openWeights, writeSafetensors } from './index.ts';

const f32 = (shape: number[], from: number, to: number) => ({ dtype: 'F32', shape, data_offsets: [from, to] });

function refuses(path: string, message: RegExp): void {
  assert.throws(
    () => openSafetensors(path)[Symbol.dispose](),
    (error) => {
      assert(error instanceof GraftError, String(error));
      assert.match(error.message, message);
      assert.equal(error.kind, 'input');
      return true;
    },
  );
}

describe('openSafetensors', () => {
  it('reads a file anew that was written again at the same time', () => {
    using dir = temporary();
    const path = dir.put('m.safetensors', safetensorsFile({ a: f32([2, 2], 0, 16) }, 16));
    const { atime, mtime } = statSync(path);
    utimesSync(path, atime, mtime);
    using first = openSafetensors(path);
    writeFileSync(path, safetensorsFile({ b: f32([2, 2], 0, 16) }, 16));
    utimesSync(path, atime, mtime);
    using second = openSafetensors(path);
    assert.deepEqual([...first.entries.keys(), ...second.entries.keys()], ['a', 'b']);
  });

  it('gives shapes, types, metadata and bytes', () => {
    using dir = temporary();
    const header = {
      __metadata__: { format: 'pt' },
      b: { dtype: 'BF16', shape: [3], data_offsets: [16, 22] },
      a: f32([2, 2], 0, 16),
      scalar: { dtype: 'I64', shape: [], data_offsets: [22, 30] },
      none: f32([0, 5], 30, 30),
      ['__proto__']: { dtype: 'BOOL', shape: [1], data_offsets: [30, 31] },
    };
    using weights = openSafetensors(dir.put('m.safetensors', safetensorsFile(header, 31)));
    assert.deepEqual([...weights.entries.keys()], ['a', 'b', 'scalar', 'none', '__proto__']);
    assert.deepEqual([...weights.metadata], [['format', 'pt']]);
    const { shape, format, bytes } = weights.entries.get('b')!;
    assert.deepEqual([shape, format, bytes], [[3], 'bfloat16', 6]);
    const into = new Uint8Array(6);
    weights.read('b', into);
    assert.deepEqual([...into], [16, 17, 18, 19, 20, 21]);
    weights.read('b', into.subarray(0, 3), 2);
    assert.deepEqual([...into], [18, 19, 20, 19, 20, 21]);
    for (const from of [-1, 3, Number.NaN])
      assert.throws(() => weights.read('b', into.subarray(0, 4), from), /6 bytes, and the buffer 4 from byte/);
    weights.read('none', new Uint8Array(0));
    assert.throws(() => weights.read('b', new Uint8Array(7)), /Tensor "b" has 6 bytes, and the buffer 7/);
    assert.throws(() => weights.read('scalr', into), /None of the 5 tensors is named "scalr". Did you mean "scalar"\?/);
  });

  it('refuses what the reference implementation refuses, and keys that stand twice', () => {
    using dir = temporary();
    const at = (bytes: Uint8Array | string) => dir.put('m.safetensors', bytes);
    const one = (info: object, data: number) => at(safetensorsFile({ a: { ...f32([1], 0, 4), ...info } }, data));
    refuses(at(''), /it has 0 bytes; it is empty/);
    refuses(at('1234567'), /it has 7 bytes/);
    refuses(at('version https://git-lfs.github.com/spec/v1\noid sha256:00\n'), /git-lfs pointer: run `git lfs pull`/);
    refuses(at(safetensorsFile('{}', 0, 2n ** 63n)), /header of 9223372036854775808 bytes/);
    refuses(at(safetensorsFile('{}', 0, 3n)), /a header of 3 bytes/);
    refuses(at(safetensorsFile('', 0)), /ends before it is complete/);
    refuses(at(safetensorsFile('[]', 0)), /not an object/);
    refuses(at(safetensorsFile('{"a":}', 0)), /m\.safetensors \(header\):1:6: Expected a value, found "}"/);
    refuses(at(safetensorsFile('{}\0', 0)), /after the end/);
    refuses(
      at(safetensorsFile(`{"a":${JSON.stringify(f32([1], 0, 4))},"a":${JSON.stringify(f32([1], 0, 4))}}`, 4)),
      /"a" is repeated/,
    );
    refuses(
      at(safetensorsFile({ __metadata__: { a: 1 } }, 0)),
      /"__metadata__" in the header is not an object of strings/,
    );
    refuses(at(Buffer.concat([safetensorsFile('', 0, 2n), Buffer.from([0xff, 0xfe])])), /not valid UTF-8/);
    refuses(one({ dtype: 'F33' }, 4), /"a" has the unknown type "F33"/);
    refuses(one({ dtype: 'F8_E4M3' }, 4), /has type F8_E4M3, which is not supported. Convert it/);
    refuses(one({ shape: [-1] }, 4), /"shape" that is not a list of sizes: \[-1\]/);
    refuses(one({ shape: [1.5] }, 4), /"shape" that is not/);
    refuses(one({ shape: [2 ** 40, 2 ** 40] }, 4), /more than 2\^53 elements/);
    refuses(one({ shape: [2] }, 4), /takes 8 bytes, but its offsets 0 to 4 span 4/);
    refuses(one({ data_offsets: [4, 0] }, 4), /span -4/);
    refuses(one({ data_offsets: [0, 4, 8] }, 4), /not two numbers/);
    refuses(one({ data_offsets: [1, 5] }, 5), /byte 1 of the data leaves a gap of 1 bytes/);
    refuses(one({}, 3), /1 bytes are missing/);
    refuses(one({}, 6), /2 bytes belong to no tensor/);
    refuses(at(safetensorsFile({ a: f32([2], 0, 8), b: f32([2], 4, 12) }, 12)), /"b" at byte 4 of the data overlaps/);
    refuses(at(safetensorsFile('{"\\ud800":{}}', 0)), /has a name that is not Unicode text/);
    refuses(at(safetensorsFile({ a: 3 }, 0)), /a description that is not a JSON object/);
    refuses(join(dir.path, 'nothing.safetensors'), /There is no such file/);
    dir.put('n.safetensors', safetensorsFile('{}', 0));
    refuses(
      dir.path,
      /2 safetensors files in this directory and no index of shards. Give the path of one of them: m\.safetensors, n\.safetensors/,
    );
    using other = temporary();
    other.put('pytorch_model.bin', '');
    refuses(other.path, /only PyTorch pickles/);
  });

  it('refuses a header beyond the limit, without reading it', () => {
    using dir = temporary();
    const path = dir.put('m.safetensors', '');
    const file = Buffer.alloc(8);
    file.writeBigUInt64LE(100_000_001n);
    writeFileSync(path, file);
    const { truncateSync } = process.getBuiltinModule('node:fs');
    truncateSync(path, 100_000_100); // sparse
    refuses(path, /the maximum is 100000000/);
  });

  it('notices that the file was cut or written to after it was opened', () => {
    using dir = temporary();
    const bytes = safetensorsFile({ a: f32([4], 0, 16) }, 16);
    const path = dir.put('m.safetensors', bytes);
    using weights = openSafetensors(path);
    const into = new Uint8Array(16);
    const { truncateSync, utimesSync } = process.getBuiltinModule('node:fs');
    truncateSync(path, bytes.byteLength - 3);
    assert.throws(() => weights.read('a', into), /ends at byte \d+, 3 bytes too early/);
    writeFileSync(path, bytes);
    utimesSync(path, 1, 1);
    assert.throws(() => weights.read('a', into), /changed while it was being read/);
    weights[Symbol.dispose]();
    assert.throws(
      () => weights.read('a', into),
      (error) => error instanceof GraftError && error.kind === 'state',
    );
  });

  it('joins the shards of an index', () => {
    using dir = temporary();
    dir.put('model-1.safetensors', safetensorsFile({ __metadata__: { format: 'pt' }, a: f32([1], 0, 4) }, 4));
    dir.put('model-2.safetensors', safetensorsFile({ b: f32([2], 0, 8) }, 8));
    const index = (map: object) =>
      dir.put('model.safetensors.index.json', JSON.stringify({ metadata: { total_size: 12 }, weight_map: map }));
    index({ a: 'model-1.safetensors', b: 'model-2.safetensors' });
    using weights = openWeights(dir.path);
    assert.deepEqual([...weights.entries.keys()].sort(), ['a', 'b']);
    assert.equal(weights.metadata.get('format'), 'pt');
    const into = new Uint8Array(8);
    weights.read('b', into);
    assert.deepEqual([...into], [0, 1, 2, 3, 4, 5, 6, 7]);
    refuses(
      index({ a: 'model-2.safetensors', b: 'model-2.safetensors' }),
      /1 of 2 tensors are not in the shard.*a \(model-2/,
    );
    refuses(index({ a: '../x.safetensors' }), /not the name of a safetensors file/);
    refuses(index({ a: 'model-3.safetensors' }), /model-3\.safetensors: There is no such file/);
    refuses(dir.put('x.index.json', '{"weight_map": {"a": "x",}}'), /x\.index\.json:1:\d+: Expected a key/);
  });
});

describe('writeSafetensors', () => {
  const golden = readFileSync(join(import.meta.dirname, '../../test/samples/python.safetensors'));

  it('writes what the Python library writes, byte for byte', () => {
    using dir = temporary();
    using python = openSafetensors(dir.put('python.safetensors', golden));
    assert.equal(python.entries.size, 15);
    const tensors = [...python.entries.values()].reverse().map(({ name, shape, format, bytes }) => ({
      name,
      shape,
      dtype: format as 'float32',
      bytes: () => {
        const buffer = new Uint8Array(bytes);
        python.read(name, buffer);
        return buffer;
      },
    }));
    const path = join(dir.path, 'ours.safetensors');
    writeSafetensors(path, tensors, Object.fromEntries(python.metadata) as Record<string, string>);
    assert(readFileSync(path).equals(golden));
    writeSafetensors(path, []);
    assert.equal(readFileSync(path, 'latin1'), '\b\0\0\0\0\0\0\0{}      ');
    writeSafetensors(path, [], { b: '2', a: 'é"' }); // the Python library has no order here
    assert.match(readFileSync(path, 'utf8'), /\{"__metadata__":\{"a":"é\\"","b":"2"\}\} *$/);
  });

  it('refuses sizes that do not fit and names twice, and leaves the old file and nothing else', () => {
    using dir = temporary();
    const path = dir.put('m.safetensors', 'old');
    const tensor = { name: 'a', dtype: 'float32', shape: [2], bytes: new Uint8Array(8) } as const;
    assert.throws(
      () => writeSafetensors(path, [{ ...tensor, shape: [3] }]),
      /Tensor "a" takes 12 bytes, but 8 were given/,
    );
    assert.throws(() => writeSafetensors(path, [tensor, tensor]), /"a" is given more than once/);
    assert.throws(() => writeSafetensors(path, [{ ...tensor, name: '__metadata__' }]), /has a reserved name/);
    const full = Object.assign(new Error('ENOSPC: no space left on device, write'), {
      code: 'ENOSPC',
      syscall: 'write',
    });
    const breaks = () => {
      throw full;
    };
    assert.throws(
      () => writeSafetensors(path, [{ ...tensor, bytes: breaks }]),
      (error) =>
        error instanceof GraftError &&
        error.kind === 'environment' &&
        /The disk is full \(\d+ MB free\)/.test(error.message),
    );
    assert.deepEqual(readdirSync(dir.path), ['m.safetensors']);
    assert.equal(readFileSync(path, 'utf8'), 'old');
  });
});
