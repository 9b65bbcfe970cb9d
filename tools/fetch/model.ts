/**
 * Downloads a real model into the user's cache and links to it from a directory where recipes expect it.
 *   node tools/run.cjs tools/fetch/model.ts smollm2|minilm FOLDER
 */
import { mkdirSync, rmSync, symlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fetchMiniLM, fetchSmolLM2 } from './fetch.ts';

const fetchers = new Map([
  ['smollm2', fetchSmolLM2],
  ['minilm', fetchMiniLM],
]);

const [name = '', folder] = process.argv.slice(2);
const fetcher = fetchers.get(name);
if (!fetcher || !folder) {
  console.error(`usage: node tools/run.cjs tools/fetch/model.ts ${[...fetchers.keys()].join('|')} FOLDER`);
  process.exit(2);
}
const model = fetcher();
const link = join(folder, basename(model));
mkdirSync(folder, { recursive: true });
rmSync(link, { force: true });
symlinkSync(model, link);
console.log(link);
