/**
 * Draws the pages of the committed comparisons from their results, without any training.
 *   node tools/run.cjs tools/codegen/comparisons.ts [RESULTS.json …]
 * Without arguments: docs/comparison/*.json. Each page is written next to its results, as .html.
 */
import { readdirSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';
import { page, readResults } from '../../src/compare/index.ts';
import type { GeneratedFile } from './markdown.ts';

const folder = join('docs', 'comparison');

const pageOf = (file: string): string => page(readResults(file));

const pathOf = (file: string): string => file.replace(/\.json$/, '.html');

/** Returns the page of each committed comparison, with its path below the package. */
export const comparisonPages = (): GeneratedFile[] =>
  readdirSync(join(packageRoot, folder))
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => ({ path: join(folder, pathOf(name)), text: pageOf(join(packageRoot, folder, name)) }));

if (import.meta.main) {
  const files = process.argv.slice(2);
  const pages =
    files.length > 0
      ? files.map((file) => ({ path: pathOf(file), text: pageOf(file) }))
      : comparisonPages().map(({ path, text }) => ({ path: join(packageRoot, path), text }));
  for (const { path, text } of pages) {
    writeFileSync(path, text);
    console.log(relative(process.cwd(), path));
  }
}
