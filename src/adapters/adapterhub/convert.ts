/** LoRA and IA3 in AdapterHub's layout (adapters/methods/lora.py). */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readJsonObject, type TensorToWrite, writeSafetensors } from '../../io/index.ts';
import type { TaskName } from '../../nn/index.ts';
import { taskOfAdapter } from '../load.ts';
import { type Matrix, matrix, stacked } from '../matrix.ts';
import {
  type AdapterUpdates,
  alike,
  half,
  kept,
  notConvertible,
  numberOf,
  openOne,
  type Pairs,
  tensorOf,
  type UpdateFormat,
  whole,
} from '../updates.ts';
import { pythonJson, version } from './files.ts';

/** Releases that trained LoRA and IA3 as if alpha were r, whatever it said (adapters/loading.py `_fix_backward_compat`). */
const ignoredAlpha = /^adapters\.(0\.|1\.0\.|1\.1\.0\.?(dev|a|b|rc))/;

export const hubUpdates: UpdateFormat = { read: readHub, write: writeHub };

function readHub(dir: string): AdapterUpdates {
  if (existsSync(join(dir, 'adapter_fusion_config.json'))) {
    throw notConvertible('a fusion of bottleneck adapters has no other format', dir);
  }
  const { config, name, model_name, model_type, version: release } = readJsonObject(join(dir, 'adapter_config.json'));
  const c = (config ?? {}) as Record<string, unknown>;
  if (c.architecture !== 'lora') {
    const what = c.architecture ?? 'bottleneck adapter';
    throw notConvertible(
      what === 'prefix_tuning'
        ? 'AdapterHub counts the positions of the text from 0 and PEFT from behind a prefix: the same keys act differently'
        : `AdapterHub's ${what} has no other format`,
      dir,
    );
  }
  for (const field of ['use_gating', 'use_dora', 'vera_d', 'vera_b']) {
    if (c[field]) throw notConvertible(`it has ${field}, which no other format has`, dir);
  }
  if (model_type === 'vit')
    throw notConvertible("AdapterHub's names of this family are not those that PEFT has today", dir);
  using source = openOne(dir, 'adapter.safetensors', 'pytorch_adapter.bin');
  const r = numberOf(c.r, 8);
  const alpha = ignoredAlpha.test(String(release)) ? r : numberOf(c.alpha, 8);
  const pairs: Pairs = new Map();
  const factors = new Map<string, Matrix>();
  for (const key of source.entries.keys()) {
    const [path, what] = key.split(`.loras.${name}.lora_`) as [string, string | undefined];
    if (what !== 'A' && what !== 'B') throw notConvertible(`${key} has no place in another format`, dir);
    const value = matrix(source, key);
    if (c.composition_mode === 'scale') factors.set(path, { ...value, values: value.values.map((v) => v * alpha) });
    else half(pairs, path)[what === 'A' ? 'a' : 'b'] = value;
  }
  const facts = {
    base: typeof model_name === 'string' ? model_name : undefined,
    dropout: numberOf(c.dropout, 0),
    head: headOf(dir),
  };
  if (c.composition_mode === 'scale') return { kind: 'ia3', ...facts, layers: factors };
  for (const [path, pair] of pairs) {
    if (path.endsWith('.c_attn') && pair.a && pair.b) pairs.set(path, joined(pair.a, pair.b, r, c.attn_matrices));
  }
  return { kind: 'lora', ...facts, layers: whole(pairs, () => alpha / r, dir) };
}

/** The head beside an adapter, under the keys of its model. */
function headOf(dir: string): TensorToWrite[] {
  const file = join(dir, 'head_config.json');
  if (!existsSync(file)) return [];
  const { config, model_class } = readJsonObject(file);
  // The vocabulary's own, which AdapterHub does not train.
  if (/(ForCausalLM|LMHeadModel|ForMaskedLM)$/.test(String(model_class))) return [];
  if (config) throw notConvertible("it has one of AdapterHub's own heads, which no other format has", dir);
  using source = openOne(dir, 'model_head.safetensors', 'pytorch_model_head.bin');
  return [...source.entries.keys()].map((key) => kept(source, key, key));
}

/** GPT-2's query, key and value are one layer: AdapterHub keeps an update of each, one below the other. */
function joined(a: Matrix, b: Matrix, r: number, chosen: unknown): { a: Matrix; b: Matrix } {
  const parts = ['q', 'k', 'v'].filter((part) => (chosen as string[]).includes(part));
  const width = b.rows / parts.length;
  const values = new Float32Array(3 * width * a.rows);
  parts.forEach((part, i) => {
    for (let row = 0; row < width; row++) {
      const at = ('qkv'.indexOf(part) * width + row) * a.rows + i * r;
      values.set(b.values.subarray((i * width + row) * r, (i * width + row + 1) * r), at);
    }
  });
  return { a, b: { rows: 3 * width, columns: a.rows, values } };
}

/** Where AdapterHub has updates, by the last parts of paths. It calls Llama's down projection `intermediate`. */
const hubFamilies = [
  {
    type: 'llama',
    path: /^model\.layers\.(\d+)\.(.+)$/,
    attention: { 'self_attn.q_proj': 'q', 'self_attn.k_proj': 'k', 'self_attn.v_proj': 'v' },
    mlp: { 'mlp.down_proj': 'intermediate_lora', 'mlp.up_proj': 'output_lora' },
    class: 'LlamaForCausalLM',
  },
  {
    type: 'bert',
    path: /^(?:bert|roberta)\.encoder\.layer\.(\d+)\.(.+)$/,
    attention: { 'attention.self.query': 'q', 'attention.self.key': 'k', 'attention.self.value': 'v' },
    mlp: { 'intermediate.dense': 'intermediate_lora', 'output.dense': 'output_lora' },
    class: 'BertForSequenceClassification',
  },
  {
    type: 'distilbert',
    path: /^distilbert\.transformer\.layer\.(\d+)\.(.+)$/,
    attention: { 'attention.q_lin': 'q', 'attention.k_lin': 'k', 'attention.v_lin': 'v' },
    mlp: { 'ffn.lin1': 'intermediate_lora', 'ffn.lin2': 'output_lora' },
    class: 'DistilBertForSequenceClassification',
  },
  {
    type: 'gpt2',
    path: /^transformer\.h\.(\d+)\.(.+)$/,
    attention: { 'attn.c_attn': 'qkv' },
    mlp: { 'mlp.c_fc': 'intermediate_lora', 'mlp.c_proj': 'output_lora' },
    class: 'GPT2LMHeadModel',
  },
] as const;

