/** Every method on models of the Llama family, dense and quantised: the properties of `properties.ts` for the configs of `cases.ts`. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { type Adapter, type Method, methods } from '../../src/methods/index.ts';
import type { Model } from '../../src/nn/index.ts';
import { type Base, bases, refusedBases } from './bases.ts';
import { type ConfigCase, methodCases } from './cases.ts';
import { checkProperties, liveHandles, logits } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1); // these models are too small for a second thread
});

function attachCase(method: Method<unknown>, config: ConfigCase, base: Base, model: Model, seed: number): Adapter {
  const fields = typeof config === 'function' ? config(base) : config;
  return method.attach(model, method.config.parse(fields), seed, savedAdapters(model));
}

const seen = new Map<string, { held: number; notApplicable: number; refused: number }>();

for (const [name, cases] of Object.entries(methodCases)) {
  const method = methods[name as keyof typeof methods] as unknown as Method<unknown>;
  const counts = { held: 0, notApplicable: 0, refused: 0 };
  seen.set(name, counts);
  for (const [configName, config] of Object.entries(cases.configs)) {
    for (const base of bases) {
      const attach = (model: Model, seed = 0) => attachCase(method, config, base, model, seed);
      const why = cases.refuses(base, configName);
      test(`${name} (${configName}) on ${base.name}${why ? ' is refused' : ''}`, () => {
        const live = liveHandles();
        if (why) {
          using model = base.load();
          assert.throws(() => attach(model), why);
          counts.refused++;
        } else {
          const { held, notApplicable } = checkProperties({ base, cases, config: configName, attach });
          counts.held += held;
          counts.notApplicable += notApplicable;
        }
        assert.equal(liveHandles(), live, 'live handles at the end');
      });
    }
  }
  cases.invalid.forEach(({ config, why }, i) => {
    test(`${name}: invalid config ${i + 1} is refused, and the model is unchanged`, () => {
      const base = bases[0]!;
      using model = base.load();
      const c = { model, batch: base.batch(model) };
      const [plain, live] = [logits(c), liveHandles()];
      assert.throws(() => attachCase(method, config, base, model, 0), why);
      assert.equal(liveHandles(), live);
      assert.deepEqual(logits(c), plain);
      counts.refused++;
    });
  });
}

for (const { base, why } of refusedBases) {
  test(`${base.name} is refused`, () => {
    const live = liveHandles();
    assert.throws(() => base.load(), why);
    assert.equal(liveHandles(), live);
  });
}

test('every method was tested as often as its cases say', (t) => {
  const expected = Object.entries(methodCases).map(([name, { counts }]) => [name, counts] as const);
  assert.deepEqual(Object.fromEntries(seen), Object.fromEntries(expected));
  const sum = (field: 'held' | 'notApplicable' | 'refused') => [...seen.values()].reduce((all, c) => all + c[field], 0);
  t.diagnostic(
    `${sum('held')} properties hold, ${sum('notApplicable')} do not apply, ${sum('refused')} configs are refused`,
  );
});
