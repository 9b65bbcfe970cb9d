/**
 * Methods together: every ordered pair, three of each, a saved adapter beside a new one, and pairs that tasks share. Each is refused
 * with a reason before it is trained, or is trained, saved and loaded: then the loaded logits are those of training.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, saveAdapter, savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type AttachedAdapter, attachMethods, type Method, methods, trainHead } from '../../src/methods/index.ts';
import { type HeadOptions, loadModels } from '../../src/models/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { createOptimizer } from '../../src/optim/index.ts';
import { scope, type Tensor } from '../../src/tensor/index.ts';
import { type MicroBatch, parseRecipe, trainStep } from '../../src/train/index.ts';
import { golden, relativeError, temporary } from '../support.ts';
import { type Base, bases, familyBases, rowsFor } from './bases.ts';
import { savedBottlenecks } from './cases.ts';
import { liveHandles, logits } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

/** The methods that train; what stands beside them is tested in qat.test.ts and layerwise.test.ts. */
type Name = Exclude<keyof typeof methods, 'qat' | 'layerwise'>;
type Choice = { readonly type: Name } & Readonly<Record<string, unknown>>;

const three = { num_virtual_tokens: 3 };

/** A config of each method that suits every family. */
const configs: Readonly<Record<Name, (base: Base) => object>> = {
  lora: () => ({ r: 4 }),
  adalora: () => ({ init_r: 4, target_r: 2 }),
  ia3: () => ({}),
  full: () => ({}),
  bottleneck: () => ({ reduction_factor: 4 }),
  fusion: (base) => ({ adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) }),
  prompt: () => ({ ...three, prompt_tuning_init: 'RANDOM' }),
  'multitask-prompt': () => ({ ...three, num_ranks: 2 }),
  prefix: () => three,
  'p-tuning': () => ({ ...three, encoder_hidden_size: 12 }),
};
const names = Object.keys(configs) as Name[];
const choiceOf = (type: Name, base: Base): Choice => ({ type, ...configs[type](base) });
const writesModel = (type: Name) => (methods[type] as Method<unknown>).writes === 'model';

const counts = { proven: 0, refused: 0, merged: 0 };

interface Trained {
  readonly models: readonly { readonly model: Model; readonly batch: MicroBatch }[];
  readonly adapter: AttachedAdapter;
  /** Further trained parameters: heads of other tasks. */
  readonly others?: ReadonlyMap<string, Tensor>;
}

/** Takes four steps, in turn for each model, in which every parameter changes. */
function train({ models, adapter, others = new Map() }: Trained): void {
  const parameters = new Map([...adapter.parameters, ...others]);
  const start = new Map([...parameters].map(([key, tensor]) => [key, tensor.bytes().slice()]));
  using optimizer = createOptimizer({ type: 'adamw', weight_decay: 0.01 }, parameters);
  for (let step = 0; step < 4; step++) {
    const { model, batch } = models[step % models.length]!;
    adapter.beforeStep?.(step, 4);
    trainStep({ model, parameters, optimizer, adapter, batches: [batch], lr: 1e-2, maxGradNorm: 1, seed: 3, step });
  }
  for (const [key, tensor] of parameters) {
    if (tensor.numel === 0) continue; // a layer whose ranks AdaLoRA pruned
    assert.notEqual(Buffer.compare(start.get(key)!, tensor.bytes()), 0, `${key} was not trained`);
  }
}

/** PiSSA is saved as another update that computes the same, and AdaLoRA without the ranks that it pruned: there, rounding differs. */
const isSavedAsOther = ({ type, init_lora_weights: init }: Choice) => type === 'adalora' || init === 'pissa';

function requireSame(choices: readonly Choice[], loaded: Float32Array, trained: Float32Array): void {
  if (!choices.some(isSavedAsOther)) assert.deepEqual(loaded, trained, 'loaded');
  const error = relativeError(loaded, trained);
  assert.ok(error <= 1e-5, `loaded differs by ${error}`);
}

/** Trains methods on a base, saves and loads them, merges them where they can be, and takes them off. */
function prove(base: Base, choices: readonly Choice[]): void {
  const live = liveHandles();
  {
    using _ = scope();
    using dir = temporary();
    using model = base.load();
    const batch = base.batch(model);
    const plain = logits({ model, batch });
    const adapter = attachMethods(model, choices, 3, savedAdapters(model));
    train({ models: [{ model, batch }], adapter });
    const trained = logits({ model, batch });
    saveAdapter(model, adapter, join(dir.path, 'adapter'), { base: 'b' });
    using again = base.load();
    using _loaded = loadAdapter(again, join(dir.path, 'adapter'));
    requireSame(choices, logits({ model: again, batch }), trained);
    if (adapter.merge) {
      adapter.merge();
      const error = relativeError(logits({ model, batch }), trained);
      assert.ok(error <= 1e-5, `merged differs by ${error}`);
      adapter.unmerge!();
      counts.merged++;
    }
    adapter.detach();
    assert.deepEqual(logits({ model, batch }), plain, 'detached');
  }
  assert.equal(liveHandles(), live, 'live handles');
  counts.proven++;
}

