/** Files that a generator writes are what it would write now. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import test from 'node:test';
import { parse } from 'yaml';
import { z } from 'zod';
import { packageRoot } from '../../src/base/index.ts';
import { readComparison } from '../../src/compare/index.ts';
import { methods } from '../../src/methods/index.ts';
import { type Recipe, readRecipe } from '../../src/train/index.ts';
import { comparisonPages } from '../../tools/codegen/comparisons.ts';
import { documents } from '../../tools/codegen/docs.ts';
import { countsOf, messages } from '../../tools/codegen/messages.ts';
import { generate, outFile } from '../../tools/codegen/ops.ts';

const recipes = readdirSync(join(packageRoot, 'recipes')).filter((name) => name.endsWith('.yaml'));

test('generated files are fresh', async (t) => {
  const { text, count } = await generate();
  assert.ok(count >= 100, `${count} operators`);
  const files = [{ path: relative(packageRoot, outFile), text }, ...(await documents())];
  for (const file of files) {
    assert.equal(readFileSync(join(packageRoot, file.path), 'utf8'), file.text, `${file.path}: npm run generate`);
  }
  assert.equal(files.length, 11 + Object.keys(methods).length);
  t.diagnostic(`${files.length} files compared`);
});

test('the page of messages lists what there is of every kind', (t) => {
  const list = messages();
  const floors = {
    ...{ usage: 150, input: 150, mismatch: 8, environment: 20, state: 8, interrupted: 1, numeric: 5, engine: 40 },
    ...{ error: 4, warning: 8, command: 12, argument: 5, option: 45, help: 1, field: 150, text: 70 },
  };
  const counts = countsOf(list);
  for (const [kind, floor] of Object.entries(floors))
    assert.ok(
      counts.get(kind)! >= floor,
      `${counts.get(kind)} messages of the kind ${kind}, at least ${floor} expected`,
    );
  assert.ok(list.length >= 750, `${list.length} messages`);
  const find = (file: string, kind: string, text: RegExp, hint: RegExp) =>
    list.some((m) => m.file === file && m.kind === kind && text.test(m.text) && hint.test(m.hint));
  const found = {
    'a plain error': find('src/base/files.ts', 'environment', /^The disk is full$/, /^Free some space/),
    'an error made by a function of another file': find(
      'src/data/tokenizer/bpe.ts',
      'input',
      /merge/,
      /tokenizer\.json/,
    ),
    'a check of an operator': find('native/ops/lora.cc', 'engine', /^A must .*\[r, …\].* got /, /^$/),
  };
  assert.deepEqual(
    Object.entries(found).filter(([, isThere]) => !isThere),
    [],
  );
  t.diagnostic(`${list.length} messages: ${[...counts].map(([kind, count]) => `${kind} ${count}`).join(', ')}`);
});

test('pages of comparisons are drawn from their results', () => {
  const pages = comparisonPages();
  for (const { path, text } of pages) {
    const same = readFileSync(join(packageRoot, path), 'utf8') === text;
    assert.ok(same, `${path}: node tools/run.cjs tools/codegen/comparisons.ts`);
  }
  assert.ok(pages.length >= 3);
});

test('every recipe is good, for the schema of the program and for that of editors', (t) => {
  const schemaFile = join(packageRoot, 'docs', 'recipe.schema.json');
  const schema = z.fromJSONSchema(JSON.parse(readFileSync(schemaFile, 'utf8')));
  for (const name of recipes) {
    const file = join(packageRoot, 'recipes', name);
    const recipe = readRecipe(file);
    const text = readFileSync(file, 'utf8');
    const link = /^# yaml-language-server: \$schema=(\S+)\n/.exec(text)?.[1];
    assert.ok(link && existsSync(join(dirname(file), link)), `${name} points editors to the schema`);
    const value = parse(text) as Pick<Recipe, 'data' | 'tasks'> & { train: object; method: object };
    const [first] = value.tasks ? Object.values(value.tasks) : [value];
    assert.equal(
      recipe.data.train,
      resolve(dirname(file), first!.data.train as string),
      'paths are relative to the recipe',
    );
    const problems = (v: unknown) => (schema.safeParse(v).error?.issues ?? []).map((issue) => issue.path.join('.'));
    assert.deepEqual(problems(value), [], name);
    assert.deepEqual(problems({ ...value, train: { ...value.train, lr: 'fast' } }), ['train.lr']);
    assert.equal(problems({ ...value, method: { type: 'lora', rank: 8 } }).length, 1, 'a field that LoRA has not');
    assert.equal(
      problems({ ...value, method: [value.method, { type: 'prefix', num_virtual_tokens: 0 }] }).length,
      1,
      'a prefix of no tokens',
    );
    assert.equal(problems({ ...value, trian: {} }).length, 1);
  }
  assert.ok(recipes.length >= 4);
  t.diagnostic(`${recipes.length} recipes read`);
});

test('every comparison is good, for the program and for the schema of editors', (t) => {
  const dir = join(packageRoot, 'recipes', 'compare');
  const schema = z.fromJSONSchema(JSON.parse(readFileSync(join(packageRoot, 'docs', 'compare.schema.json'), 'utf8')));
  const names = readdirSync(dir).filter((name) => name.endsWith('.yaml'));
  for (const name of names) {
    const file = join(dir, name);
    assert.ok(readComparison(file).contenders.size >= 2, name);
    const text = readFileSync(file, 'utf8');
    assert.match(text, /^# yaml-language-server: \$schema=\.\.\/\.\.\/docs\/compare\.schema\.json\n/, name);
    const value = parse(text) as { compare?: object };
    const problems = (v: unknown) => (schema.safeParse(v).error?.issues ?? []).map((issue) => issue.path.join('.'));
    assert.deepEqual(problems(value), [], name);
    assert.deepEqual(problems({ ...value, compare: { ...value.compare, only: 'lora' } }), ['compare.only']);
    const methods = { mine: { method: { type: 'prefix', num_virtual_tokens: 0 } } };
    assert.equal(problems({ ...value, compare: { ...value.compare, methods } }).length, 1, 'a prefix of no tokens');
  }
  assert.ok(names.length >= 1);
  t.diagnostic(`${names.length} comparisons read`);
});
