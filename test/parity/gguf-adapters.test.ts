/** LoRA as GGUF files: PEFT's adapters written as llama.cpp reads them, and used from there. bench/gguf.bench.ts asks llama.cpp itself. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { combineAdapters, convertAdapter, formatOf, loadAdapter, readAdapterConfig } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { openGguf, readJsonObject, writeGguf } from '../../src/io/index.ts';
import { loadModel, readTensor } from '../../src/models/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { assertRefused, graft } from '../e2e/cli.ts';
import { golden, integers, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

const baseOf = (name: string) => golden('models', name.split('-')[0]!);

for (const name of ['llama3-all-linear', 'llama3-patterns', 'llama3-rslora', 'qwen2-rslora']) {
  test(`${name} as a GGUF file: the logits of PEFT's own, and back the same numbers`, () => {
    using _ = scope();
    using dir = temporary();
    const from = golden('lora', name);
    const file = join(dir.path, 'adapter.gguf');
    const { layers } = convertAdapter(from, file, 'gguf', { base: baseOf(name) });
    assert.equal(formatOf(file), 'gguf');
    const { tensors } = readTensors(join(from, 'golden.safetensors'));
    const ids = integers(tensors.get('ids.0')!);
    using model = loadModel(baseOf(name));
    const logits = (path: string) => {
      const adapter = loadAdapter(model, path);
      const result = logitsOf(model, ids);
      adapter.detach();
      return result;
    };
    // Several values of α and ranks become one, and B is multiplied by the rest.
    const same = (path: string) =>
      assert.ok(relativeError(logits(path), logits(from)) <= (name.endsWith('patterns') ? 1e-5 : 0), path);
    same(file);

    const back = join(dir.path, 'back');
    assert.equal(convertAdapter(file, back, 'peft', { base: baseOf(name) }).layers, layers);
    same(back);
  });
}

test('the file has the layout of convert_lora_to_gguf.py: names, α·√r, rows of q as in GGUF', () => {
  using _ = scope();
  using dir = temporary();
  const file = join(dir.path, 'adapter.gguf');
  const from = golden('lora', 'llama3-rslora');
  convertAdapter(from, file, 'gguf', { base: baseOf('llama3') });
  using source = openGguf(file);
  const { r, lora_alpha: alpha } = readJsonObject(join(from, 'adapter_config.json')) as Record<string, number>;
  assert.deepEqual(
    [...source.fields].map(([key, { type, value }]) => [key, type, value]),
    [
      ['general.type', 'string', 'adapter'],
      ['general.architecture', 'string', 'llama'],
      ['adapter.type', 'string', 'lora'],
      ['adapter.lora.alpha', 'float32', Math.fround(alpha! * Math.sqrt(r!))],
    ],
  );
  const q = readTensor(source, 'blk.0.attn_q.weight.lora_b');
  const { tensors } = readTensors(join(from, 'adapter_model.safetensors'));
  const original = tensors.get('base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight')!;
  const [rows, heads] = [original.size(0), 4];
  const size = rows / heads;
  for (let row = 0; row < rows; row++) {
    const [head, i] = [Math.floor(row / size), row % size];
    const place = head * size + (i < size / 2 ? 2 * i : 2 * (i - size / 2) + 1);
    const rowOf = (t: Float32Array, at: number) => t.slice(at * r!, (at + 1) * r!);
    assert.deepEqual(rowOf(numbers(q), place), rowOf(numbers(original), row), `row ${row}`);
  }
});

test('what GGUF cannot hold is refused by name, and nothing is written', () => {
  using dir = temporary();
  const out = join(dir.path, 'adapter.gguf');
  const refused = (name: string, message: RegExp, base = baseOf(name), to = out) => {
    assert.throws(() => convertAdapter(golden('lora', name), to, 'gguf', { base }), message);
    assert.ok(!existsSync(to));
  };
  refused('llama2-modules-to-save', /holds whole modules \(modules_to_save: .*lm_head/);
  refused('llama2-lm-head', /no other format supports the tensor .*lm_head\.base_layer/);
  refused('llama3-rslora', /GGUF has no architecture for models of the type gpt_neox/, golden('families', 'gpt-neox'));
  refused('llama3-rslora', /is not on this machine/, join(dir.path, 'nowhere'));
  refused('llama3-rslora', /does not end in \.gguf/, baseOf('llama3'), join(dir.path, 'adapter'));
  const changed = join(dir.path, 'dora');
  cpSync(golden('lora', 'llama3-rslora'), changed, { recursive: true });
  const config = readJsonObject(join(changed, 'adapter_config.json'));
  writeFileSync(join(changed, 'adapter_config.json'), JSON.stringify({ ...config, use_dora: true }));
  assert.throws(() => convertAdapter(changed, out, 'gguf', { base: baseOf('llama3') }), /uses DoRA/);
  assertRefused(
    graft('.', ['convert', golden('peft', 'ia3-llama3'), '--to', 'gguf', '--base', baseOf('llama3'), '--out', out]),
    2,
    /IA3/,
  );
});

test('GGUF adapters of another architecture, with other fields or for other bases are refused', () => {
  using dir = temporary();
  const file = join(dir.path, 'adapter.gguf');
  convertAdapter(golden('lora', 'llama3-rslora'), file, 'gguf', { base: baseOf('llama3') });
  using qwen = loadModel(baseOf('qwen2'));
  assert.throws(() => loadAdapter(qwen, file), /architecture llama, and the base has qwen2|does not fit this base/);
  assert.throws(() => loadModel(file), /this GGUF file is an adapter, and not a model\. Name its base as --model/);
  assert.throws(
    () => combineAdapters([file, file], join(dir.path, 'c'), { weights: [1, 1], how: 'linear' }),
    /cannot be combined\. .*--to peft/,
  );
  using source = openGguf(file);
  const changed = (key: string, value: string, message: RegExp) => {
    const other = join(dir.path, 'other.gguf');
    const tensors = [...source.entries.values()].map((entry) => ({
      ...entry,
      bytes: () => {
        const into = new Uint8Array(entry.bytes);
        source.read(entry.name, into);
        return into;
      },
    }));
    writeGguf(other, new Map([...source.fields, [key, { type: 'string', value }]]), tensors);
    assert.throws(() => readAdapterConfig(other), message);
  };
  changed('adapter.type', 'loha', /this GGUF adapter has the type "loha", and Graft reads lora/);
  changed('adapter.lora.prompt_prefix', 'hi', /adapter\.lora\.prompt_prefix: it expects a text before each prompt/);
  assert.match(readFileSync(file).toString('latin1', 0, 4), /GGUF/);
});
