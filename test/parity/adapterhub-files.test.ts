/** AdapterHub's files in special cases: other releases, other tasks on the same model, heads of language models, names. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import {
  averageAdapters,
  convertAdapter,
  headFits,
  loadAdapter,
  saveAdapter,
  taskOfAdapter,
} from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { readJsonObject, writeSafetensors } from '../../src/io/index.ts';
import { floorDivide } from '../../src/methods/bottleneck/index.ts';
import { attachMethods } from '../../src/methods/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { golden, numbers, temporary } from '../support.ts';

before(() => startEngine());

/** Returns a copy of an adapter with other fields in its config. */
function changed(from: string, to: string, change: (config: Record<string, unknown>) => object): string {
  cpSync(from, to, { recursive: true });
  const file = join(to, 'adapter_config.json');
  const config = JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>;
  writeFileSync(file, JSON.stringify(change(config)));
  return to;
}

test('each adapter of a stack is named after the run, with its own name', () => {
  using dir = temporary();
  using model = loadModel(golden('models', 'llama3'));
  const stack = [{ type: 'bottleneck' }, { type: 'bottleneck', reduction_factor: 8 }] as const;
  using adapter = attachMethods(model, stack, 0);
  const to = join(dir.path, 'spam', 'adapter');
  saveAdapter(model, adapter, to, { base: 'b' });
  const names = ['0-bottleneck', '1-bottleneck'].map(
    (part) => readJsonObject(join(to, part, 'adapter_config.json')).name,
  );
  assert.deepEqual(names, ['spam_0', 'spam_1']);
  using _again = loadAdapter(loadModel(golden('models', 'llama3')), to);
});

test('a language adapter works under every task of the Llama family, and back', () => {
  using dir = temporary();
  using _ = scope();
  const config = { type: 'bottleneck', config: 'seq_bn_inv' } as const;
  const values = (adapter: { parameters: ReadonlyMap<string, Parameters<typeof numbers>[0]> }) =>
    [...adapter.parameters].filter(([key]) => !/score|qa_outputs/.test(key)).map(([key, t]) => [key, [...numbers(t)]]);
  const tasks = ['causal-lm', 'embedding', 'question-answering'] as const;
  let carried = 0;
  for (const from of tasks) {
    using first = loadModel(golden('models', 'llama3'), { task: from, trainedHead: false });
    using adapter = attachMethods(first, [config], 5);
    const saved = join(dir.path, from);
    saveAdapter(first, adapter, saved, { base: 'b' });
    for (const to of tasks) {
      using second = loadModel(golden('models', 'llama3'), { task: to, trainedHead: false });
      using loaded = loadAdapter(second, saved, 'own');
      assert.deepEqual(values(loaded), values(adapter), `${from} to ${to}`);
      carried++;
    }
  }
  assert.equal(carried, 9);
});

test('LoRA of releases that ignored alpha is scaled as it was trained', () => {
  using dir = temporary();
  const from = golden('adapterhub', 'lora-all-llama3', 'task');
  const { config } = readJsonObject(join(from, 'adapter_config.json')) as { config: { r: number } };
  const strength = (version: string) => {
    const own = join(dir.path, version);
    const alpha = 4 * config.r;
    changed(from, own, (file) => ({ ...file, version, config: { ...(file.config as object), alpha } }));
    convertAdapter(own, `${own}-peft`, 'peft');
    const { lora_alpha, r } = readJsonObject(join(`${own}-peft`, 'adapter_config.json')) as Record<string, number>;
    return lora_alpha! / r!;
  };
  assert.deepEqual(
    ['adapters.0.2.1', 'adapters.1.0.1', 'adapters.1.1.0', 'adapters.1.3.0'].map(strength),
    [1, 1, 4, 4],
  );
});

test('fields of older files: a nested invertible adapter, other names of gelu', () => {
  using dir = temporary();
  const read = (name: string, fields: object, release: object) => {
    const own = join(dir.path, name);
    changed(golden('adapterhub', 'seq-bn-llama3', 'task'), own, ({ version: _, ...file }) => ({
      ...file,
      ...release,
      config: { ...(file.config as object), ...fields },
    }));
    using model = loadModel(golden('models', 'llama3'));
    // This file has no weights of an invertible adapter: the error shows that the field was read.
    using adapter = loadAdapter(model, own);
    return adapter.config as Record<string, unknown>;
  };
  const version = 'adapters.1.3.0';
  assert.equal(read('a', { non_linearity: 'gelu' }, {}).non_linearity, 'gelu_new');
  assert.equal(read('b', { non_linearity: 'gelu_orig' }, {}).non_linearity, 'gelu');
  assert.equal(read('c', { non_linearity: 'gelu' }, { version }).non_linearity, 'gelu');
  const nested = { invertible_adapter: { block_type: 'nice', reduction_factor: 2 } };
  assert.throws(() => read('d', nested, { version }), /invertible_adapters.*is missing/);
});

test("a language model's head beside an adapter belongs to no task: it is ignored, and not converted", () => {
  using dir = temporary();
  using model = loadModel(golden('families', 'llama-seqcls'));
  const about = { model_type: 'llama', config: null, name: null, label2id: { LABEL_0: 0, LABEL_1: 1 } };
  const withHead = (kind: string) => {
    const own = join(dir.path, kind);
    cpSync(golden('adapterhub', kind, 'task'), own, { recursive: true });
    writeFileSync(join(own, 'head_config.json'), JSON.stringify({ ...about, model_class: 'LlamaForCausalLM' }));
    const head = { name: 'lm_head.weight', dtype: 'float32' as const, shape: [1, 2], bytes: () => new Uint8Array(8) };
    writeSafetensors(join(own, 'model_head.safetensors'), [head]);
    return own;
  };
  const bottleneck = withHead('seq-bn-llama3');
  assert.deepEqual(taskOfAdapter(bottleneck), {});
  assert.equal(headFits(model, bottleneck), false);
  const to = join(dir.path, 'peft');
  convertAdapter(withHead('lora-all-llama3'), to, 'peft');
  assert.equal(readJsonObject(join(to, 'adapter_config.json')).modules_to_save ?? null, null);
});

test("a converted head names transformers' class of its task, and as many labels as its last layer has", () => {
  using dir = temporary();
  const facts = (['lora-roberta-seqcls', 'lora-distilbert-seqcls', 'lora-llama-tokcls'] as const).map((name) => {
    const to = join(dir.path, name);
    convertAdapter(golden('peft', name), to, 'adapterhub');
    const { model_class, num_labels, model_type } = readJsonObject(join(to, 'head_config.json'));
    return [model_class, num_labels, model_type];
  });
  assert.deepEqual(facts, [
    ['RobertaForSequenceClassification', 3, 'roberta'],
    ['DistilBertForSequenceClassification', 3, 'distilbert'],
    ['LlamaForTokenClassification', 5, 'llama'],
  ]);
});

test('adapters that were trained with different dropout can be averaged', () => {
  using dir = temporary();
  const first = golden('adapterhub', 'average-weights-llama3', 'a');
  const other = changed(first, join(dir.path, 'other'), (file) => ({
    ...file,
    config: { ...(file.config as object), dropout: 0.1 },
  }));
  assert.ok(averageAdapters([first, other], [1, 1], join(dir.path, 'mean')).tensors > 0);
});

test("widths are Python's floor division", () => {
  const pairs = [16, 12.8, 1.6, 3.2, 6.4, 96].map((factor) => floorDivide(768, factor));
  assert.deepEqual(pairs, [48, 59, 479, 239, 119, 8]);
});
