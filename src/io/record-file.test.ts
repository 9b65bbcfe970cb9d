import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/support.ts';
import { packageRoot } from '../base/index.ts';
import { RecordFile } from './record-file.ts';

const digest = '0123456789abcdef';
const bytesOf = (number: number) => Uint8Array.from({ length: 5 + 3 * number }, (_, i) => (7 * number + i) % 256);

/** Writes a file with the records 0 to `count` − 1 and returns where each ends. */
function write(path: string, count: number): number[] {
  using file = new RecordFile(path, digest);
  return Array.from({ length: count }, (_, number) => {
    const bytes = bytesOf(number);
    const expected = file.sizeWith(bytes.byteLength);
    file.append(number, bytes);
    assert.equal(file.size, expected);
    return file.size;
  });
}

/** The numbers of the records that can be read, each with the bytes that were written. */
function whole(path: string, count: number): number[] {
  using file = new RecordFile(path, digest);
  return Array.from({ length: count }, (_, number) => number).filter((number) => {
    const into = new Uint8Array(bytesOf(number).length);
    const found = file.read(number, into);
    if (found) assert.deepEqual(into, bytesOf(number));
    return found;
  });
}

test('records are read again by a later process, the last of two with one number', () => {
  using dir = temporary();
  const path = join(dir.path, 'sub', 'records');
  const ends = write(path, 4);
  assert.equal(ends.at(-1), RecordFile.sizeOf([0, 1, 2, 3].map((number) => bytesOf(number).length)));
  assert.deepEqual(whole(path, 5), [0, 1, 2, 3]);
  using file = new RecordFile(path, digest);
  assert.equal(file.read(1, new Uint8Array(3)), false, 'of another length');
  const other = bytesOf(1).map((byte) => byte ^ 255);
  file.append(1, other);
  const into = new Uint8Array(other.length);
  assert.ok(file.read(1, into));
  assert.deepEqual(into, other);
  assert.equal(file.count, 4);
});

test('a file that was cut anywhere holds the whole records before the cut, and goes on', () => {
  using dir = temporary();
  const path = join(dir.path, 'records');
  const ends = write(path, 3);
  const content = readFileSync(path);
  for (let size = 0; size < content.length; size++) {
    writeFileSync(path, content);
    truncateSync(path, size);
    const left = ends.filter((end) => end <= size).length;
    assert.deepEqual(
      whole(path, 3),
      [0, 1, 2].filter((number) => number < left),
      `cut at ${size}`,
    );
    {
      using file = new RecordFile(path, digest);
      file.append(2, bytesOf(2));
    }
    assert.ok(whole(path, 3).includes(2), `cut at ${size}`);
  }
});

test('a byte that changed makes no wrong record', () => {
  using dir = temporary();
  const path = join(dir.path, 'records');
  write(path, 3);
  const content = readFileSync(path);
  let lost = 0;
  for (let at = 24; at < content.length; at++) {
    const damaged = Buffer.from(content);
    damaged[at]! ^= 4;
    writeFileSync(path, damaged);
    const left = whole(path, 3); // compares what it reads
    assert.ok(left.length < 3, `byte ${at}`);
    lost += 3 - left.length;
  }
  assert.ok(lost > 60, `${lost} records were refused`);
});

test('a file of something else begins anew', () => {
  using dir = temporary();
  const path = join(dir.path, 'records');
  write(path, 2);
  {
    using file = new RecordFile(path, 'fedcba9876543210');
    assert.ok(file.replaced);
    assert.equal(file.count, 0);
  }
  using file = new RecordFile(path, 'fedcba9876543210');
  assert.equal(file.replaced, false);
  file.remove();
  assert.deepEqual(spawnSync('ls', [dir.path], { encoding: 'utf8' }).stdout, '');
});

test('a full disk: the record is not there, the others are', (t) => {
  const script = `
    const { RecordFile } = await import(${JSON.stringify(join(packageRoot, 'src', 'io', 'index.ts'))});
    const file = new RecordFile('/mnt/records', '${digest}');
    let number = 0;
    try { for (;; number++) file.append(number, new Uint8Array(5000).fill(number)); } catch (error) { console.log(error.message); }
    const again = new RecordFile('/mnt/records', '${digest}');
    const into = new Uint8Array(5000);
    console.log(number, again.count, [...Array(number).keys()].every((n) => again.read(n, into) && into[4999] === n), again.read(number, into));`;
  const mount = 'mount -t tmpfs -o size=64k none /mnt && exec "$0" --input-type=module -e "$1"';
  const run = spawnSync('unshare', ['-Urm', 'sh', '-c', mount, process.execPath, script], { encoding: 'utf8' });
  if (run.status !== 0) return t.skip('no user namespaces here');
  const [message, counts] = run.stdout.trim().split('\n');
  assert.match(message!, /^\/mnt\/records: The disk is full \(.*could not be written/);
  assert.match(counts!, /^(1[0-3]) \1 true false$/);
});
