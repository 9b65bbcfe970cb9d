/** What is attached before its values are read: a trial pass, which plans the memory of a run, computes with it. */
import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { attachMethods, type MethodChoice } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { ops, scope } from '../../src/tensor/index.ts';
import { golden, numbers } from '../support.ts';

before(() => startEngine());

/** Leaves memory that was used and given back behind, in the sizes of small parameters. */
function leaveNaNs(): void {
  using _ = scope();
  for (let size = 16; size <= 4096; size += 16) for (let i = 0; i < 4; i++) ops.full([size], Number.NaN);
}

const choices: readonly MethodChoice[] = [
  { type: 'lora', r: 4, target_modules: 'all-linear' },
  { type: 'lora', r: 4, target_modules: 'all-linear', use_dora: true },
  { type: 'lora', r: 4, target_modules: ['q_proj'], init_lora_weights: 'pissa' },
  { type: 'ia3' },
  { type: 'adalora' },
  { type: 'bottleneck' },
  { type: 'prefix', num_virtual_tokens: 3 },
  { type: 'prompt', num_virtual_tokens: 3 },
  { type: 'p-tuning', num_virtual_tokens: 3 },
];

test('parameters whose values follow are finite until then', (t) => {
  let checked = 0;
  using model = loadModel(golden('models', 'llama3'), { shapesOnly: true });
  for (const choice of choices) {
    leaveNaNs();
    const adapter = attachMethods(model, [choice], 0, { loading: true, shapesOnly: true });
    for (const [name, parameter] of adapter.parameters) {
      using _ = scope();
      assert.ok(numbers(parameter).every(Number.isFinite), `${choice.type}: ${name}`);
      checked++;
    }
    adapter.detach();
  }
  assert.ok(checked > 100);
  t.diagnostic(`${checked} parameters`);
});
