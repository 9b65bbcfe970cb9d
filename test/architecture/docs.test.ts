/** What documents say can be followed: their links lead somewhere, their recipes are recipes, no page of a method is missing. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import test, { before } from 'node:test';
import { parse } from 'yaml';
import { packageRoot } from '../../src/base/index.ts';
import { type Outcome, type Results, readComparison } from '../../src/compare/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { methods } from '../../src/methods/index.ts';
import { families } from '../../src/models/index.ts';
import { parseRecipe } from '../../src/train/index.ts';
import { comparisons, pairs } from '../../tools/codegen/methods.ts';
import { temporary } from '../support.ts';

const inFolder = (folder: string) =>
  readdirSync(join(packageRoot, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(packageRoot, folder, name));

const pages = [
  ...readdirSync(packageRoot)
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(packageRoot, name)),
  ...inFolder('docs'),
];

/** Names by which a page's headings are linked, as GitHub makes them. */
const anchorsOf = (page: string) =>
  [...readFileSync(page, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}\p{M} _-]/gu, '')
      .replaceAll(' ', '-'),
  );

before(async () => {
  await startEngine();
});

test('links lead to files and headings that are there', (t) => {
  let links = 0;
  for (const page of pages) {
    for (const [, link] of readFileSync(page, 'utf8').matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link!)) continue;
      const [path, anchor] = link!.split('#') as [string, string | undefined];
      const target = path === '' ? page : join(dirname(page), path);
      const from = `${relative(packageRoot, page)}: ${link}`;
      assert.ok(existsSync(target), from);
      if (anchor !== undefined) assert.ok(anchorsOf(target).includes(anchor), from);
      links++;
    }
  }
  assert.ok(links >= 75, `${links} links`);
  t.diagnostic(`${links} links on ${pages.length} pages followed`);
});

test('recipes on pages are good', (t) => {
  using dir = temporary();
  const file = join(dir.path, 'compare.yaml');
  let recipes = 0;
  for (const page of pages) {
    for (const [, text] of readFileSync(page, 'utf8').matchAll(/^```yaml\n(.*?)^```$/gms)) {
      const given = parse(text!) as Record<string, unknown>;
      if (given.compare) {
        writeFileSync(file, text!);
        assert.ok(readComparison(file).contenders.size >= 2);
      } else {
        const rest = { model: 'model', ...(!given.tasks && { data: { train: 'rows.jsonl' } }), run: { dir: 'out' } };
        parseRecipe({ ...rest, ...given }, `${relative(packageRoot, page)}, recipe ${recipes + 1}`);
      }
      recipes++;
    }
  }
  assert.ok(recipes >= 13, `${recipes} recipes`);
  t.diagnostic(`${recipes} recipes read`);
});

test('every page of a method has a formula, a picture, a recipe and the place of its comparison', () => {
  for (const name of Object.keys(methods)) {
    const text = readFileSync(join(packageRoot, 'docs', 'methods', `${name}.md`), 'utf8');
    const picture = readFileSync(join(packageRoot, 'docs', 'methods', `${name}.svg`), 'utf8');
    assert.match(text, /^ {4}\S/m, `${name}: formula`);
    assert.ok(text.includes(`](${name}.svg)`), `${name}: picture`);
    assert.match(picture, /^<svg [^>]*viewBox="0 0 \d+ \d+"/);
    assert.doesNotMatch(picture, /href|url\((?!#)|@import|@font-face/, `${name}: the picture stands alone`);
    assert.match(text, new RegExp(`type: ${name}\\b`), `${name}: recipe`);
    assert.match(text, /\*\*Use it\*\*[^]*\*\*Rather not\*\*[^]*\*\*Saved\*\*[^]*\*\*Traps\.\*\*/, name);
    assert.ok(text.split('\n').length <= 75, `${name}: a screen and a half`);
  }
});

test('the table of pairs asked every method of every family and task', (t) => {
  const all = pairs();
  const tasks = families.reduce((sum, family) => sum + family.tasks.length, 0);
  assert.equal(all.length, tasks * Object.keys(methods).length);
  const refused = all.filter(({ refusal }) => refusal !== undefined);
  assert.deepEqual(refused, []);
  t.diagnostic(`${all.length} pairs asked`);
});

test("a method's page shows its rows of a comparison, and those of full fine-tuning", () => {
  using dir = temporary();
  const outcome = (name: string, method: string, value: number): Outcome => ({
    name,
    method,
    lr: 1e-3,
    metric: { name: 'accuracy', value, low: value - 0.1, high: value + 0.1, count: 40, of: 'rows' },
    trainable: 1000,
    parameters: 1e6,
    losses: [2, 1],
    tokensPerSecond: 100,
    peakMb: 500,
    size: 4000,
    seconds: 9,
    machine: 'A, 2 threads, mixed',
  });
  const outcomes = [outcome('full', 'full', 0.5), outcome('dora', 'lora', 0.7), outcome('both', 'prompt + lora', 0.6)];
  const results: Results = {
    title: 'a model, rows',
    date: '2026-01-02',
    before: undefined,
    failed: [],
    outcomes,
    loss: 1.5,
  };
  writeFileSync(join(dir.path, 'mails.json'), JSON.stringify(results));
  const first = (page: string) => [...page.matchAll(/^\| ([\w-]+) \| \d/gm)].map(([, name]) => name);
  assert.deepEqual(first(comparisons('lora', dir.path)), ['dora', 'both', 'full'], 'best first');
  assert.deepEqual(first(comparisons('prompt', dir.path)), ['both', 'full']);
  assert.deepEqual(first(comparisons('full', dir.path)), ['full']);
  assert.equal(comparisons('ia3', dir.path), '');
  assert.doesNotMatch(comparisons('lora', dir.path), /mails\.html/, 'no link to a picture that is not there');
  writeFileSync(join(dir.path, 'mails.html'), '');
  const linked = comparisons('lora', dir.path);
  assert.match(linked, /^## Comparison\n\n\| method \| result \| metric \|/);
  const rows = linked.match(
    /^\| [\w-]+ \| \d.* \| accuracy % \|.*\| \[a model, rows, 2026-01-02\]\(.*mails\.html\) \|$/gm,
  );
  assert.equal(rows?.length, 3, 'every row says on what, and leads to all methods');
});
