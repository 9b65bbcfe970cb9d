/** Makes `dist/`, the package as it is published: JavaScript with types, the addon's sources, the command. */
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
const published = (path: string) => ({ types: `./lib/${path}.d.ts`, default: `./lib/${path}.js` });
manifest.exports = { '.': published('index'), './*': published('*/index') };
writeFileSync(join(dist, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
