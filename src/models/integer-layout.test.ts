import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, logitsOf, numbers, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { openSafetensors } from '../io/index.ts';
import { Embedding, Linear, type Model, moduleAt, namedModules } from '../nn/index.ts';
import { formats, integerFormats, pack, type Quantization } from '../quant/index.ts';
import { ops, scope } from '../tensor/index.ts';
import { formatsFor, loadModel, readTensor, saveModel } from './index.ts';
import { withIntegers } from './integer-layout.ts';

before(() => startEngine());

const groupOf = (name: string) => {
  const [, bits, kind, size] = /^int(\d)\.(\w+)\.(\d+)$/.exec(name)!;
  const strategy = size === '0' ? { strategy: 'channel' } : { strategy: 'group', group_size: Number(size) };
  return {
    targets: [name],
    weights: { num_bits: Number(bits), type: 'int', symmetric: kind === 'symmetric', ...strategy },
  };
};

test('weights of compressed-tensors’ compressor are read bit for bit: 2 to 8 bits, groups and rows, zero points', (t) => {
  using _ = scope();
  const file = golden('quant', 'packed-integers.safetensors');
  using stored = openSafetensors(file);
  const names = [...stored.entries.keys()].flatMap((name) => /^values\.(.+)$/.exec(name)?.[1] ?? []);
  const config_groups = Object.fromEntries(names.map((name, i) => [`group_${i}`, groupOf(name)]));
  const quantization_config = { quant_method: 'compressed-tensors', format: 'pack-quantized', config_groups };
  const { source, integers } = withIntegers(stored, { quantization_config });
  for (const name of names) {
    const got = readTensor(source, `${name}.weight`, 'float32');
    assert.deepEqual(numbers(got), numbers(readTensor(stored, `values.${name}`)), name);
  }
  t.diagnostic(`${names.length} weights`);
  assert.deepEqual([names.length, integers.size], [21, 21]);
});

const base = golden('gguf', 'llama.gguf');
const ids = [3, 17, 40, 9, 62, 5];
const layersOf = (model: Model) =>
  [...namedModules(model.root)].flatMap(([path, module]) =>
    module instanceof Linear || module instanceof Embedding ? [[path, module] as const] : [],
  );

const cases: Quantization[] = (['int2', 'int3', 'int4', 'int5', 'int6', 'int7', 'int8'] as const).flatMap((format) => [
  { format, groupSize: 32 },
  { format, groupSize: 32, symmetric: false },
  { format },
]);

test('what is written is read as the layers that quantising in memory gives, bit for bit', (t) => {
  using dir = temporary();
  for (const [i, quantization] of cases.entries()) {
    using _ = scope();
    const what = JSON.stringify(quantization);
    using model = loadModel(base);
    const out = join(dir.path, String(i));
    const isQuantized = (path: string) => path.includes('layers') || (i % 2 === 0 && path === 'model.embed_tokens');
    saveModel(model, out, base, 'float32', {}, { formatOf: (path) => (isQuantized(path) ? quantization : undefined) });
    using packed = loadModel(out, { quantize: 'keep' });
    using dense = loadModel(out);
    for (const [path, layer] of layersOf(model)) {
      const got = moduleAt(packed.root, path) as Linear;
      if (!isQuantized(path)) {
        assert.equal(got.format, -1, path);
        continue;
      }
      const want = pack(layer.weight, quantization);
      assert.equal(got.format, formats[integerFormats[quantization.format as 'int4'].packed].nativeId, path);
      assert.deepEqual(got.weight.bytes(), want.weight.bytes(), `${path} ${what}`);
      const values = ops.dequantize(want.weight, want.format);
      assert.deepEqual(numbers((moduleAt(dense.root, path) as Linear).weight), numbers(values), `${path} ${what}`);
      ops.copy_(layer.weight, values);
    }
    assert.deepEqual(logitsOf(dense, ids), logitsOf(model, ids), what);
  }
  t.diagnostic(`${cases.length} formats`);
});

test('groups that are not whole blocks are kept dense in memory, with the same numbers; transposed layers as well', () => {
  using dir = temporary();
  for (const [name, group] of [
    ['models/llama2', 4],
    ['families/gpt2', 4],
  ] as const) {
    using _ = scope();
    const from = golden(...name.split('/'));
    using model = loadModel(from);
    const out = join(dir.path, name);
    const { formatOf } = formatsFor(model, { to: 'int4', groupSize: group });
    saveModel(model, out, from, 'float32', {}, { formatOf });
    using written = loadModel(out, { quantize: 'keep' });
    let compared = 0;
    for (const [path, layer] of layersOf(model)) {
      const quantization = formatOf(path) as Quantization | undefined;
      if (!quantization) continue;
      const got = (moduleAt(written.root, path) as Linear).denseWeight();
      const rounded = ops.fakeQuantizeIntegers(layer.weight, 4, group, true);
      assert.deepEqual(numbers(got), numbers(rounded), path);
      compared++;
    }
    assert.ok(compared >= 8, name);
  }
});

test('config.json names what was done; other layouts and what Graft does not compute are refused', () => {
  using dir = temporary();
  const from = golden('gguf', 'llama.gguf');
  using model = loadModel(from);
  const { formatOf } = formatsFor(model, { to: 'int4', groupSize: 32 });
  const out = join(dir.path, 'int4');
  saveModel(model, out, from, 'float32', {}, { formatOf });
  const file = join(out, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  assert.deepEqual(config.quantization_config, {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    quantization_status: 'compressed',
    config_groups: {
      group_0: {
        targets: ['Linear'],
        weights: { num_bits: 4, type: 'int', symmetric: true, strategy: 'group', group_size: 32, dynamic: false },
        input_activations: null,
        output_activations: null,
      },
    },
    ignore: ['lm_head'],
    kv_cache_scheme: null,
  });
  const refused = (change: object, message: RegExp) => {
    writeFileSync(
      file,
      JSON.stringify({ ...config, quantization_config: { ...config.quantization_config, ...change } }),
    );
    assert.throws(() => loadModel(out), message);
  };
  refused({ quant_method: 'gptq' }, /the weights are quantised by gptq, which Graft does not read/);
  refused({ format: 'float-quantized' }, /has the method compressed-tensors and the format float-quantized/);
  refused({ kv_cache_scheme: { num_bits: 8 } }, /quantises keys and values/);
  const { group_0: group } = config.quantization_config.config_groups;
  const changed = (more: object) => ({ config_groups: { group_0: { ...group, ...more } } });
  refused(changed({ input_activations: { num_bits: 8 } }), /quantises activations/);
  refused(changed({ weights: { ...group.weights, type: 'float' } }), /weights of the type float with 4 bits/);
  refused(changed({ weights: { ...group.weights, num_bits: 8 } }), /8 bits of \[.*\] take int32/);
  refused(changed({ targets: ['re:.*mlp.*'] }), /names no group for model\.layers\.0\.self_attn/);
  writeFileSync(file, JSON.stringify(config));
  // Written dense again, nothing is left of it.
  using again = loadModel(out);
  saveModel(again, join(dir.path, 'dense'), out);
  assert.ok(!('quantization_config' in JSON.parse(readFileSync(join(dir.path, 'dense', 'config.json'), 'utf8'))));
});
