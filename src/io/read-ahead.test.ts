import assert from 'node:assert/strict';
import { statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/support.ts';
import { InputFile } from './input-file.ts';
import { readAhead } from './read-ahead.ts';

const bytesOf = (path: string, length: number, at = 0) => {
  using file = new InputFile(path);
  const bytes = new Uint8Array(length);
  file.read(bytes, at);
  return { bytes: [...bytes], isHeld: file.bytesInMemory(at, length) !== undefined };
};

test('files are in memory until they are let go, one directory at a time; one that was written to since is read again', async () => {
  using dir = temporary();
  const [a, b] = ['a', 'b'].map((name) => join(dir.path, name));
  const numbers = Uint8Array.from({ length: 3 * 2 ** 20 }, (_, i) => i % 251);
  writeFileSync(a!, numbers);
  writeFileSync(b!, Uint8Array.of(7, 8, 9));
  const at = 2 ** 20 - 2;
  const part = [...numbers.subarray(at, at + 5)];
  assert.deepEqual(bytesOf(a!, 5, at), { bytes: part, isHeld: false });
  {
    using _ = await readAhead(dir.path);
    assert.deepEqual(bytesOf(a!, 5, at), { bytes: part, isHeld: true });
    assert.deepEqual(bytesOf(b!, 3), { bytes: [7, 8, 9], isHeld: true });
    assert.throws(() => bytesOf(b!, 4), { kind: 'input' }, 'no bytes of another file');
    writeFileSync(b!, Uint8Array.of(1, 2, 3));
    utimesSync(b!, 1, statSync(b!).mtimeMs / 1000 + 1);
    assert.deepEqual(bytesOf(b!, 3), { bytes: [1, 2, 3], isHeld: false });
    using _second = await readAhead(dir.path);
    assert.deepEqual(bytesOf(b!, 3), { bytes: [1, 2, 3], isHeld: false }, 'the first caller holds its files');
    assert.equal(bytesOf(a!, 5).isHeld, true);
  }
  assert.equal(bytesOf(a!, 5, at).isHeld, false);
  await assert.rejects(readAhead(join(dir.path, 'none')));
  using _ = await readAhead(dir.path);
  assert.deepEqual(bytesOf(b!, 3), { bytes: [1, 2, 3], isHeld: true });
});
