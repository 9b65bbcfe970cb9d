import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { golden, logitsOf, relativeError, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { openGguf } from '../io/index.ts';
import { Linear, type Model, namedModules } from '../nn/index.ts';
import { type FormatName, formats, ggufFormats, isBlockFormat, pack } from '../quant/index.ts';
import { ops, scope } from '../tensor/index.ts';
import { type FormatOf, formatsFor, loadModel, requireGguf, saveGguf } from './index.ts';

before(() => startEngine());

const float32: FormatOf = () => ({ format: 'float32' });
const ids = [3, 17, 40, 9, 62, 5];

/** The bytes of all tensors of a file by name, with their formats and shapes. */
function tensorsOf(path: string) {
  using source = openGguf(path);
  return new Map(
    [...source.entries.values()].map(({ name, format, shape, bytes }) => {
      const into = new Uint8Array(bytes);
      source.read(name, into);
      return [name, { format, shape, bytes: Buffer.from(into).toString('base64') }];
    }),
  );
}

/** The native number of a format, or the name of the format of a dense tensor. */
const formatHeld = (module: { format: number }) =>
  (Object.keys(formats) as FormatName[]).find((name) => formats[name].nativeId === module.format) ?? 'float32';

for (const name of ['llama', 'qwen2']) {
  test(`${name}.gguf, read, written and read: the same tensors bit for bit, and the same metadata`, (t) => {
    using dir = temporary();
    const [from, to] = [golden('gguf', `${name}.gguf`), join(dir.path, 'again.gguf')];
    using model = loadModel(from, { quantize: 'keep' });
    const held = new Map(
      [...namedModules(model.root)].flatMap(([path, module]) =>
        'format' in module ? [[path, formatHeld(module as unknown as { format: number })] as const] : [],
      ),
    );
    saveGguf(model, to, { source: from, formatOf: (path) => ({ format: held.get(path) as 'q4_0' }) });
    assert.deepEqual(tensorsOf(to), tensorsOf(from));
    t.diagnostic(`${held.size} matrices in the formats ${[...new Set(held.values())].join(', ')}`);
    assert.ok(held.size >= 15);
  });
}

test('metadata of a GGUF file are carried over, except what describes the weights', () => {
  using dir = temporary();
  const [from, to] = [golden('gguf', 'llama.gguf'), join(dir.path, 'again.gguf')];
  using model = loadModel(from, { quantize: 'keep' });
  saveGguf(model, to, { source: from, formatOf: (path) => (path.includes('layers') ? { format: 'q4_0' } : undefined) });
  using a = openGguf(from);
  using b = openGguf(to);
  const ofWeights = ['general.file_type', 'general.quantization_version'];
  const kept = (source: typeof a) => new Map([...source.fields].filter(([key]) => !ofWeights.includes(key)));
  assert.deepEqual(kept(b), kept(a));
  assert.ok(kept(a).size > 20);
  assert.deepEqual(
    ofWeights.map((key) => b.metadata.get(key)),
    [2, 2],
  );
});

const bases = ['llama2', 'llama3', 'llama-linear', 'llama-longrope', 'mistral', 'qwen2', 'qwen3', 'qwen3-yarn'];

test('every architecture and rotary scaling: what is read back computes the same', (t) => {
  using dir = temporary();
  for (const name of bases) {
    const file = join(dir.path, `${name}.gguf`);
    using model = loadModel(golden('models', name));
    saveGguf(model, file, { source: golden('models', name), formatOf: float32 });
    using again = loadModel(file);
    const error = relativeError(logitsOf(again, ids), logitsOf(model, ids));
    // Llama 3's four numbers are found from float32 divisors.
    assert.ok(error <= (name === 'llama3' ? 2e-6 : 1e-6), `${name}: ${error}`);
    assert.equal(again.parameters, model.parameters, name);
    assert.equal(again.contextLength, model.contextLength, name);
  }
  t.diagnostic(`${bases.length} models`);
});

/** Rounds the weights of the blocks, and the tables, as a file of this format has them. */
function rounded(model: Model, formatOf: FormatOf): void {
  for (const [path, module] of namedModules(model.root)) {
    if (!(module instanceof Linear) && !('rows' in module)) continue;
    const layer = module as Linear;
    const written = formatOf(path) ?? { format: 'float32' as const };
    if (!isBlockFormat(written.format as FormatName)) {
      const half = ops.toCopy(layer.weight, { dtype: written.format as 'float16' });
      ops.copy_(layer.weight, ops.toCopy(half, { dtype: 'float32' }));
      continue;
    }
    const { weight, format } = pack(layer.weight, written as never);
    ops.copy_(layer.weight, ops.dequantize(weight, format));
  }
}

test('the forward pass of rounded weights is that of the file, in every format', (t) => {
  using dir = temporary();
  const base = tinyModel(join(dir.path, 'tiny'));
  for (const to of ggufFormats) {
    using _ = scope();
    const file = join(dir.path, `${to}.gguf`);
    using model = loadModel(base);
    const { formatOf, notes } = formatsFor(model, { to: to as 'q4_0' });
    // The MLP is 44 wide, so its second layer fits no blocks.
    assert.equal(notes.length > 0, !/float/.test(to), to);
    saveGguf(model, file, { source: base, formatOf });
    rounded(model, formatOf);
    using written = loadModel(file);
    assert.deepEqual(logitsOf(written, ids), logitsOf(model, ids), to);
    using source = openGguf(file);
    const stored = source.entries.get('blk.0.attn_q.weight')!.format;
    assert.equal(stored, { q4_k: 'q5_0', q5_k: 'q5_1', q6_k: 'q8_0' }[to as 'q4_k'] ?? to);
    assert.equal(source.entries.get('blk.0.attn_norm.weight')!.format, 'float32');
    assert.equal(source.entries.get('token_embd.weight')!.format, /float/.test(to) ? to : 'q8_0');
  }
  t.diagnostic(`${ggufFormats.length} formats`);
  assert.equal(ggufFormats.length, 11);
});

test('name and licence come from the directory and its model card', () => {
  using dir = temporary();
  const base = join(dir.path, 'my-model');
  cpSync(golden('models', 'llama2'), base, { recursive: true });
  const card =
    '---\nlicense: other\nlicense_name: llama-license\nlicense_link: https://example.org\ntags: [x]\n---\n# Card\n';
  writeFileSync(join(base, 'README.md'), card);
  using model = loadModel(base);
  saveGguf(model, join(dir.path, 'm.gguf'), { source: base, formatOf: float32 });
  using source = openGguf(join(dir.path, 'm.gguf'));
  const general = [...source.metadata].filter(([key]) => key.startsWith('general.'));
  assert.deepEqual(Object.fromEntries(general), {
    'general.type': 'model',
    'general.name': 'my-model',
    'general.license': 'other',
    'general.license.name': 'llama-license',
    'general.license.link': 'https://example.org',
    'general.architecture': 'llama',
    'general.file_type': 0,
  });
});

test('what llama.cpp does not compute is refused by name, before anything is written', () => {
  using dir = temporary();
  const refused = (name: string, change: object, message: RegExp, group = 'models') => {
    const base = join(dir.path, name);
    cpSync(golden(group, name), base, { recursive: true });
    const config = JSON.parse(readFileSync(join(base, 'config.json'), 'utf8'));
    writeFileSync(join(base, 'config.json'), JSON.stringify({ ...config, ...change }));
    using model = loadModel(base);
    assert.throws(() => requireGguf(model), message);
  };
  refused('llama-dynamic', {}, /llama\.cpp's llama models do not have rotary scaling of the type dynamic/);
  refused('llama2', { hidden_act: 'gelu_new' }, /do not have an MLP with gelu_new/);
  const windows = { use_sliding_window: true, sliding_window: 4, max_window_layers: 0, layer_types: null };
  refused('qwen2', windows, /llama\.cpp's qwen2 models do not have a sliding window/);
  const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const rope_parameters = { ...llama3, rope_theta: 1e4, original_max_position_embeddings: 16 };
  refused('qwen3', { rope_parameters }, /qwen3 models do not have the rotary scaling of Llama 3/);
  refused(
    'vit',
    {},
    /a model of the type vit cannot be a GGUF file: Graft writes llama, mistral, qwen2, qwen3/,
    'families',
  );
  refused('distilbert-seqcls', {}, /type distilbert cannot be a GGUF file/, 'families');
  refused('gpt2', {}, /type gpt2 cannot be a GGUF file/, 'families');
  refused('llama-seqcls', {}, /holds a language model, and this one is for sequence-classification/, 'families');
  using model = loadModel(golden('models', 'llama2'));
  const save = (format: string) =>
    saveGguf(model, join(dir.path, 'm.gguf'), {
      source: golden('models', 'llama2'),
      formatOf: () => ({ format: format as 'nf4' }),
    });
  assert.throws(() => save('nf4'), /llama\.cpp has no kernel for nf4, the format of model\.embed_tokens\.weight/);
  assert.throws(() => save('int3'), /llama\.cpp has no kernel for int3/);
});
