/** Writes `dist/`, the package as it is published: JavaScript with types, the addon's sources, the command line. */
import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../src/base/index.ts';

const dist = join(packageRoot, 'dist');
rmSync(dist, { recursive: true, force: true });
const tsc = join(packageRoot, 'node_modules', '.bin', 'tsc');
const { status } = spawnSync(tsc, ['-p', 'tsconfig.build.json'], { cwd: packageRoot, stdio: 'inherit' });
if (status !== 0) process.exit(status ?? 1);
for (const name of ['bin', 'native', 'docs', 'recipes', 'README.md', 'LICENSE', 'CHANGELOG.md']) {
  cpSync(join(packageRoot, name), join(dist, name), { recursive: true });
}
const {
  private: _,
  scripts: __,
  devDependencies: ___,
  ...manifest
} = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
const exportOf = (path: string) => ({ types: `./lib/${path}.d.ts`, default: `./lib/${path}.js` });
manifest.exports = { '.': exportOf('index'), './*': exportOf('*/index') };
// Not in the checkout's own package.json: a checkout brings a Node that is new enough, and npm on an older one would warn.
manifest.engines = { node: '>=24' };
writeFileSync(join(dist, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
