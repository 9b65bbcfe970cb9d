import assert from 'node:assert/strict';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, logitsOf, temporary } from '../../../test/support.ts';
import { loadAdapter, saveAdapter } from '../../adapters/index.ts';
import { startEngine } from '../../engine/index.ts';
import { attachMethods, type MethodChoice } from '../../methods/index.ts';
import { loadModel } from '../../models/index.ts';
import { mergeFiles } from './merge.ts';

before(() => startEngine());

const base = golden('gguf', 'llama.gguf');

/** Saves an adapter that changes something. */
function saved(dir: string, choice: MethodChoice, quantize: 'none' | 'int8', model = base): string {
  using loaded = loadModel(model, { quantize });
  using adapter = attachMethods(loaded, [choice], 1);
  saveAdapter(loaded, adapter, dir, { base: model });
  return dir;
}

const everywhere = { type: 'lora', target_modules: 'all-linear', init_lora_weights: false } as const;

for (const choice of [
  everywhere,
  { ...everywhere, use_dora: true },
  { type: 'ia3', init_ia3_weights: false },
] as MethodChoice[]) {
  test(`merged onto a full-precision base nothing is lost: ${JSON.stringify(choice)}`, async () => {
    using dir = temporary();
    const adapter = saved(join(dir.path, 'adapter'), choice, 'none');
    const drift = await mergeFiles({ model: base, adapter, out: join(dir.path, 'merged') });
    assert.deepEqual([drift.tokens, drift.predictions, drift.changed], [128, 128, 0]);
    assert.ok(drift.maxDrift < 1e-4 && drift.meanDrift <= drift.maxDrift, JSON.stringify(drift));
  });
}

test('merged onto a packed base the sum is packed anew, and the report says what that took away', async () => {
  using dir = temporary();
  const adapter = saved(join(dir.path, 'adapter'), everywhere, 'int8');
  const at = (name: string) => join(dir.path, name);
  const packed = await mergeFiles({ model: base, adapter, out: at('packed'), quantize: 'int8' });
  assert.ok(packed.maxDrift > 1e-3 && packed.meanDrift > 0, JSON.stringify(packed));
  assert.ok(packed.changed <= packed.predictions / 4, 'and it is little');

  // The same by hand, on the first of the rows.
  using model = loadModel(base, { quantize: 'int8' });
  const row = Array.from({ length: 32 }, (_, i) => (i * 7919 + 13) % model.vocabSize);
  using attached = loadAdapter(model, adapter);
  const apart = logitsOf(model, row);
  attached.detach();
  using merged = loadModel(at('packed'), { quantize: 'int8' });
  const worst = Math.max(...logitsOf(merged, row).map((x, i) => Math.abs(x - apart[i]!)));
  assert.ok(worst > 1e-3 && worst <= packed.maxDrift, `${worst} of ${packed.maxDrift}`);
  // What was written is dense: held so, the packed base with its adapter is there to the last digits.
  using dense = loadModel(at('packed'));
  const exact = Math.max(...logitsOf(dense, row).map((x, i) => Math.abs(x - apart[i]!)));
  assert.ok(exact < 1e-4, `${exact}`);
});

test('half precision shows in the report', async () => {
  using dir = temporary();
  const adapter = saved(join(dir.path, 'adapter'), everywhere, 'none');
  const drift = await mergeFiles({ model: base, adapter, out: join(dir.path, 'merged'), dtype: 'bfloat16' });
  assert.ok(drift.maxDrift > 1e-3, JSON.stringify(drift));
});

test('heads and images: predictions are rows; what cannot be merged is refused', async () => {
  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const vit = golden('families', 'vit');
  const images = saved(at('vit'), { ...everywhere, target_modules: ['q_proj'] }, 'none', vit);
  const seen = await mergeFiles({ model: vit, adapter: images, out: at('merged vit') });
  assert.deepEqual([seen.predictions, seen.changed], [4, 0]);
  assert.ok(seen.maxDrift < 1e-4, JSON.stringify(seen));
  const prefix = saved(at('prefix'), { type: 'prefix', num_virtual_tokens: 2 }, 'none');
  await assert.rejects(mergeFiles({ model: base, adapter: prefix, out: at('no') }), /prefix adapter cannot be merged/);
  const biased = saved(at('biased'), { type: 'lora', lora_bias: true }, 'none');
  await assert.rejects(
    mergeFiles({ model: base, adapter: biased, out: at('no') }),
    /lora adapter cannot be merged: lora_bias is set for 'model\.layers\.0\.self_attn\.q_proj', whose layer has no bias/,
  );
});
