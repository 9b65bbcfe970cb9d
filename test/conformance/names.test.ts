/** The names that families give for layers, heads and targets: each exists in the module tree of a model, for every task. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { readJsonObject } from '../../src/io/index.ts';
import { families, headOf, loadModel } from '../../src/models/index.ts';
import { headsOf, Linear, type Model, type Module, moduleAt, namedModules, type TaskName } from '../../src/nn/index.ts';
import { golden } from '../support.ts';

before(() => startEngine());

const checkpoints = ['models', 'families'].flatMap((folder) =>
  readdirSync(golden(folder)).map((name) => golden(folder, name)),
);
const typeOf = (dir: string) => String(readJsonObject(join(dir, 'config.json')).model_type);

const isLanguageModel = (dir: string) => headOf(dir).name === 'causal-lm';

/** Labels for a task that has them. */
const labelsFor: Partial<Record<TaskName, readonly string[]>> = {
  'sequence-classification': ['a', 'b', 'c'],
  'token-classification': ['O', 'B-x', 'I-x', 'B-y'],
  'image-classification': ['a', 'b', 'c'],
};

const seen = { models: 0, paths: 0, names: 0 };

/** Checks that each path of `sites` is a module, for every block where it has a `*`. */
function requirePaths({ root, sites, layers }: Model): void {
  const { block, embeddings, attention, mlp } = sites;
  const paths = [block, embeddings, ...headsOf(sites), ...Object.values(attention), ...Object.values(mlp)];
  for (const path of paths) {
    const numbers = path.includes('*') ? Array.from({ length: layers }, (_, i) => String(i)) : [''];
    for (const number of numbers) {
      assert.ok(moduleAt(root, path.replace('*', number)), path);
      seen.paths++;
    }
  }
}

/** The top-level modules and the last parts of the paths of a family's models, and its blocks. */
interface Tree {
  readonly top: Set<string>;
  readonly last: Set<string>;
  readonly inBlock: Set<string>;
  readonly transposed: Set<string>;
  readonly paths: Set<string>;
}

const trees = new Map(
  families.map((family): [typeof family, Tree] => [
    family,
    { top: new Set(), last: new Set(), inBlock: new Set(), transposed: new Set(), paths: new Set() },
  ]),
);

for (const dir of checkpoints) {
  const family = families.find(({ types }) => types.includes(typeOf(dir)))!;
  for (const task of family.tasks) {
    if (task === 'causal-lm' && !isLanguageModel(dir)) continue; // such a head is not made new
    test(`${dir.split('/').slice(-2).join('/')} for ${task}: heads, sites and targets are modules`, () => {
      const labels = labelsFor[task];
      using model = loadModel(dir, { task, ...(labels && { labels }) });
      requirePaths(model);
      const modules = [...namedModules(model.root)] as [string, Module][];
      const paths = modules.map(([path]) => path);
      const { defaultTargets } = model.sites;
      for (const target of defaultTargets)
        assert.ok(
          paths.some((path) => path.endsWith(`.${target}`)),
          `the default target ${target}`,
        );
      const heads = headsOf(model.sites);
      assert.equal(heads.length > 0, task !== 'embedding');
      if (model.task.labels.length > 0)
        for (const head of heads) assert.ok(family.heads.includes(head), `${head} is not one of the family's heads`);
      const tree = trees.get(family)!;
      const blockPrefix = new RegExp(`^${model.sites.block.replaceAll('.', '\\.').replace('*', '\\d+')}\\.`);
      for (const [path, module] of modules) {
        tree.paths.add(path);
        tree.top.add(path.split('.')[0]!);
        tree.last.add(path.split('.').at(-1)!);
        if (blockPrefix.test(path)) tree.inBlock.add(path.replace(blockPrefix, ''));
        if (module instanceof Linear && module.transposed) tree.transposed.add(path.split('.').at(-1)!);
      }
      seen.models++;
    });
  }
}

test('every name that a family gives of itself is in one of its models', () => {
  for (const [family, { top, last, inBlock, transposed, paths }] of trees) {
    const name = family.types[0]!;
    const require = (names: readonly string[], known: ReadonlySet<string>, what: string) => {
      for (const each of names) {
        assert.ok(known.has(each), `${name}: ${what} '${each}' is in no model`);
        seen.names++;
      }
    };
    require(family.heads, top, 'head');
    require(family.headLayers ?? [], top, 'head layer');
    require(family.transposed ?? [], last, 'transposed layer');
    assert.deepEqual([...transposed].sort(), [...(family.transposed ?? [])].sort(), `${name}: transposed layers`);
    const { rowHead = [], updates } = family.adapterHub ?? {};
    require(rowHead.map((path) => path.split('.').at(-1)!), last, 'layer of the row head');
    require([...Object.keys(updates?.attention ?? {}), ...Object.keys(updates?.mlp ?? {})], inBlock, 'updated layer');
    assert.ok(paths.size > 0, `${name} has no golden`);
  }
});

test('so many names were checked', (t) => {
  t.diagnostic(JSON.stringify({ checkpoints: checkpoints.length, families: families.length, ...seen }));
  assert.deepEqual(seen, { models: 153, paths: 2566, names: 49 });
});
