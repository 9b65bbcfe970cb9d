/** Where the cache is: never in the current directory (XDG Base Directory Specification 0.8). */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/support.ts';
import { packageRoot } from './paths.ts';

type Variables = Readonly<Partial<Record<'HOME' | 'XDG_CACHE_HOME' | 'GRAFT_CACHE' | 'TMPDIR', string>>>;

/** Runs a script in an empty directory with only these of the variables set, and returns its output. */
function run(script: string, variables: Variables): { out: string; written: string[] } {
  using dir = temporary();
  const env: NodeJS.ProcessEnv = { ...process.env };
  for (const name of ['HOME', 'XDG_CACHE_HOME', 'GRAFT_CACHE', 'TMPDIR', 'NODE_TEST_CONTEXT']) delete env[name];
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: dir.path,
    env: { ...env, ...variables },
    encoding: 'utf8',
  });
  return { out: stdout + stderr, written: readdirSync(dir.path) };
}

const base = join(packageRoot, 'src', 'base', 'index.ts');
const script = `import { cacheDir } from '${base}';
try { console.log(cacheDir('hub', 'x')) } catch ({ kind, message, place }) { console.log(kind, place, message) }`;

const cases: readonly [Variables, RegExp][] = [
  [{ HOME: '/h' }, /^\/h\/\.cache\/graft\/hub\/x$/m],
  [{ HOME: '/h', XDG_CACHE_HOME: '/x' }, /^\/x\/graft\/hub\/x$/m],
  [{ HOME: '/h', XDG_CACHE_HOME: '/x', GRAFT_CACHE: '/g' }, /^\/g\/hub\/x$/m],
  [{ HOME: '/h', XDG_CACHE_HOME: '', GRAFT_CACHE: '' }, /^\/h\/\.cache\/graft\/hub\/x$/m],
  [{ HOME: '/h', XDG_CACHE_HOME: '/x', GRAFT_CACHE: '' }, /^\/x\/graft\/hub\/x$/m],
  [{ HOME: '', GRAFT_CACHE: '/g' }, /^\/g\/hub\/x$/m],
  [{}, /^\/.*\/\.cache\/graft\/hub\/x$/m], // the home directory of the password database
  [{ HOME: '' }, /^environment HOME .*HOME is not set, or empty/m],
  [{ HOME: 'here' }, /^environment HOME .*HOME is a relative path, here/m],
  [{ HOME: '/h', XDG_CACHE_HOME: 'cache' }, /^environment XDG_CACHE_HOME .*a relative path, cache/m],
  [{ HOME: '/h', GRAFT_CACHE: './cache' }, /^environment GRAFT_CACHE .*a relative path, \.\/cache/m],
  [{ HOME: '', TMPDIR: '' }, /^environment HOME .*HOME is not set, or empty/m],
];

for (const [variables, expected] of cases) {
  test(`the cache with ${JSON.stringify(variables)}`, () => {
    const { out, written } = run(script, variables);
    assert.match(out, expected);
    assert.deepEqual(written, []);
  });
}

test('a download without a home directory is refused before anything is written', () => {
  const hub = join(packageRoot, 'src', 'io', 'index.ts');
  const download = `import { resolveModel } from '${hub}';
await resolveModel('org/name').then(console.log, ({ kind, message }) => console.log(kind, message))`;
  const { out, written } = run(download, { HOME: '' });
  assert.match(out, /^environment .*HOME is not set, or empty/m);
  assert.deepEqual(written, []);
});
