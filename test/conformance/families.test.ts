/** Every method, and several methods together, on every family and task, with the task's head trained too. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { familyBases } from './bases.ts';
import { type MethodCases, methodCases } from './cases.ts';
import { type FamilyCase, familyCases } from './family-cases.ts';
import { checkProperties, liveHandles } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

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