/** Checks that attaching is refused, and leaves the model as it was. */
function refuse(base: Base, choices: readonly Choice[], why: RegExp): void {
  using _ = scope();
  using model = base.load();
  const batch = base.batch(model);
  const plain = logits({ model, batch });
  const live = liveHandles();
  assert.throws(() => attachMethods(model, choices, 3, savedAdapters(model)), why);
  assert.equal(liveHandles(), live, 'live handles');
  assert.deepEqual(logits({ model, batch }), plain);
  counts.refused++;
}

const recipe = (method: unknown, more: object = {}) => ({
  model: 'm',
  method,
  data: [{ prompt: 'a', completion: 'b' }],
  run: { dir: 'run' },
  ...more,
});

/** The count of what was seen since the last call. */
function counted(): typeof counts {
  const seen = { ...counts };
  Object.assign(counts, { proven: 0, refused: 0, merged: 0 });
  return seen;
}

const named = (all: readonly Base[], name: string) => all.find((base) => base.name === name)!;
const llama = named(bases, 'models/qwen2');

// --- every ordered pair

const pairBases = [llama, named(familyBases, 'gpt2-seqcls'), named(familyBases, 'deit')];

for (const base of pairBases) {
  for (const first of names) {
    test(`${first} and each other method on ${base.name}`, () => {
      for (const second of names) {
        const pair = [choiceOf(first, base), choiceOf(second, base)];
        if (![first, second].some(writesModel)) {
          try {
            prove(base, pair);
          } catch (cause) {
            throw new Error(`${first}, ${second}: ${(cause as Error).message}`, { cause });
          }
          continue;
        }
        const why =
          /(recipe, )?method: full trains the base and writes a whole model, so an adapter of .* for a base that no file holds/;
        assert.throws(() => parseRecipe(recipe(pair)), why); // before any model is loaded
        refuse(base, pair, why);
      }
    });
  }
}

test('every ordered pair is proven or refused', (t) => {
  const training = Object.entries(methods).filter(
    ([, method]) => !/settings|nothing/.test((method as Method<unknown>).writes ?? ''),
  );
  assert.deepEqual(
    names,
    training.map(([name]) => name),
    'every method that trains is here',
  );
  const seen = counted();
  t.diagnostic(JSON.stringify(seen));
  const n = names.length;
  assert.deepEqual(seen, { proven: 3 * (n - 1) ** 2, refused: 3 * (2 * n - 1), merged: 3 * 9 });
});

// --- configs that train or change the base's own tensors

/** A config, the tensors of the base that it trains or changes, and the layers that it wraps. */
interface Variant {
  readonly choice: Choice;
  readonly owns?: readonly string[];
  readonly wraps: readonly string[];
}

const every = ['q', 'k', 'v', 'o', 'mlp'];
const biases = ['q.bias', 'k.bias', 'v.bias'];
const tokens = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i);
const rowsOf = (ids: readonly number[]) => ids.map((id) => `row ${id}`);
const variant = (choice: Choice, wraps: readonly string[], owns: readonly string[] = []): Variant => ({
  choice,
  wraps,
  owns,
});

