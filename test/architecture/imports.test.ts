/** The tree of design §2: ranks, one entry to a folder, no circle, ceilings. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../src/base/index.ts';

const ranks: Readonly<Record<string, number>> = {
  base: 0,
  engine: 1,
  tensor: 2,
  quant: 3,
  nn: 4,
  io: 4,
  distributed: 4,
  models: 5,
  methods: 5,
  optim: 5,
  data: 5,
  adapters: 6,
  generate: 6,
  tasks: 6,
  train: 7,
  compare: 8,
  session: 9,
  serve: 10,
  cli: 11,
};

/** Imports past an index, each with its reason. */
const exceptions = new Set([
  'src/io/weight-source.ts → src/tensor/dtype.ts', // the table of element types only: io stays free of the engine
  'src/io/safetensors.ts → src/tensor/dtype.ts',
]);

const src = join(packageRoot, 'src');
const files = (readdirSync(src, { recursive: true }) as string[])
  .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts'))
  .map((name) => join(src, name))
  .sort();
const named = (file: string) => relative(packageRoot, file);
/** Path below `src`, as folders: ['data', 'chat']. */
const foldersOf = (file: string) => relative(src, dirname(file)).split(sep);

/** Files of this project that a file imports: `from`, `import()` and `new URL(…, import.meta.url)`. */
function importsOf(file: string): string[] {
  const text = readFileSync(file, 'utf8');
  const found = text.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*'(\.[^']+\.ts)'/g);
  return [...found].map(([, target]) => resolve(dirname(file), target!));
}
const imports = new Map(files.map((file) => [file, importsOf(file)]));

test('imports go to a lower rank', () => {
  let seen = 0;
  for (const [file, targets] of imports) {
    const [folder] = foldersOf(file);
    if (folder === '') continue; // the package's entries
    assert.ok(folder! in ranks, `${folder} has no rank`);
    for (const target of targets) {
      const [other] = foldersOf(target);
      if (other === folder) continue;
      seen++;
      assert.ok(ranks[other!]! < ranks[folder!]!, `${named(file)} → ${named(target)}`);
    }
  }
  assert.ok(files.length >= 230 && seen >= 430, `${files.length} files, ${seen} imports between folders`);
});

test('a folder is entered through its index.ts only', () => {
  let seen = 0;
  for (const [file, targets] of imports) {
    for (const target of targets) {
      const edge = `${named(file)} → ${named(target)}`;
      const from = dirname(file);
      // A file may import its siblings, and those of the folders that it is in.
      if (from === dirname(target) || from.startsWith(`${dirname(target)}${sep}`)) continue;
      seen++;
      if (exceptions.has(edge)) continue;
      assert.ok(target.endsWith(`${sep}index.ts`), edge);
    }
  }
  assert.ok(seen >= 490, `${seen} imports from other folders`);
});

test('no import leads in a circle, types included', () => {
  const done = new Set<string>();
  const walk = (file: string, path: readonly string[]): void => {
    const start = path.indexOf(file);
    assert.equal(start, -1, [...path.slice(start), file].map(named).join(' → '));
    if (done.has(file)) return;
    for (const target of imports.get(file) ?? []) walk(target, [...path, file]);
    done.add(file);
  };
  for (const file of files) walk(file, []);
  assert.ok(done.size >= 230, `${done.size} files walked`);
});

test('files keep under their ceilings', () => {
  const ceilings = [
    [/\/methods\//, 200],
    [/\/models\//, 350],
    [/\/train\/loop/, 250],
  ] as const;
  for (const file of files.filter((f) => !f.includes('.gen.'))) {
    const lines = readFileSync(file, 'utf8').split('\n').length;
    const ceiling = ceilings.find(([pattern]) => pattern.test(named(file)))?.[1] ?? 400;
    assert.ok(lines <= ceiling, `${named(file)} has ${lines} lines, ${ceiling} at most`);
  }
});
