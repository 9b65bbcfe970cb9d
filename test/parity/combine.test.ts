/** Weighted combinations of LoRA adapters compared with PEFT's add_weighted_adapter. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { combineAdapters, loadAdapter, saveAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { attachMethods, type Combination } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { golden, integers, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

interface Case {
  readonly name: string;
  readonly adapters: readonly string[];
  readonly weights: readonly number[];
  readonly combination_type: Combination;
  readonly rank: number;
  readonly scaling: number;
  readonly svd_rank?: number;
  readonly density?: number;
  readonly majority_sign_method?: 'total' | 'frequency';
}

const folder = (...parts: string[]) => golden('peft', 'weighted', ...parts);
const { cases, provenance } = JSON.parse(readFileSync(folder('golden.json'), 'utf8')) as {
  cases: Case[];
  provenance: { tolerance: { logits: number; product: number } };
};
const { tolerance } = provenance;
const read = (file: string) => readTensors(file).tensors;
const counts = { products: 0, logits: 0, masks: 0 };

test('there is a golden for thirteen cases', () => assert.equal(cases.length, 13));

for (const { name, adapters, weights, combination_type: how, rank, scaling, ...options } of cases) {
  test(`${name}: the combined adapter and its logits equal PEFT's`, () => {
    using _ = scope();
    using dir = temporary();
    const want = read(folder('golden.safetensors'));
    const out = join(dir.path, 'out');
    const result = combineAdapters(
      adapters.map((adapter) => folder(adapter)),
      out,
      {
        weights,
        how,
        ...options,
        draw(module, side, i, shape) {
          const part = side === 'delta' ? side : `${side}.weight`;
          const mask = want.get(`mask.${name}.base_model.model.${module}.${part}.${adapters[i]}`)!;
          assert.deepEqual(mask.shape, shape);
          counts.masks++;
          return ops.toCopy(mask, { dtype: 'float32' });
        },
      },
    );
    assert.deepEqual(result, { rank, modules: 6 });
    const got = read(join(out, 'adapter_model.safetensors'));
    const product = (tensors: ReadonlyMap<string, Tensor>, at: string) =>
      numbers(noGrad(() => ops.mm(tensors.get(`${at}.lora_B.weight`)!, tensors.get(`${at}.lora_A.weight`)!)));
    for (const key of got.keys()) {
      const at = key.replace(/\.lora_[AB]\.weight$/, '');
      assert.deepEqual(got.get(key)!.shape, want.get(`${name}.${key}`)!.shape);
      // After a decomposition, only the product is unique.
      if (!how.endsWith('svd')) {
        const error = relativeError(numbers(got.get(key)!), numbers(want.get(`${name}.${key}`)!));
        assert.ok(error <= 1e-5, `${key} differs by ${error}`);
      }
      const error = relativeError(product(got, at), product(want, `${name}.${at}`));
      assert.ok(error <= Math.max(tolerance.product, 1e-5), `the product of ${at} differs by ${error}`);
      counts.products++;
    }
    using model = loadModel(golden('models', 'llama3'));
    using adapter = loadAdapter(model, out);
    assert.deepEqual(adapter.warnings, []);
    // PEFT keeps use_rslora of the first adapter, which scales the new one by √r too much; Graft does not.
    if (scaling !== 1) return assert.equal(name, 'cat-rslora-first');
    const error = relativeError(logitsOf(model, integers(want.get('ids')!)), numbers(want.get(`logits.${name}`)!));
    assert.ok(error <= 1e-4, `the logits differ by ${error}`);
    counts.logits++;
    return undefined;
  });
}

test('two adapters on one model add up, as in PEFT; combined with cat they compute the same', () => {
  using _ = scope();
  using dir = temporary();
  const want = read(folder('golden.safetensors'));
  const ids = integers(want.get('ids')!);
  using model = loadModel(golden('models', 'llama3'));
  {
    using _a = loadAdapter(model, folder('a'));
    using _b = loadAdapter(model, folder('b'));
    assert.ok(relativeError(logitsOf(model, ids), numbers(want.get('logits.both')!)) <= 2e-5);
  }
  const out = join(dir.path, 'both');
  combineAdapters([folder('a'), folder('b')], out, { weights: [1, 1], how: 'cat' });
  using _both = loadAdapter(model, out);
  assert.ok(relativeError(logitsOf(model, ids), numbers(want.get('logits.both')!)) <= 2e-5);
});

test('with rank patterns and adapters on different layers, the combined adapter loads and is their sum', () => {
  using _ = scope();
  using dir = temporary();
  using model = loadModel(golden('models', 'llama2'));
  const ids = [5, 9, 2, 77, 30];
  const saved = (name: string, fields: object, seed: number) => {
    const config = { type: 'lora' as const, init_lora_weights: false, r: 2, target_modules: ['q_proj', 'o_proj'] };
    using adapter = attachMethods(model, [{ ...config, ...fields }], seed);
    saveAdapter(model, adapter, join(dir.path, name), { base: 'b' });
    return join(dir.path, name);
  };
  const said = (...adapters: string[]) => {
    using stack = new DisposableStack();
    for (const adapter of adapters) stack.use(loadAdapter(model, adapter));
    return logitsOf(model, ids);
  };
  const pattern = { rank_pattern: { o_proj: 4 } };
  const patterned = [saved('a', pattern, 1), saved('b', pattern, 2)];
  combineAdapters(patterned, join(dir.path, 'linear'), { weights: [1, 0], how: 'linear' });
  assert.ok(relativeError(said(join(dir.path, 'linear')), said(patterned[0]!)) <= 1e-5);
  const apart = [saved('low', { layers_to_transform: [0] }, 3), saved('high', { layers_to_transform: [1] }, 4)];
  combineAdapters(apart, join(dir.path, 'both'), { weights: [1, 1], how: 'linear' });
  assert.ok(relativeError(said(join(dir.path, 'both')), said(...apart)) <= 1e-5);
});

test('updates of embeddings are combined too, and the seed decides which values DARE drops', () => {
  using _ = scope();
  using dir = temporary();
  using model = loadModel(golden('models', 'llama2'));
  const ids = [5, 9, 2, 77, 30];
  const saved = [1, 2].map((seed) => {
    const config = {
      type: 'lora',
      target_modules: ['embed_tokens', 'up_proj'],
      init_lora_weights: false,
      r: 3,
    } as const;
    using adapter = attachMethods(model, [config], seed);
    const path = join(dir.path, `${seed}`);
    saveAdapter(model, adapter, path, { base: 'b' });
    return path;
  });
  const combined = (name: string, how: Combination, seed = 0) => {
    combineAdapters(saved, join(dir.path, name), { weights: [0.5, -2], how, seed });
    using _adapter = loadAdapter(model, join(dir.path, name));
    return logitsOf(model, ids);
  };
  const [cat, svd] = [combined('cat', 'cat'), combined('svd', 'svd')];
  assert.ok(relativeError(cat, logitsOf(model, ids)) > 1e-2);
  assert.ok(relativeError(svd, cat) > 1e-3, 'rank 3 is too little for two of rank 3');
  combineAdapters(saved, join(dir.path, 'svd6'), { weights: [0.5, -2], how: 'svd', svd_rank: 6 });
  {
    using _adapter = loadAdapter(model, join(dir.path, 'svd6'));
    assert.ok(relativeError(logitsOf(model, ids), cat) <= 1e-4, 'of rank 6 it is exact');
  }
  const first = combined('dare', 'dare_linear', 7);
  assert.deepEqual(combined('dare again', 'dare_linear', 7), first);
  assert.notDeepEqual(combined('dare otherwise', 'dare_linear', 8), first);
});

test('adapters that cannot be combined are refused with the reason', () => {
  using dir = temporary();
  const [a, b, c] = ['a', 'b', 'c'].map((name) => folder(name)) as [string, string, string];
  const out = join(dir.path, 'out');
  const refused: readonly [RegExp, () => unknown][] = [
    [
      /ranks 4, 6, and ties needs equal ranks. Use cat/,
      () => combineAdapters([a, c], out, { weights: [1, 1], how: 'ties' }),
    ],
    [/2 adapters and 1 weights/, () => combineAdapters([a, b], out, { weights: [1], how: 'cat' })],
    [/density must be from 0 to 1/, () => combineAdapters([a, b], out, { weights: [1, 1], how: 'ties', density: 2 })],
    [
      /only LoRA adapters/,
      () => combineAdapters([a, golden('peft', 'ia3-llama3')], out, { weights: [1, 1], how: 'cat' }),
    ],
    [/more than A and B/, () => combineAdapters([golden('peft', 'dora-llama3')], out, { weights: [1], how: 'cat' })],
    [
      /are for different bases/,
      () => combineAdapters([a, golden('lora', 'qwen2-rslora')], out, { weights: [1, 1], how: 'cat' }),
    ],
  ];
  for (const [why, act] of refused) assert.throws(act, why);
  const again = () => combineAdapters([a], out, { weights: [1], how: 'cat' });
  assert.deepEqual(again(), { rank: 4, modules: 6 });
  assert.throws(again, /out/, 'what is there already is not replaced');
});

test('every golden was compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual(counts, { products: 13 * 12, logits: 12, masks: 72 });
});