/** On Qwen 2, whose q, k and v have biases, and whose head shares the embeddings' table. */
const variants: Readonly<Record<string, Variant>> = {
  'all linear layers': variant({ type: 'lora', r: 4, target_modules: 'all-linear' }, every),
  dropout: variant({ type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.3 }, every),
  DoRA: variant({ type: 'lora', r: 4, target_modules: 'all-linear', use_dora: true }, every),
  PiSSA: variant({ type: 'lora', r: 4, init_lora_weights: 'pissa' }, ['q', 'v'], ['q.weight', 'v.weight']),
  'all biases': variant({ type: 'lora', r: 4, bias: 'all' }, ['q', 'v'], biases),
  'biases of targets': variant({ type: 'lora', r: 4, bias: 'lora_only' }, ['q', 'v'], ['q.bias', 'v.bias']),
  'biases of updates': variant({ type: 'lora', r: 4, lora_bias: true }, ['q', 'v']),
  'a target of others': variant(
    { type: 'ia3', target_modules: ['down_proj'], feedforward_modules: [], modules_to_save: ['q_proj', 'norm'] },
    ['mlp'],
    ['q.weight', 'q.bias', 'norms'],
  ),
  'head and table': variant(
    { type: 'lora', target_modules: ['o_proj'], modules_to_save: ['lm_head', 'embed_tokens'] },
    ['o'],
    ['head', 'table'],
  ),
  'updates of head and table': variant({ type: 'lora', r: 4, target_modules: ['embed_tokens', 'lm_head', 'k_proj'] }, [
    'k',
  ]),
  'a shared update': variant({ type: 'lora', target_modules: ['embed_tokens', 'k_proj'], ensure_weight_tying: true }, [
    'k',
  ]),
  'a shared copy': variant(
    { type: 'lora', target_modules: ['k_proj'], modules_to_save: ['embed_tokens'], ensure_weight_tying: true },
    ['k'],
    ['head', 'table'],
  ),
  'rows of tokens': variant(
    { type: 'lora', target_modules: ['o_proj'], trainable_token_indices: tokens(0, 50) },
    ['o'],
    rowsOf(tokens(0, 50)),
  ),
  'rows of others': variant(
    { type: 'lora', target_modules: ['o_proj'], trainable_token_indices: tokens(49, 96) },
    ['o'],
    rowsOf(tokens(49, 96)),
  ),
  'scaled outputs': variant({ type: 'ia3', target_modules: ['q_proj', 'k_proj', 'v_proj'], feedforward_modules: [] }, [
    'q',
    'k',
    'v',
  ]),
  'ranks, biases and norms': variant(
    { type: 'adalora', init_r: 4, target_r: 2, bias: 'all', modules_to_save: ['norm'] },
    ['q', 'v'],
    [...biases, 'norms'],
  ),
};

/** Why two variants are refused in this order; undefined: they are not. */
function conflict(first: Variant, second: Variant): RegExp | undefined {
  if (first.owns?.some((tensor) => second.owns?.includes(tensor)))
    return /both train or change '.*' of the base|is changed by another adapter, so it cannot be trained as a copy/;
  if (second === variants.PiSSA && first.wraps.some((layer) => second.wraps.includes(layer)))
    return /method: method 2 \(lora\) changes '.*' of the base, which method 1 .* List method 2 before it/;
  return undefined;
}

for (const [name, first] of Object.entries(variants)) {
  test(`${name}, and each of these configs`, () => {
    for (const [other, second] of Object.entries(variants)) {
      const pair = [first.choice, second.choice];
      const why = conflict(first, second);
      try {
        if (why) refuse(llama, pair, why);
        else prove(llama, pair);
      } catch (cause) {
        throw new Error(`${name}, ${other}: ${(cause as Error).message}`, { cause });
      }
    }
  });
}

test('every ordered pair of these configs is proven or refused', (t) => {
  const { merged: _, ...seen } = counted();
  t.diagnostic(JSON.stringify(seen));
  const all = Object.values(variants);
  const refused = all.flatMap((a) => all.filter((b) => conflict(a, b))).length;
  assert.deepEqual(seen, { proven: all.length ** 2 - refused, refused });
  assert.equal(refused, 35);
});

// --- the same method three times, and a saved adapter as one of a list

const adapterNames = names.filter((name) => !writesModel(name));

for (const name of adapterNames) {
  test(`${name} three times`, () =>
    prove(
      llama,
      [0, 1, 2].map(() => choiceOf(name, llama)),
    ));

  test(`a saved ${name} beside new LoRA, trained on and frozen`, () => {
    using dir = temporary();
    const saved = join(dir.path, 'saved');
    {
      using _ = scope();
      using model = llama.load();
      using adapter = attachMethods(model, [choiceOf(name, llama)], 5, savedAdapters(model));
      train({ models: [{ model, batch: llama.batch(model) }], adapter });
      saveAdapter(model, adapter, saved, { base: 'b' });
    }
    const beside = { type: 'lora', target_modules: ['o_proj'] } as const;
    const old = { ...choiceOf(name, llama), adapter: saved };
    for (const pair of [
      [old, beside],
      [beside, old],
      [{ ...old, train: false }, beside],
      [beside, { ...old, train: false }],
    ])
      prove(llama, pair);
  });
}

