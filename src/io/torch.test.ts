import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { pickle, text, zip } from '../../test/samples/torch.ts';
import { GraftError, packageRoot } from '../base/index.ts';
import { openTorch } from './torch.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-torch-'));
after(() => rmSync(dir, { recursive: true }));

const sample = readFileSync(join(packageRoot, 'test/golden/adapterhub/seq-bn-bert/task/pytorch_adapter.bin'));

const file = (bytes: Uint8Array) => {
  const path = join(dir, 'file.bin');
  writeFileSync(path, bytes);
  return path;
};

/** One tensor [2] over a storage `0` of eight bytes, by the given description. */
const tensorPickle = ({
  storage = 'FloatStorage',
  offset = 0,
  shape = 2,
  stride = 1,
  call = '_rebuild_tensor_v2',
} = {}) =>
  pickle(
    '}', // {
    text('w'),
    `ctorch._utils\n${call}\n`,
    '(', // the arguments:
    '(',
    text('storage'),
    `ctorch\n${storage}\n`,
    text('0'),
    text('cpu'),
    'K\x02',
    't',
    'Q', // of the storage
    `K${String.fromCharCode(offset)}`,
    `K${String.fromCharCode(shape)}`,
    0x85,
    `K${String.fromCharCode(stride)}`,
    0x85,
    0x89,
    '}',
    't',
    'R',
    's',
  );
const archive = (data: Buffer, storage = Buffer.from(Float32Array.of(1.5, -2).buffer)) =>
  zip({ 'a/data.pkl': data, 'a/data/0': storage });

test('reads what torch.save wrote, as the goldens know it', () => {
  using source = openTorch(file(sample));
  assert.equal(source.entries.size, 8);
  const [first] = source.entries.values() as unknown as [{ name: string; shape: number[]; format: string }];
  assert.match(first.name, /^bert\.encoder\.layer\.0\.output\.adapters\.task\.adapter_down\.0\.weight$/);
  assert.deepEqual([first.shape, first.format], [[8, 32], 'float32']);
});

test('reads a tensor of a hand-made file', () => {
  using source = openTorch(file(archive(tensorPickle())));
  const bytes = new Uint8Array(8);
  source.read('w', bytes);
  assert.deepEqual([...new Float32Array(bytes.buffer)], [1.5, -2]);
});

const refused: readonly [string, Buffer, RegExp][] = [
  ['a call of anything else', archive(pickle('cposix\nsystem\n', text('echo'), 0x85, 'R')), /contains posix\.system/],
  ['an object', archive(pickle('cbuiltins\nobject\n', ')', 0x81)), /the instruction 0x81/],
  ['an instance', archive(pickle('(', 'iposix\nsystem\n')), /the instruction 0x69/],
  ['a call of what is no name', archive(pickle(text('f'), ')', 'R')), /contains a call/],
  ['state for what is no dictionary', archive(pickle('N', '}', 'b')), /state of something other/],
  ['another storage', archive(tensorPickle({ storage: 'QInt8Storage' })), /torch\.QInt8Storage/],
  ['another way to build', archive(tensorPickle({ call: '_rebuild_sparse_tensor' })), /_rebuild_sparse_tensor/],
  ['a tensor beyond its storage', archive(tensorPickle({ offset: 1 })), /exceeds its storage/],
  ['a strided tensor', archive(tensorPickle({ stride: 2 })), /not contiguous/],
  ['numbers that are not there', zip({ 'a/data.pkl': tensorPickle() }), /is not in the archive/],
  ['no dictionary', archive(pickle('N')), /does not contain a dictionary of tensors/],
  ['something else in the dictionary', archive(pickle('}', text('w'), 'K\x01', 's')), /is not a tensor/],
  ['a pickle that breaks off', archive(tensorPickle().subarray(0, 40)), /ends too early/],
  ['a compressed member', zip({ 'a/data.pkl': tensorPickle() }, 8), /is compressed/],
  ['no pickle', zip({ 'a/b': Buffer.from('x') }), /has no data\.pkl/],
  ['no archive', Buffer.from('nothing of the kind'), /has no end record/],
  ['big-endian numbers', zip({ 'a/data.pkl': tensorPickle(), 'a/byteorder': Buffer.from('big') }), /big-endian/],
];

for (const [what, bytes, why] of refused) {
  test(`refuses ${what}`, () => {
    assert.throws(
      () => openTorch(file(bytes)),
      (error) => error instanceof GraftError && error.kind === 'input' && why.test(error.message),
    );
  });
}

test('whatever is changed in it, it is read or refused', (t) => {
  let state = 1;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const outcomes = { read: 0, refused: 0 };
  const attempt = (bytes: Buffer) => {
    try {
      openTorch(file(bytes))[Symbol.dispose]();
      outcomes.read++;
    } catch (error) {
      assert.ok(error instanceof GraftError && error.kind === 'input', String((error as Error).stack));
      outcomes.refused++;
    }
  };
  for (let i = 0; i < 200; i++) {
    const whole = Buffer.from(sample);
    for (let n = 0; n <= random(3); n++) whole[random(whole.length)] = random(256);
    attempt(whole);
    const inside = Buffer.from(tensorPickle());
    for (let n = 0; n <= random(3); n++) inside[random(inside.length)] = random(256);
    attempt(archive(inside));
  }
  t.diagnostic(JSON.stringify(outcomes));
  assert.equal(outcomes.read + outcomes.refused, 400);
  assert.ok(outcomes.refused > 100);
});
