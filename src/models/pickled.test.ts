import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { torchFile } from '../../test/samples/torch.ts';
import { golden, logitsOf, readTensors, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { undoneQuantization, writeSafetensors } from '../io/index.ts';
import { scope } from '../tensor/index.ts';
import { loadModel } from './index.ts';

await startEngine();

test('a base in pytorch_model.bin, whole or in shards, is the one in safetensors; older files are refused with a way out', () => {
  using _ = scope();
  const source = golden('families', 'bert');
  const { tensors } = readTensors(join(source, 'model.safetensors'));
  const stored = [...tensors].map(([name, t]) => [name, { shape: t.shape, bytes: t.bytes() }] as const);
  const logits = (dir: string) => {
    using model = loadModel(dir);
    return logitsOf(model, [5, 6, 7]);
  };
  const expected = logits(source);

  using whole = temporary();
  copyFileSync(join(source, 'config.json'), join(whole.path, 'config.json'));
  writeFileSync(join(whole.path, 'pytorch_model.bin'), torchFile(new Map(stored)));
  assert.deepEqual(logits(whole.path), expected);

  using shards = temporary();
  copyFileSync(join(source, 'config.json'), join(shards.path, 'config.json'));
  const names = ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin'] as const;
  const shardOf = (i: number) => names[i % 2]!;
  for (const name of names)
    writeFileSync(join(shards.path, name), torchFile(new Map(stored.filter((_, i) => shardOf(i) === name))));
  const index = (map: Record<string, string>) =>
    writeFileSync(join(shards.path, 'pytorch_model.bin.index.json'), JSON.stringify({ weight_map: map }));
  const places = Object.fromEntries(stored.map(([name], i) => [name, shardOf(i)]));
  index(places);
  assert.deepEqual(logits(shards.path), expected);
  index({ ...places, more: names[0] });
  assert.throws(() => logits(shards.path), /index\.json: .*The shards have no tensor "more"/);
  index({ ...places, more: '../secret.bin' });
  assert.throws(() => logits(shards.path), /"weight_map" names ".*secret\.bin", which is no \.bin file/);

  const legacy = Buffer.concat([Buffer.from('80028a0a6cfc9c46f9206aa85019', 'hex'), Buffer.alloc(100)]);
  writeFileSync(join(whole.path, 'pytorch_model.bin'), legacy);
  assert.throws(
    () => logits(whole.path),
    /pytorch_model\.bin: the file is in the format of PyTorch before 1\.6\. Write it again/,
  );
});

test('weights that bitsandbytes quantised are named with what to do; a config that still speaks of it is read', () => {
  using _ = scope();
  using dir = temporary();
  const source = golden('families', 'bert');
  const { tensors } = readTensors(join(source, 'model.safetensors'));
  const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8'));
  config.quantization_config = { quant_method: 'bitsandbytes', load_in_4bit: true };
  writeFileSync(join(dir.path, 'config.json'), JSON.stringify(config));
  const write = (more: readonly string[]) =>
    writeSafetensors(join(dir.path, 'model.safetensors'), [
      ...[...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: t.bytes() })),
      ...more.map((name) => ({ name, dtype: 'float32' as const, shape: [1], bytes: new Uint8Array(4) })),
    ]);
  write([]);
  {
    using model = loadModel(dir.path);
    assert.match(undoneQuantization(model.config).join(), /names bitsandbytes, and the weights are not quantised/);
    const integers = { quantization_config: { quant_method: 'compressed-tensors' } };
    assert.deepEqual([integers, {}, { quantization_config: null }].flatMap(undoneQuantization), []);
  }
  write(['bert.encoder.layer.0.attention.self.query.weight.absmax']);
  assert.throws(
    () => loadModel(dir.path),
    /config\.json: the weights are quantised by bitsandbytes, which Graft does not read\. Name the model that it was made from/,
  );
});
