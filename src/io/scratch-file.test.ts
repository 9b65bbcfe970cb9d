import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { temporary } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { startEngine } from '../engine/index.ts';
import { noGrad, ops } from '../tensor/index.ts';
import { ScratchFile } from './index.ts';

before(() => startEngine());

test('tensors in a file keep their numbers, also when these leave memory, and have no file name', () => {
  using dir = temporary();
  using file = new ScratchFile(join(dir.path, 'new'));
  assert.deepEqual(readdirSync(join(dir.path, 'new')), []);
  // More than may wait to be written, so that some of it goes to the disk.
  const count = 24;
  const tensors = Array.from({ length: count }, () => file.zeros([2 ** 20], 'float32'));
  noGrad(() => {
    for (const [i, tensor] of tensors.entries()) {
      ops.addScalarToEach([tensor], i + 1);
      file.written(tensor);
    }
  });
  let compared = 0;
  for (const [i, tensor] of tensors.entries()) {
    const numbers = tensor.data();
    assert.ok(numbers[0] === i + 1 && numbers.every((x) => x === i + 1), `tensor ${i}`);
    compared += numbers.length;
  }
  assert.equal(compared, count * 2 ** 20);
  assert.equal(file.size, count * 2 ** 22);
});

test('what is freed gives its place to the next tensor of its size, which begins with zeros', () => {
  using dir = temporary();
  using file = new ScratchFile(dir.path);
  const [first, second] = [file.zeros([5000], 'float32'), file.zeros([3, 7], 'uint8')];
  noGrad(() => ops.addScalarToEach([first], 1));
  const { size } = file;
  assert.equal(size, 5 * 4096 + 4096);
  file.release(first);
  assert.ok(!file.holds(first) && file.holds(second));
  const third = file.zeros([4999], 'float32');
  assert.equal(file.size, size);
  assert.ok(third.data().every((x) => x === 0));
});

test('room that the disk does not have is refused before anything is written', () => {
  using dir = temporary();
  using file = new ScratchFile(dir.path);
  assert.throws(
    () => file.reserve(2 ** 52),
    (error: GraftError) => {
      assert.ok(error instanceof GraftError && error.kind === 'environment');
      assert.match(error.message, /(disk is full|larger than the file system allows).*4503599628 MB/);
      return true;
    },
  );
  assert.equal(file.size, 0);
});
