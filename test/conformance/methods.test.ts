/** Every method on bases of the Llama family, dense and packed: the properties of `properties.ts` over `cases.ts`. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type Adapter, type Method, methods } from '../../src/methods/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { type Base, bases, type Given, methodCases, refusedBases } from './cases.ts';
import { handles, holds, logits } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1); // nothing here is worth a second one
});

function attachGiven(method: Method<unknown>, given: Given, base: Base, model: Model, seed: number): Adapter {
  const config = typeof given === 'function' ? given(base) : given;
  return method.attach(model, method.config.parse(config), seed, savedAdapters(model));
}

let kept = 0;
let notPromised = 0;
let refused = 0;

for (const [name, cases] of Object.entries(methodCases)) {
  const method = methods[name as keyof typeof methods] as unknown as Method<unknown>;
  for (const [config, given] of Object.entries(cases.configs)) {
    for (const base of bases) {
      const attach = (model: Model, seed = 0) => attachGiven(method, given, base, model, seed);
      const why = cases.refuses(base, config);
      test(`${name} (${config}) on ${base.name}${why ? ': refused' : ''}`, () => {
        const live = handles();
        if (why) {
          using model = base.load();
          assert.throws(() => attach(model), why);
          refused++;
        } else {
          const counts = holds({ base, cases, config, attach });
          kept += counts.kept;
          notPromised += counts.notPromised;
        }
        assert.equal(handles(), live, 'live handles at the end');
      });
    }
  }
  cases.wrong.forEach(({ config, why }, i) => {
    test(`${name}: wrong configuration ${i + 1} is refused, and nothing of it stays`, () => {
      using model = bases[0]!.load();
      const c = { model, batch: bases[0]!.batch(model) };
      const [plain, live] = [logits(c), handles()];
      assert.throws(() => attachGiven(method, config, bases[0]!, model, 0), why);
      assert.equal(handles(), live);
      assert.deepEqual(logits(c), plain);
      refused++;
    });
  });
}

for (const { base, why } of refusedBases) {
  test(`${base.name} is refused`, () => {
    const live = handles();
    assert.throws(() => base.load(), why);
    assert.equal(handles(), live);
    refused++;
  });
}

test('so many cases were looked at', (t) => {
  t.diagnostic(`${kept} properties kept, ${notPromised} not promised, ${refused} pairs refused`);
  // By method: configurations × bases × properties.
  const [every, inVain] = [11, 3];
  const lines = [
    // PiSSA and OLoRA on dense bases, LoftQ on the nf4 one; biases without a place in the base; no chance.
    {
      method: 'lora',
      kept: (18 * every + 4 * 6 + 2) * 9 - 7 - 2 * 6 - 2,
      notPromised: 7 + 2 * 6 + 2,
      refused: 10 + 4 * 5 + 2 * 10,
    },
    { method: 'adalora', kept: 2 * every * 9, notPromised: 0, refused: 2 },
    { method: 'ia3', kept: 2 * every * 9 - every, notPromised: every, refused: 2 },
    { method: 'bottleneck', kept: 9 * every * 8, notPromised: 9 * every, refused: 5 },
    { method: 'fusion', kept: 2 * every * 8, notPromised: 2 * every, refused: 4 },
    { method: 'full', kept: 6 * 5, notPromised: 6 * 4, refused: 5 },
    { method: 'prompt', kept: 2 * every * 8, notPromised: 2 * every, refused: 3 },
    { method: 'multitask-prompt', kept: every * 8, notPromised: every, refused: 2 },
    { method: 'prefix', kept: 3 * every * 8, notPromised: 3 * every, refused: 3 },
    { method: 'p-tuning', kept: 2 * every * 8, notPromised: 2 * every, refused: 1 },
  ];
  const sum = (of: 'kept' | 'notPromised' | 'refused') => lines.reduce((all, line) => all + line[of], 0);
  assert.deepEqual(
    { kept, notPromised, refused },
    { kept: sum('kept'), notPromised: sum('notPromised'), refused: sum('refused') + inVain },
  );
});
