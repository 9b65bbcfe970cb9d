/** Steps of every method on every model by LibTorch's own operators, as on a device without fused ones: the same losses and gradients. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { savedAdapters } from '../../src/adapters/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { kernelsOn } from '../../src/nn/index.ts';
import { onDevice, scope } from '../../src/tensor/index.ts';
import { batchLoss } from '../../src/train/index.ts';
import { bases, familyBases } from './bases.ts';
import { familyCases } from './family-cases.ts';
import { differences, inBfloat16, type Step, stepOf } from './steps.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
  // Some bases write their files when they are first loaded, which needs numbers.
  for (const base of bases) base.load()[Symbol.dispose]();
});

/** The twins that a GPU can take, which run on any device. */
const ofGpu = kernelsOn('cuda:0', 'float32', false);

/** Every method on every family, and LoRA on dense and packed Llamas. */
const pairs = [...bases, ...familyBases].flatMap((base) =>
  familyCases
    .filter(({ method }) => familyBases.includes(base) || method === 'lora')
    .map((familyCase) => ({ base, familyCase, name: `${familyCase.method} (${familyCase.config}) on ${base.name}` })),
);

const counts = { equal: 0, rounded: 0, shapes: 0 };
/** The differences of the gradients. */
const all: Readonly<Record<'float32' | 'bfloat16', number[]>> = { float32: [], bfloat16: [] };
const most = { float32: { loss: 0, gradient: 0 }, bfloat16: { loss: 0, gradient: 0 } };

/** Compares a step with the fused one in float32. */
function compare(
  name: string,
  dtype: keyof typeof most,
  fused: Step,
  found: Step,
  largest: { loss: number; gradient: number },
) {
  const { loss, gradient } = differences(fused, found);
  assert.ok(
    loss < largest.loss && gradient < largest.gradient,
    `${name} in ${dtype}: the loss differs by ${loss}, gradients by ${gradient}`,
  );
  all[dtype].push(gradient);
  most[dtype] = { loss: Math.max(most[dtype].loss, loss), gradient: Math.max(most[dtype].gradient, gradient) };
}

for (const base of [...bases, ...familyBases]) {
  test(`composite kernels in float32 and bfloat16 on ${base.name}`, () => {
    for (const { familyCase, name } of pairs.filter((pair) => pair.base === base)) {
      const fused = stepOf(base, familyCase, {});
      if (!fused) continue;
      const exact = stepOf(base, familyCase, { kernels: ofGpu })!;
      compare(name, 'float32', fused, exact, { loss: 1e-5, gradient: 1e-4 });
      counts.equal++;
      if (familyCase.method === 'full') {
        assert.throws(() => inBfloat16(ofGpu, (options) => stepOf(base, familyCase, options)), /is held in bfloat16/);
        continue;
      }
      const rounded = inBfloat16(ofGpu, (options) => stepOf(base, familyCase, options))!;
      compare(name, 'bfloat16', fused, rounded, { loss: 0.1, gradient: 0.8 });
      counts.rounded++;
    }
  });

  test(`shapes of a step on ${base.name}`, () => {
    for (const { familyCase, name } of pairs.filter((pair) => pair.base === base)) {
      const { choices, refuses } = familyCase;
      const choice = choices(base); // may save adapters, which have numbers
      onDevice('meta', () => {
        using _ = scope();
        using model = base.load();
        if (refuses?.(model)) return;
        using adapter = attachMethods(model, choice, 0, savedAdapters(model));
        const loss = batchLoss(model, base.batch(model));
        loss.backward();
        assert.deepEqual([loss.device, loss.shape], ['meta', []], name);
        for (const [key, { grad, shape }] of adapter.parameters) {
          if (grad) assert.deepEqual([grad.device, grad.shape], ['meta', shape], `${name}: ${key}`);
        }
        counts.shapes++;
      });
    }
  });
}

test('all were compared', (t) => {
  for (const [dtype, { loss, gradient }] of Object.entries(most)) {
    t.diagnostic(`${dtype}: losses to ${loss.toExponential(1)}, gradients to ${gradient.toExponential(1)}`);
  }
  t.diagnostic(`${counts.equal} steps are equal, ${counts.rounded} in bfloat16; ${counts.shapes} have the shapes`);
  // Models of a few numbers round badly now and then; most do not.
  const median = all.bfloat16.sort((a, b) => a - b)[all.bfloat16.length >> 1]!;
  t.diagnostic(`bfloat16: half of the gradients to ${median.toExponential(1)}`);
  assert.ok(median < 0.03, String(median));
  const refused = 2 * 4; // two cases need tokens, which four models do not read
  const steps = pairs.length - refused;
  assert.deepEqual(counts, { equal: steps, rounded: steps - familyBases.length, shapes: steps });
});