test('full fine-tuning stands alone, trains, begins from no adapter and has one task: refused when the recipe is read', () => {
  const full = { type: 'full' };
  const data = [{ text: 'a', label: 'b' }];
  const refused: readonly [object, RegExp][] = [
    [recipe([full, { type: 'lora' }]), /an adapter of lora beside it .* Run full alone/],
    [recipe([{ type: 'lora' }, { type: 'prefix', ...three }, full]), /an adapter of lora, prefix beside it/],
    [recipe([full, full]), /an adapter of full beside it/],
    [recipe({ ...full, train: false }), /full with train: false trains nothing/],
    [recipe({ ...full, adapter: 'saved' }), /cannot begin from an adapter/],
    [recipe(full, { adapter: 'saved' }), /cannot begin from an adapter/],
    [
      recipe(full, { data: undefined, tasks: { a: { data }, b: { data } } }),
      /tasks share an adapter, and full writes a whole model/,
    ],
  ];
  for (const [value, why] of refused) assert.throws(() => parseRecipe(value), why);
  assert.ok(Array.isArray(parseRecipe(recipe([full])).method));
});

test('fields beside a saved adapter that differ from its own are named, and those of training count', () => {
  using _ = scope();
  using dir = temporary();
  const saved = join(dir.path, 'saved');
  using model = llama.load();
  {
    using adapter = attachMethods(model, [{ type: 'lora', r: 4 }], 1);
    saveAdapter(model, adapter, saved, { base: 'b' });
  }
  const again = { type: 'lora', adapter: saved, r: 16, lora_alpha: 8, loraplus_lr_ratio: 16 } as const;
  using adapter = attachMethods(model, [again, { type: 'ia3' }], 1, savedAdapters(model));
  assert.deepEqual(adapter.warnings, [
    `lora: r is ignored, since the adapter to begin from has its own config (${saved})`,
  ]);
  const upper = [...adapter.parameters.keys()].find((key) => key.startsWith('0.') && key.includes('lora_B'))!;
  assert.equal(adapter.learningRate!(upper, 1e-3), 16e-3);
});

test('a saved head that a list of methods does not take over is named', () => {
  using _ = scope();
  using dir = temporary();
  const base = named(familyBases, 'bert-seqcls');
  const saved = join(dir.path, 'saved');
  using model = base.load();
  {
    using adapter = attachMethods(model, [{ type: 'lora' }], 1);
    saveAdapter(model, adapter, saved, { base: 'b' });
  }
  using adapter = attachMethods(model, [{ type: 'lora', adapter: saved }, { type: 'ia3' }], 1, savedAdapters(model));
  assert.deepEqual(adapter.warnings, [
    `the head saved in ${saved} is not used: training begins with the base's, or a new one`,
  ]);
});

test('three of a kind and saved ones are proven', (t) => {
  const { merged: _, ...seen } = counted();
  t.diagnostic(JSON.stringify(seen));
  assert.deepEqual(seen, { proven: 5 * adapterNames.length, refused: 0 });
});

// --- pairs that several tasks share

const heads: readonly HeadOptions[] = [
  { task: 'token-classification', labels: ['O', 'B-x', 'I-x', 'B-y', 'I-y'] },
  { task: 'sequence-classification', labels: ['no', 'maybe', 'yes'] },
];
const bert = named(familyBases, 'bert-tokcls');
const loadForTasks = () => loadModels(golden('families', 'bert-tokcls'), heads, { seed: 1 });

for (const first of adapterNames) {
  test(`${first} and each other method, shared by two tasks`, () => {
    for (const second of adapterNames) {
      using _ = scope();
      using dir = temporary();
      const models = loadForTasks();
      using _models = models[0]!;
      // As a run does: the methods are on the model with the most modules (BERT's pooler is one), each task has its own head.
      const host = models[1]!;
      const pair = [choiceOf(first, bert), choiceOf(second, bert)];
      using adapter = attachMethods(host, pair, 3, savedAdapters(host));
      const otherHead = trainHead(models[0]!)!;
      const tasks = models.map((model) => ({ model, batch: rowsFor(model) }));
      train({ models: tasks, adapter, others: new Map([...otherHead.parameters].map(([k, t]) => [`other.${k}`, t])) });
      tasks.forEach(({ model, batch }, taskNumber) => {
        const head = model === host ? adapter.head : otherHead.parameters;
        const out = join(dir.path, String(taskNumber));
        saveAdapter(model, { ...adapter, head }, out, { base: 'b', host, taskNumber });
        const again = loadForTasks();
        using _again = again[0]!;
        using _loaded = loadAdapter(again[taskNumber]!, out);
        requireSame(pair, logits({ model: again[taskNumber]!, batch }), logits({ model, batch }));
        counts.proven++;
      });
      otherHead.dispose();
    }
  });
}

test('every pair is proven for both of two tasks', (t) => {
  const { merged: _, ...seen } = counted();
  t.diagnostic(JSON.stringify(seen));
  assert.deepEqual(seen, { proven: 2 * adapterNames.length ** 2, refused: 0 });
});
