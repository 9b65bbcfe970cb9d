import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import test from 'node:test';
import { z } from 'zod';
import { temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { type MethodChoice, methods } from '../methods/index.ts';
import { huggingFaceNames } from './hugging-face-names.ts';
import { parseRecipe, type Recipe, readRecipe, recipeSchema, recipesOf } from './recipe.ts';

const text = `
model: org/name
method: { type: lora }
data: { train: rows.jsonl, eval: ../test.jsonl }
run: { dir: out }
`;

test('paths are seen from the recipe, those given by hand from the working directory', () => {
  using dir = temporary();
  const file = dir.put('recipe.yaml', text);
  const recipe = readRecipe(file);
  assert.equal(recipe.data.train, join(dir.path, 'rows.jsonl'));
  assert.equal(recipe.data.eval, resolve(dir.path, '../test.jsonl'));
  assert.equal(recipe.run.dir, join(dir.path, 'out'));
  assert.equal(recipe.model, 'org/name', 'a hub id stays');
  const given = readRecipe(file, ['data.train=mine.jsonl', 'run.dir=/elsewhere', 'adapter=a', 'model=base.gguf']);
  assert.equal(given.data.train, resolve('mine.jsonl'));
  assert.equal(given.run.dir, '/elsewhere');
  assert.equal(given.adapter, resolve('a'));
  assert.equal(given.model, 'base.gguf');

  const begun = dir.put(
    'prompts.yaml',
    text.replace(
      '{ type: lora }',
      '[{ type: multitask-prompt, num_virtual_tokens: 4, prompt_tuning_init_state_dict_path: first }, { type: lora, adapter: b }]',
    ),
  );
  const start = 'prompt_tuning_init_state_dict_path';
  const paths = ({ method }: { method: unknown }) => {
    const [prompt, lora] = method as MethodChoice[];
    return [prompt![start], lora!.adapter];
  };
  assert.deepEqual(paths(readRecipe(begun)), [join(dir.path, 'first'), join(dir.path, 'b')]);
  const others = readRecipe(begun, [`method.0.${start}=first`, 'method.1.adapter=b']);
  assert.deepEqual(paths(others), [resolve('first'), resolve('b')]);
});

test('a model beside the recipe is found from everywhere', () => {
  using dir = temporary();
  mkdirSync(join(dir.path, 'org', 'name'), { recursive: true });
  assert.equal(readRecipe(dir.put('recipe.yaml', text)).model, join(dir.path, 'org', 'name'));
});

test('overrides are YAML: numbers, lists, maps, and parts that the file does not have', () => {
  using dir = temporary();
  const recipe = readRecipe(dir.put('recipe.yaml', text), [
    'train.lr=1e-4',
    'method.target_modules=[q_proj, v_proj]',
    'method.rank_pattern={up_proj: 4}',
    'data.held_out=0.5',
  ]);
  assert.equal(recipe.train.lr, 1e-4);
  assert.deepEqual((recipe.method as MethodChoice).target_modules, ['q_proj', 'v_proj']);
  assert.deepEqual((recipe.method as MethodChoice).rank_pattern, { up_proj: 4 });
  assert.equal(recipe.data.held_out, 0.5);
  assert.throws(() => readRecipe(join(dir.path, 'recipe.yaml'), ['train.lr']), /--set: 'train\.lr' is not of the form/);
});

test('defaults are filled in, and all mistakes are told at once', () => {
  const recipe = parseRecipe({ model: 'm', method: { type: 'full' }, data: { train: '/a' }, run: { dir: '/b' } });
  assert.deepEqual([recipe.train.batch_size, recipe.eval.keep, recipe.quantize], [8, 'best', 'none']);
  assert.throws(
    () => parseRecipe({ model: 'm', method: { type: 'lora', rank: 8 }, data: { train: '/a' }, train: { lr: 0 } }),
    (error) => {
      assert.ok(error instanceof GraftError);
      assert.equal((error.data.mistakes as string[]).length, 3);
      assert.match(error.message, /method: unknown key 'rank'.*train\.lr.*run is missing/);
      return true;
    },
  );
});

test('several tasks: paths of each, by hand too; the recipe of each is one of a single task', () => {
  using dir = temporary();
  const tasks =
    'tasks: { a: { task: embedding, data: { train: a.jsonl } }, b: { data: { train: b.jsonl, eval: c.jsonl } } }';
  const file = dir.put('recipe.yaml', text.replace(/^data: .*$/m, tasks));
  const recipe = readRecipe(file, ['tasks.b.data.eval=mine.jsonl', 'tasks.b.weight=2', 'adapter=begun']);
  assert.equal(recipe.data.train, join(dir.path, 'a.jsonl'), 'those of the first');
  assert.equal(recipe.tasks!.b!.data.eval, resolve('mine.jsonl'));
  assert.equal(recipe.tasks!.b!.data.max_length, 1024);
  const [[first, a], [second, b]] = recipesOf(recipe) as [[string, Recipe], [string, Recipe]];
  assert.deepEqual(
    [first, second, a.task, b.task, b.data.train],
    ['a', 'b', 'embedding', undefined, join(dir.path, 'b.jsonl')],
  );
  assert.ok([a, b].every(({ tasks, adapter }) => tasks === undefined && adapter === undefined));
  assert.deepEqual(recipesOf(readRecipe(dir.put('one.yaml', text)))[0]![0], undefined);
});

test('short settings of the optimizer: moved to it, and refused where it has none or they are given twice', () => {
  const parsed = (train: object) =>
    parseRecipe({ model: 'm', method: { type: 'lora' }, data: '/a', run: { dir: '/b' }, train }).train.optimizer;
  assert.deepEqual(parsed({ weight_decay: 0.1, beta2: 0.98 }), {
    ...{ type: 'adamw', beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.1 },
  });
  assert.deepEqual(parsed({ weight_decay: 0.1, optimizer: { type: 'sgd' } }), {
    ...{ type: 'sgd', momentum: 0.9, nesterov: false, weight_decay: 0.1 },
  });
  const refused: readonly [object, RegExp][] = [
    [
      { beta1: 0.8, optimizer: { type: 'sgd' } },
      /train\.beta1 is no setting of the optimizer sgd.*are momentum, nesterov, weight_decay/,
    ],
    [{ eps: 1e-6, optimizer: { type: 'lion' } }, /train\.eps is no setting of the optimizer lion/],
    [{ beta1: 0.8, optimizer: { beta1: 0.9 } }, /train\.beta1 and train\.optimizer\.beta1 are the same setting/],
    [
      { optimizer: { type: 'adamw', scale: 4 } },
      /train\.optimizer: unknown key 'scale' \(allowed: type, beta1, beta2, eps, weight_decay\)/,
    ],
    [
      { optimizer: { type: 'adam' } },
      /train\.optimizer\.type: must be one of adamw, adamw8bit, sgd.* \(did you mean 'adamw'\?\)/,
    ],
    [{ optimizer: 'lion' }, /train\.optimizer: must be an object with named fields, but is "lion"/],
    [
      { optimizer: { type: 'sgd', momentum: 0, nesterov: true } },
      /train\.optimizer\.nesterov: needs a momentum above 0/,
    ],
    [{ optimizer: { type: 'galore', rank: 0 } }, /train\.optimizer\.rank: must be above 0/],
    [{ optimizer: { type: 'galore', proj_type: 'full' } }, /proj_type: must be one of std, reverse_std, left, right/],
  ];
  for (const [train, message] of refused)
    assert.throws(
      () => parsed(train),
      (error) => error instanceof GraftError && message.test(error.message),
      String(message),
    );
});

test('fields that people know from transformers, TRL and PEFT are answered with their place here', (t) => {
  const recipe = { model: 'm', method: { type: 'lora' }, data: { train: '/a' }, run: { dir: '/b' } };
  const { properties } = z.toJSONSchema(recipeSchema, { io: 'input' });
  const known = (path: string): boolean => {
    const [first, ...rest] = path.split('.');
    if (first === 'method') return rest.length === 0 || rest[0] === 'type' || anyMethodHas(rest[0]!);
    const section = properties![first!] as { properties?: object } | undefined;
    return section !== undefined && (rest.length === 0 || rest[0]! in (section.properties ?? {}));
  };
  const anyMethodHas = (field: string) =>
    Object.values(methods).some(({ config }) => field in (config as unknown as z.ZodObject).shape);
  const names = Object.entries(huggingFaceNames);
  let paths = 0;
  for (const [name, answer] of names) {
    const message = `recipe: unknown key '${name}' (in Graft: ${answer}).`;
    const topLevel = Object.hasOwn(properties!, name);
    assert.ok(!topLevel, `${name} is a field of ours`);
    assert.throws(() => parseRecipe({ ...recipe, [name]: 1 }), { message });
    const [path] = /^[a-z]+(\.[a-z_0-9]+)+|^(model|task|labels|quantize|adapter|method)\b/.exec(answer) ?? [];
    if (path === undefined) continue;
    assert.ok(known(path), `${name}: ${path}`);
    paths++;
  }
  assert.ok(names.length >= 90 && paths >= 55, `${names.length} names, ${paths} of them fields`);
  assert.throws(
    () => parseRecipe({ ...recipe, method: { type: 'ia3', alpha: 8 } }),
    /unknown key 'alpha' \((?!in Graft)/,
  );
  assert.throws(
    () => parseRecipe({ ...recipe, method: { type: 'lora', alpha: 8 } }),
    /\(in Graft: method\.lora_alpha\)/,
  );
  t.diagnostic(`${names.length} names answered, ${paths} of them with a field`);
});
