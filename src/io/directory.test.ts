import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { randomFrom, temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { recoverDirectory, writeDirectory, writeFile } from './index.ts';

const here = JSON.stringify(join(import.meta.dirname, 'index.ts'));

describe('writeDirectory', () => {
  it('writes, replaces and waits for a promise', async () => {
    using dir = temporary();
    const target = join(dir.path, 'deep', 'model');
    writeDirectory(target, (aside) => {
      mkdirSync(join(aside, 'sub'));
      writeFileSync(join(aside, 'sub', 'a'), 'one');
      assert(!existsSync(target));
    });
    assert.equal(readFileSync(join(target, 'sub', 'a'), 'utf8'), 'one');
    await writeDirectory(target, async (aside) => {
      await wait(1);
      writeFileSync(join(aside, 'b'), 'two');
      assert(existsSync(join(target, 'sub', 'a')));
    });
    assert.deepEqual(readdirSync(target), ['b']);
    assert.deepEqual(readdirSync(join(dir.path, 'deep')), ['model']);
  });

  it('leaves the old contents and nothing else when writing fails', async () => {
    using dir = temporary();
    const target = join(dir.path, 'model');
    writeDirectory(target, (aside) => writeFileSync(join(aside, 'a'), 'one'));
    const fails = (aside: string) => {
      writeFileSync(join(aside, 'a'), 'half');
      throw new Error('mine');
    };
    assert.throws(() => writeDirectory(target, fails), /^Error: mine$/);
    await assert.rejects(
      writeDirectory(target, async (aside) => fails(aside)),
      /^Error: mine$/,
    );
    assert.throws(
      () => writeDirectory(target, () => readFileSync('/no/such/file')),
      /^GraftError: \/no\/such\/file: There is no such file/,
    );
    assert.deepEqual(readdirSync(dir.path), ['model']);
    assert.equal(readFileSync(join(target, 'a'), 'utf8'), 'one');
    assert.throws(() => writeDirectory(join(target, 'a'), () => {}), /exists already and is not a directory/);
  });

  it('is never seen half-written, whenever the process is killed', { timeout: 60_000 }, async () => {
    using dir = temporary();
    const target = join(dir.path, 'model');
    const random = randomFrom(1);
    const script = `
      import { writeFileSync } from 'node:fs';
      const { writeDirectory } = await import(${here});
      for (let i = 0; ; i++) {
        writeDirectory(${JSON.stringify(target)}, (aside) => {
          for (let f = 0; f < 8; f++) writeFileSync(aside + '/' + f, process.pid + ':' + i + ' '.repeat(20000));
        });
        if (i === 0) console.log('started');
      }`;
    let seen = 0;
    for (let round = 0; round < 6; round++) {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const ended = new Promise((resolve) => child.once('exit', resolve));
      await new Promise((resolve) => child.stdout.once('data', resolve));
      await wait(random() * 60);
      child.kill('SIGKILL');
      await ended;
      recoverDirectory(target);
      assert.deepEqual(readdirSync(dir.path), ['model'], 'leftovers are cleared');
      const files = readdirSync(target).map((name) => readFileSync(join(target, name), 'utf8'));
      assert.equal(files.length, 8);
      assert.equal(new Set(files).size, 1, 'all files are of one writing');
      seen++;
    }
    assert.equal(seen, 6);
  });

  it('puts back what a run that was killed between the two renames had moved away', () => {
    using dir = temporary();
    const target = join(dir.path, 'model');
    writeDirectory(target, (aside) => writeFileSync(join(aside, 'a'), 'one'));
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    renameSync(target, join(dir.path, `.model.old-${dead}-1-x`));
    mkdirSync(join(dir.path, `.model.new-${dead}-1-y`));
    mkdirSync(join(dir.path, '.model.new-of-mine'));
    mkdirSync(join(dir.path, `.model.new-${process.ppid}-0-z`)); // of a live process
    recoverDirectory(target);
    assert.deepEqual(
      readdirSync(dir.path).sort(),
      [`.model.new-${process.ppid}-0-z`, '.model.new-of-mine', 'model'].sort(),
    );
    assert.equal(readFileSync(join(target, 'a'), 'utf8'), 'one');
  });

  it('says that the disk is full and leaves nothing', (t) => {
    const script = `
      const { writeDirectory, writeFile } = await import(${here});
      const { readdirSync, writeFileSync } = await import('node:fs');
      const report = (write) => { try { write(); console.log('?'); } catch (error) { console.log(error.message); } };
      report(() => writeDirectory('/mnt/model', (aside) => writeFileSync(aside + '/a', Buffer.alloc(1e6))));
      report(() => writeFile('/mnt/file', (write) => { for (let i = 0; i < 100; i++) write(Buffer.alloc(1e4)); }));
      console.log(readdirSync('/mnt').length);`;
    const mount = 'mount -t tmpfs -o size=128k none /mnt && exec "$0" --input-type=module -e "$1"';
    const run = spawnSync('unshare', ['-Urm', 'sh', '-c', mount, process.execPath, script], { encoding: 'utf8' });
    if (run.status !== 0) return t.skip('no user namespaces here');
    const full = (path: string) =>
      `${path}: The disk is full (0 MB free): it could not be written. Free some space or choose another directory, then run it again.`;
    assert.deepEqual(run.stdout.trim().split('\n'), [full('/mnt/model'), full('/mnt/file'), '0']);
  });
});

describe('writeFile', () => {
  it('replaces a file as a whole or not at all', () => {
    using dir = temporary();
    const path = dir.put('f', 'old');
    writeFile(path, (write) => {
      write(Buffer.from('n'));
      write(Buffer.from('ew'));
      assert.equal(readFileSync(path, 'utf8'), 'old');
    });
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert.throws(
      () =>
        writeFile(path, (write) => {
          write(Buffer.from('half'));
          throw new GraftError('input', 'no');
        }),
      /no\./,
    );
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert.deepEqual(readdirSync(dir.path), ['f']);
  });

  it('keeps a symbolic link, and never replaces a device or a directory', () => {
    using dir = temporary();
    const path = dir.put('f', 'old');
    const link = join(dir.path, 'link');
    symlinkSync(path, link);
    writeFile(link, (write) => write(Buffer.from('new')));
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert(lstatSync(link).isSymbolicLink());
    assert.throws(
      () => writeFile('/dev/null', () => {}),
      /\/dev\/null: The path exists already and is not a regular file/,
    );
    assert.throws(() => writeFile(dir.path, () => {}), /is not a regular file/);
    symlinkSync(join(dir.path, 'real'), join(dir.path, 'run'));
    mkdirSync(join(dir.path, 'real'));
    writeDirectory(join(dir.path, 'run'), (aside) => writeFileSync(join(aside, 'a'), 'one'));
    assert.deepEqual(readdirSync(join(dir.path, 'real')), ['a']);
  });
});
