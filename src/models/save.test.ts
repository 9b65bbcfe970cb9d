/** What a saved model has besides its weights, and numbers that an element type cannot hold. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, lstatSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test, { before } from 'node:test';
import { golden, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { readJsonObject } from '../io/index.ts';
import { moduleAt } from '../nn/index.ts';
import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { loadModel, saveModel } from './index.ts';

before(() => startEngine());

const copied = [
  'LICENSE',
  'USE_POLICY.md',
  'added_tokens.json',
  'additional_chat_templates/tool_use.jinja',
  'chat_template.jinja',
  'chat_template.json',
  'configuration_mine.py',
  'generation_config.json',
  'merges.txt',
  'preprocessor_config.json',
  'processor_config.json',
  'sentencepiece.bpe.model',
  'special_tokens_map.json',
  'spiece.model',
  'tekken.json',
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'video_preprocessor_config.json',
  'vocab.json',
  'vocab.txt',
];

const weights = ['model.gguf', 'pytorch_model.bin', 'pytorch_model.bin.index.json', 'tf_model.h5'];
const left = ['README.md', 'adapter_config.json', 'checkpoint-10/', 'onnx/'];

test('all that belongs to a model comes along, from links too; what does not is named', () => {
  using dir = temporary();
  const [cache, base, out] = ['cache', 'base', 'out'].map((name) => join(dir.path, name)) as [string, string, string];
  cpSync(golden('models', 'llama2'), base, { recursive: true });
  const files = [
    ...copied,
    ...weights,
    'README.md',
    'adapter_config.json',
    'checkpoint-10/x.json',
    'onnx/config.json',
    '.gitattributes',
  ];
  for (const name of files) {
    // The Hub's cache has every file as a link.
    mkdirSync(dirname(join(base, name)), { recursive: true });
    mkdirSync(dirname(join(cache, name)), { recursive: true });
    writeFileSync(join(cache, name), name);
    symlinkSync(join(cache, name), join(base, name));
  }
  using model = loadModel(base);
  const notCopied = saveModel(model, out, base);
  for (const name of copied) {
    assert.equal(readFileSync(join(out, name), 'utf8'), name);
    assert.ok(lstatSync(join(out, name)).isFile(), name);
  }
  for (const name of [...weights, ...left, '.gitattributes']) assert.ok(!existsSync(join(out, name)), name);
  assert.deepEqual(
    notCopied.filter((name) => !['config.v4.json', 'golden.safetensors'].includes(name)),
    left,
  );
});

test('the folders of sentence-transformers are those of modules.json', () => {
  using dir = temporary();
  const [base, out] = [join(dir.path, 'base'), join(dir.path, 'out')];
  cpSync(golden('families', 'bert'), base, { recursive: true });
  const modules = ['', '1_Pooling', '3_Normalize'].map((path, i) => {
    return { idx: i, name: `${i}`, path, type: `sentence_transformers.models.${path.slice(2) || 'Transformer'}` };
  });
  writeFileSync(join(base, 'modules.json'), JSON.stringify(modules));
  for (const name of ['1_Pooling', '2_Normalize', '3_Normalize']) {
    mkdirSync(join(base, name));
    writeFileSync(join(base, name, 'config.json'), '{"pooling_mode": "mean"}');
  }
  using model = loadModel(base);
  assert.deepEqual(saveModel(model, out, base), ['2_Normalize/']);
  for (const name of ['modules.json', '1_Pooling/config.json', '3_Normalize/config.json'])
    assert.ok(existsSync(join(out, name)));
});

test('the config describes the weights that are written', () => {
  using dir = temporary();
  const [base, out] = [join(dir.path, 'base'), join(dir.path, 'out')];
  cpSync(golden('models', 'llama2'), base, { recursive: true });
  const config = readJsonObject(join(base, 'config.json'));
  const quantization_config = { quant_method: 'bitsandbytes', load_in_4bit: true };
  const more = { quantization_config, torch_dtype: 'bfloat16', compression_config: {}, bos_token_id: 7 };
  writeFileSync(join(base, 'config.json'), JSON.stringify({ ...config, ...more }));
  using model = loadModel(base);
  saveModel(model, out, base, 'float16');
  const saved = readJsonObject(join(out, 'config.json'));
  assert.deepEqual([saved.dtype, saved.torch_dtype, saved.bos_token_id], ['float16', 'float16', 7]);
  assert.ok(!('quantization_config' in saved) && !('compression_config' in saved));
});

test('a number that is too large for the element type stops saving, and nothing is written', () => {
  using _ = scope();
  using dir = temporary();
  const base = golden('models', 'llama2');
  using model = loadModel(base);
  const { weight } = moduleAt(model.root, 'model.layers.1.mlp.up_proj') as unknown as { weight: Tensor };
  const out = (name: string) => join(dir.path, name);
  noGrad(() => ops.fill_(ops.narrow(weight, 0, 5, 1), -70_000));
  const half = /model\.layers\.1\.mlp\.up_proj\.weight has numbers up to 7\.00e\+4, which float16 cannot hold/;
  assert.throws(() => saveModel(model, out('a'), base, 'float16'), half);
  assert.ok(!existsSync(out('a')));
  saveModel(model, out('b'), base, 'bfloat16');
  noGrad(() => ops.fill_(ops.narrow(weight, 0, 5, 1), 3.4e38));
  assert.throws(() => saveModel(model, out('c'), base, 'bfloat16'), /up to 3\.40e\+38, which bfloat16 cannot hold/);
  saveModel(model, out('d'), base, 'float32');
});