function writeHub(said: AdapterUpdates, work: string, place: string, name: string): void {
  const paths = [...said.layers.keys()];
  const family = hubFamilies.find(({ path }) => paths.every((p) => path.test(p)));
  if (!family) throw notConvertible(`AdapterHub has no update for ${paths[0]}`, place);
  const byLayer = new Map<number, string[]>();
  const flags = new Set<string>();
  for (const path of paths) {
    const [, layer, at] = family.path.exec(path)!;
    const letters = (family.attention as Record<string, string>)[at!];
    const flag = (family.mlp as Record<string, string>)[at!];
    if (!letters && !flag) throw notConvertible(`AdapterHub has no update for ${path}`, place);
    for (const letter of letters ?? []) flags.add(letter);
    if (flag) flags.add(flag);
    byLayer.set(Number(layer), [...(byLayer.get(Number(layer)) ?? []), at!].sort());
  }
  const [first] = byLayer.values() as unknown as [string[]];
  const odd = [...byLayer].find(([, places]) => places.join() !== first.join());
  if (odd) throw notConvertible(`AdapterHub has the same places in every layer, and layer ${odd[0]} differs`, place);
  const count = Math.max(...byLayer.keys()) + 1;
  const ia3 = said.kind === 'ia3';
  if (ia3 && family.type === 'gpt2')
    throw notConvertible('AdapterHub has no IA3 for layers that hold query, key and value', place);
  const { rank, scaling, layers } = ia3 ? { rank: 1, scaling: 1, layers: new Map() } : alike(said.layers);
  const stored = (path: string, what: string, value: Matrix) => tensorOf(`${path}.loras.${name}.lora_${what}`, value);
  const tensors = ia3
    ? [...said.layers].map(([path, value]) => stored(path, 'B', value))
    : [...layers].flatMap(([path, { a, b }]) => [
        // One A for each of query, key and value, which share theirs here.
        stored(path, 'A', path.endsWith('.c_attn') ? stacked([a, a, a]) : a),
        stored(path, 'B', b),
      ]);
  const config = {
    architecture: 'lora',
    r: rank,
    alpha: scaling * rank,
    attn_matrices: ['q', 'k', 'v'].filter((letter) => flags.has(letter)),
    composition_mode: ia3 ? 'scale' : 'add',
    dropout: said.dropout,
    dtype: null,
    init_weights: ia3 ? 'ia3' : 'lora',
    init_weights_seed: null,
    selfattn_lora: ['q', 'k', 'v'].some((letter) => flags.has(letter)),
    intermediate_lora: flags.has('intermediate_lora'),
    output_lora: flags.has('output_lora'),
    leave_out: Array.from({ length: count }, (_, i) => i).filter((i) => !byLayer.has(i)),
    use_dora: false,
    use_gating: false,
    vera_b: null,
    vera_d: null,
  };
  const facts = baseFacts(said.base);
  const { task, labels } = said.head.length > 0 ? taskOfAdapter(place) : {};
  const type = String(facts.model_type ?? (paths[0]!.startsWith('roberta.') ? 'roberta' : family.type));
  const about = {
    model_type: type,
    model_name: said.base ?? null,
    // AdapterHub loads a head into a model of its class only.
    model_class: classFor(type, task) ?? (facts.architectures as string[] | undefined)?.[0] ?? family.class,
    hidden_size: facts.hidden_size ?? facts.n_embd ?? null,
  };
  writeFileSync(join(work, 'adapter_config.json'), pythonJson({ ...about, name, config, version }));
  writeSafetensors(join(work, 'adapter.safetensors'), tensors);
  if (said.head.length === 0) return;
  const label2id = Object.fromEntries(labels!.map((label, i) => [label, i]));
  const headConfig = { ...about, name: null, config: null, label2id, num_labels: labels!.length, version };
  writeFileSync(join(work, 'head_config.json'), pythonJson(headConfig));
  writeSafetensors(join(work, 'model_head.safetensors'), said.head);
}

const stems: Readonly<Record<string, string>> = {
  ...{ llama: 'Llama', mistral: 'Mistral', gpt2: 'GPT2' },
  ...{ bert: 'Bert', roberta: 'Roberta', 'xlm-roberta': 'XLMRoberta', distilbert: 'DistilBert' },
};

const suffixes: Partial<Record<TaskName, string>> = {
  'sequence-classification': 'ForSequenceClassification',
  'token-classification': 'ForTokenClassification',
  'question-answering': 'ForQuestionAnswering',
};

/** The class of transformers that has a head for the task. */
function classFor(type: string, task: TaskName | undefined): string | undefined {
  const [stem, suffix] = [stems[type], task && suffixes[task]];
  return stem && suffix && stem + suffix;
}

/** The base's config.json, where it is here. */
function baseFacts(base: string | undefined): Record<string, unknown> {
  const file = base && join(base, 'config.json');
  return file && existsSync(file) ? readJsonObject(file) : {};
}
