import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { golden, readTensors, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { writeSafetensors } from '../io/index.ts';
import { scope } from '../tensor/index.ts';
import { loadModel } from './index.ts';

await startEngine();

test('a weight that cannot be quantised is named', () => {
  let refused = 0;
  for (const [model, key] of [
    ['families/gpt2', 'transformer.h.1.attn.c_attn.weight'],
    ['families/gpt2', 'transformer.wte.weight'],
  ] as const) {
    using dir = temporary();
    using _ = scope();
    const { tensors } = readTensors(golden(model, 'model.safetensors'));
    const weight = tensors.get(key)!;
    new Float32Array(weight.memory().buffer)[5] = Number.NaN;
    const entries = [...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: t.bytes() }));
    writeSafetensors(join(dir.path, 'model.safetensors'), entries);
    copyFileSync(golden(model, 'config.json'), join(dir.path, 'config.json'));
    loadModel(dir.path)[Symbol.dispose]();
    assert.throws(() => loadModel(dir.path, { quantize: 'int8' }), {
      kind: 'input',
      message: new RegExp(`${key} holds a number that is not finite, or too large for the scales of int8`),
    });
    refused++;
  }
  assert.equal(refused, 2);
});
