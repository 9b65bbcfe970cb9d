/** Models of shapes only: what methods attach to them, and what passes keep, is what it is on the loaded model. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { GraftError } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type AttachedAdapter, attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { tensorBytes } from '../../src/nn/index.ts';
import { ops, scope } from '../../src/tensor/index.ts';
import { activationBytes } from '../../src/train/index.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { methodCases } from './cases.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

/** A base of every family, dense and packed in each way. */
const names =
  /^(models\/llama3|gguf\/llama\.gguf (keep|int8)|a wide llama nf4|gpt2|gpt-neox|bert-seqcls|roberta-tokcls|distilbert-seqcls|vit|deit|llama-qa)$/;
const tested = [...bases, ...familyBases].filter(({ name }) => names.test(name));

/** Shapes of a method's parameters, bytes of the weights and of what the method adds; undefined where the model refuses the method. */
function attached(base: Base, choice: MethodChoice, shapesOnly: boolean) {
  using _ = scope();
  using model = base.load({ shapesOnly });
  const weights = tensorBytes(model.root);
  const before = currentEngine().native.memory().bytes;
  const context = { ...savedAdapters(model), encode: () => [1, 2, 3], loading: shapesOnly, shapesOnly };
  let adapter: AttachedAdapter;
  try {
    adapter = attachMethods(model, [choice], 0, context);
  } catch (error) {
    if (error instanceof GraftError && !shapesOnly) return undefined;
    throw error;
  }
  using _adapter = adapter;
  const added = currentEngine().native.memory().bytes - before;
  return { weights, added, shapes: [...adapter.parameters].map(([key, { shape }]) => `${key} [${shape}]`) };
}

const counts = { methods: 0, refused: 0, passes: 0 };
const near = (a: number, b: number, share: number, what: string) =>
  assert.ok(Math.abs(a - b) <= share * Math.abs(b) + 4096, `${what}: ${a}, and ${b} when loaded`);

for (const [type, cases] of Object.entries(methodCases)) {
  for (const [name, config] of Object.entries(cases.configs)) {
    test(`${type} (${name})`, () => {
      for (const base of tested) {
        const choice = { type, ...(typeof config === 'function' ? config(base) : config) } as MethodChoice;
        const wanted = attached(base, choice, false);
        if (!wanted) {
          counts.refused++;
          continue;
        }
        assert.deepEqual(attached(base, choice, true), wanted, base.name);
        counts.methods++;
      }
    });
  }
}

test('parameters of a sketch are numbers, whatever their memory held before', (t) => {
  const base = tested[0]!;
  let checked = 0;
  const refused: string[] = [];
  for (const [type, cases] of Object.entries(methodCases)) {
    for (const [name, config] of Object.entries(cases.configs)) {
      const choice = { type, ...(typeof config === 'function' ? config(base) : config) } as MethodChoice;
      using _ = scope();
      using model = base.load({ shapesOnly: true });
      const context = { ...savedAdapters(model), encode: () => [1, 2, 3], loading: true, shapesOnly: true };
      const attach = () => attachMethods(model, [choice], 0, context);
      const shapes: (readonly number[])[] = [];
      try {
        using first = attach();
        shapes.push(...[...first.parameters.values()].map(({ shape }) => shape));
      } catch (error) {
        if (!(error instanceof GraftError)) throw error;
        refused.push(`${type} (${name})`);
        continue;
      }
      {
        using _freed = scope();
        for (let i = 0; i < 8; i++) for (const shape of shapes) ops.full(shape, Number.NaN);
      }
      using adapter = attach();
      for (const [key, parameter] of adapter.parameters) {
        const numbers = ops.contiguous(parameter).data() as Float32Array;
        assert.ok(numbers.every(Number.isFinite), `${type}: ${key}`);
        checked++;
      }
    }
  }
  t.diagnostic(`${checked} parameters; the model refuses ${refused.join(', ')}`);
  assert.ok(checked > 100, String(checked));
  assert.ok(refused.length < 5, refused.join());
});

const lora = { type: 'lora', target_modules: 'all-linear' } as const;
for (const base of tested) {
  test(`${base.name}: passes keep as much`, () => {
    for (const choice of [lora, { ...lora, use_dora: true }]) {
      const peaks = [true, false].map((shapesOnly) => {
        using _ = scope();
        using model = base.load({ shapesOnly });
        using _adapter = attachMethods(model, [choice], 0, savedAdapters(model));
        const of = activationBytes(model);
        return [false, true].map((checkpointed) => of(checkpointed).peak(512, 4));
      });
      peaks[0]!.forEach((bytes, i) => {
        near(bytes, peaks[1]![i]!, 0.05, 'bytes of a step');
        counts.passes++;
      });
    }
  });
}

test('every config was compared on every base that takes it', (t) => {
  const configs = Object.values(methodCases).reduce((sum, cases) => sum + Object.keys(cases.configs).length, 0);
  t.diagnostic(JSON.stringify(counts));
  assert.equal(counts.methods + counts.refused, configs * tested.length);
  assert.ok(counts.methods >= 440, `${counts.methods} attached`);
  assert.equal(counts.passes, tested.length * 4);
});
