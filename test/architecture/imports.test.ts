import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../src/base/index.ts';

const ranks: Readonly<Record<string, number>> = {
  base: 0,
  engine: 1,
  tensor: 2,
  nn: 3,
  io: 3,
  models: 4,
  methods: 4,
  optim: 4,
  data: 4,
  generate: 5,
  tasks: 5,
  export: 5,
  train: 6,
  session: 7,
  compare: 8,
  cli: 9,
};

/** Imports against the ranks, each with its reason. */
const exceptions = new Set([
  'src/io/weights.ts → src/tensor/dtype.ts', // the table of element types only: io stays free of the engine
  'src/io/safetensors.ts → src/tensor/dtype.ts',
]);

const src = join(packageRoot, 'src');
const files = (readdirSync(src, { recursive: true }) as string[])
  .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts'))
  .map((name) => join(src, name));

test('imports go to a lower rank, through index.ts', () => {
  let seen = 0;
  for (const file of files) {
    const folder = relative(src, file).split('/')[0]!;
    if (folder === 'index.ts') continue;
    assert.ok(folder in ranks, `${folder} has no rank`);
    for (const [, target] of readFileSync(file, 'utf8').matchAll(/from '(\.[^']+)'/g)) {
      const to = resolve(dirname(file), target!);
      const other = relative(src, to).split('/')[0]!;
      if (other === folder) continue;
      seen++;
      const edge = `${relative(packageRoot, file)} → ${relative(packageRoot, to)}`;
      if (exceptions.has(edge)) continue;
      assert.ok(ranks[other]! < ranks[folder]!, edge);
      assert.equal(relative(src, to), `${other}/index.ts`, edge);
    }
  }
  assert.ok(files.length >= 90 && seen >= 100, `${files.length} files, ${seen} imports between folders`);
});

test('files keep under their ceilings', () => {
  for (const file of files.filter((f) => !f.includes('.gen.'))) {
    const lines = readFileSync(file, 'utf8').split('\n').length;
    const ceiling = file.includes('/methods/') ? 200 : file.includes('/models/') ? 350 : 400;
    assert.ok(lines <= ceiling, `${relative(packageRoot, file)} has ${lines} lines, ${ceiling} at most`);
  }
});
