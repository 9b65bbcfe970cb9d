import assert from 'node:assert/strict';
import { cpSync, mkdirSync, renameSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { golden, temporary } from '../../../test/support.ts';
import { AllowedFolders } from './allowed.ts';
import { AdapterFolder } from './folder.ts';

const source = golden('lora', 'llama3-all-linear');

/** A folder that is looked at by hand, and what it told. */
function watched() {
  const root = temporary();
  const dir = join(root.path, 'adapters');
  mkdirSync(dir);
  const told: string[] = [];
  const lines: string[] = [];
  const folder = new AdapterFolder(dir, new AllowedFolders([dir]), {
    onAdapter: async (name, _, isNew) => void told.push(`${isNew ? 'new' : 'again'} ${name}`),
    onRemoved: async (name) => void told.push(`gone ${name}`),
    log: (line) => lines.push(line),
  });
  const taken = () => told.splice(0);
  return {
    root: root.path,
    at: (...parts: string[]) => join(dir, ...parts),
    folder,
    taken,
    lines,
    [Symbol.dispose]: () => root[Symbol.dispose](),
  };
}

test('an adapter is told of once two looks find it the same: new, written again, gone', async () => {
  using here = watched();
  const { folder, at, taken } = here;
  cpSync(source, at('a'), { recursive: true });
  await folder.look();
  assert.deepEqual(taken(), []);
  await folder.look();
  assert.deepEqual(taken(), ['new a']);
  await folder.look();
  assert.deepEqual(taken(), []);
  utimesSync(at('a', 'adapter_model.safetensors'), 1, 1);
  await folder.look();
  await folder.look();
  assert.deepEqual(taken(), ['again a']);
  renameSync(at('a'), at('b'));
  await folder.look();
  await folder.look();
  assert.deepEqual(taken(), ['gone a', 'new b']);
});

test('what is half written, broken, or leads elsewhere is not told of, and is once it is whole', async () => {
  using here = watched();
  const { folder, at, taken, lines } = here;
  for (const name of ['cut', 'b.part', '.c', 'd.tmp']) cpSync(source, at(name), { recursive: true });
  truncateSync(at('cut', 'adapter_model.safetensors'), 1000);
  mkdirSync(at('empty'));
  mkdirSync(at('other'));
  writeFileSync(at('other', 'readme.txt'), 'no adapter');
  cpSync(source, join(here.root, 'outside'), { recursive: true });
  symlinkSync(join(here.root, 'outside'), at('link'));
  cpSync(source, at('inner'), { recursive: true });
  rmSync(at('inner', 'adapter_model.safetensors'));
  symlinkSync(join(here.root, 'outside', 'adapter_model.safetensors'), at('inner', 'adapter_model.safetensors'));
  await folder.look();
  await folder.look();
  await folder.look();
  assert.deepEqual(taken(), []);
  assert.equal(lines.length, 4, `each is said once: ${lines.join('\n')}`);
  for (const name of ['cut', 'other', 'link', 'inner'])
    assert.ok(
      lines.some((line) => line.includes(`'${name}'`)),
      name,
    );
  rmSync(at('cut'), { recursive: true });
  cpSync(source, at('cut'), { recursive: true });
  await folder.look();
  await folder.look();
  assert.deepEqual(taken(), ['new cut']);
});

test('a folder that may be loaded from: paths and links that lead out are refused without telling what is there', () => {
  using root = temporary();
  const [inside, outside] = [join(root.path, 'in'), join(root.path, 'out')];
  for (const dir of [inside, outside]) cpSync(source, join(dir, 'a'), { recursive: true });
  symlinkSync(join(outside, 'a'), join(inside, 'link'));
  mkdirSync(join(inside, 'b'));
  symlinkSync('/etc/passwd', join(inside, 'b', 'adapter_config.json'));
  const folders = new AllowedFolders([inside]);
  assert.equal(folders.dirOf('a'), join(inside, 'a'));
  assert.equal(folders.dirOf(join(inside, 'a')), join(inside, 'a'));
  const refused = [
    '..',
    '../out/a',
    'a/../../out/a',
    'a/../a',
    join(outside, 'a'),
    '/etc',
    'link',
    'b',
    '.',
    inside,
    'none',
    'a\0b',
    'a/adapter_config.json',
    '..\\out',
  ];
  for (const path of refused) {
    assert.throws(
      () => folders.dirOf(path),
      (error: Error & { status?: number }) => {
        assert.equal(error.status, 400, path);
        assert.doesNotMatch(error.message, /ENOENT|\/out|passwd/, path);
        return true;
      },
    );
  }
  assert.throws(() => new AllowedFolders([]).dirOf('a'), { status: 400 });
});
