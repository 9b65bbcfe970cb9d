/** Every method, and several methods together, on every family and task, with the task's head trained too. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods, type MethodChoice, type methods } from '../../src/methods/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { type Base, familyBases } from './bases.ts';
import { type MethodCases, methodCases, savedBottlenecks } from './cases.ts';
import { checkProperties, liveHandles } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

/** A method with a config that suits every family. */
interface FamilyCase {
  readonly method: keyof typeof methods | 'together';
  readonly config: string;
  choices(base: Base): readonly MethodChoice[];
  /** The error on this model; undefined: it can be attached. */
  refuses?(model: Model): RegExp | undefined;
}

const one = (
  method: keyof typeof methods,
  config: string,
  fields: object,
  more: Partial<FamilyCase> = {},
): FamilyCase => ({
  method,
  config,
  choices: () => [{ type: method, ...fields }],
  ...more,
});

/** For cases that image models refuse, since they read no tokens. */
const refusedForImages = (why: RegExp) => ({ refuses: ({ image }: Model) => (image ? why : undefined) });

const three = { num_virtual_tokens: 3 };

/** The configs name no module of a family: the targets are the defaults of PEFT and AdapterHub. */
const familyCases: readonly FamilyCase[] = [
  one('lora', 'defaults', {}),
  one('lora', 'every linear layer', { target_modules: 'all-linear', r: 4 }),
  one('lora', 'DoRA', { target_modules: 'all-linear', use_dora: true, r: 4 }),
  one('adalora', 'defaults', { init_r: 4, target_r: 2 }),
  one('ia3', 'defaults', {}),
  one('full', 'defaults', {}),
  one('prompt', 'random start', { ...three, prompt_tuning_init: 'RANDOM' }),
  one(
    'prompt',
    'tokens of the vocabulary',
    { ...three, prompt_tuning_init: 'SAMPLE_VOCAB' },
    refusedForImages(/SAMPLE_VOCAB needs token embeddings, and this model has none/),
  ),
  one(
    'lora',
    'rows of tokens',
    { trainable_token_indices: Array.from({ length: 45 }, (_, i) => 2 * i + 1) },
    refusedForImages(/'\w+\.embeddings\.patch_embeddings\.projection', which is neither an embedding/),
  ),
  one('multitask-prompt', 'one task', { ...three, num_ranks: 2 }),
  one('prefix', 'random start', three),
  one('prefix', 'projected', { ...three, prefix_projection: true, encoder_hidden_size: 12 }),
  one('p-tuning', 'MLP', { ...three, encoder_hidden_size: 12 }),
  one('bottleneck', 'defaults', { reduction_factor: 4 }),
  one('bottleneck', 'Houlsby', { config: 'double_seq_bn', reduction_factor: 4 }),
  one('bottleneck', 'parallel', { config: 'par_bn' }),
  one(
    'fusion',
    'dynamic',
    {},
    {
      choices: (base) => [
        { type: 'fusion', adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) },
      ],
    },
  ),
  {
    method: 'together',
    config: 'P-tuning, bottleneck and LoRA',
    choices: () => [
      { type: 'p-tuning', ...three, encoder_hidden_size: 12 },
      { type: 'bottleneck', reduction_factor: 4 },
      { type: 'lora', r: 4 },
    ],
  },
];

/** Returns the expectations of `cases.ts`, adapted to these models. */
function casesOf(method: FamilyCase['method']): MethodCases {
  const cases = methodCases[method === 'together' ? 'p-tuning' : (method as keyof typeof methodCases)];
  const lr = { together: 1e-2, fusion: 3e-2 }[method as string] ?? cases.lr;
  // Start and end of an answer are a softmax over tokens, which does not change when all scores get the same bias.
  const withoutGradient = ['qa_outputs\\.bias$', ...(cases.withoutGradient ? [cases.withoutGradient.source] : [])];
  return { ...cases, lr, withoutGradient: new RegExp(withoutGradient.join('|')) };
}

let held = 0;
let notApplicable = 0;
let refused = 0;

for (const { method, config, choices, refuses } of familyCases) {
  for (const base of familyBases) {
    test(`${method} (${config}) on ${base.name}`, () => {
      const live = liveHandles();
      const attach = (model: Model, seed = 0) => attachMethods(model, choices(base), seed, savedAdapters(model));
      using model = base.load();
      const why = refuses?.(model);
      if (why) {
        assert.throws(() => attach(model), why);
        refused++;
        return;
      }
      const counts = checkProperties({ base, cases: casesOf(method), config, attach, headTrained: true });
      held += counts.held;
      notApplicable += counts.notApplicable;
      model[Symbol.dispose]();
      assert.equal(liveHandles(), live, 'live handles at the end');
    });
  }
}

test('every property was checked on every model', (t) => {
  t.diagnostic(
    `${familyCases.length} cases × ${familyBases.length} models: ${held} properties hold, ${notApplicable} do not apply, ${refused} are refused`,
  );
  const [models, imageModels, properties] = [familyBases.length, 4, 9];
  // Ten cases cannot be merged, (IA)³ has no random values, and full fine-tuning has no merging, no undoing, no second adapter, no seed.
  const expected = 10 * models + (models - imageModels) + models + 4 * models;
  assert.deepEqual(
    { held, notApplicable, refused },
    {
      held: (familyCases.length * models - 2 * imageModels) * properties - expected,
      notApplicable: expected,
      refused: 2 * imageModels,
    },
  );
});
