/**
 * Generates parts of docs/methods/: the table of methods, the table of the families that support them, and each method's results
 * from docs/comparison/. Facts about methods come from attaching each one to models of the right shape; all weights of these
 * models are views of a single zero, so they need no memory.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../../src/base/index.ts';
import { readResults, table } from '../../src/compare/index.ts';
import { type Adapter, type Method, methods, type SavedAdapter } from '../../src/methods/index.ts';
import { type Family, families } from '../../src/models/index.ts';
import { composite, Embedding, Linear, type Model, type ModelWeights, type TaskName } from '../../src/nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { type GeneratedFile, markdownTable } from './markdown.ts';

type MethodName = keyof typeof methods;

const names = Object.keys(methods) as MethodName[];

/** Fields that a method requires; all others have their defaults. */
const requiredFields: Partial<Record<MethodName, object>> = {
  fusion: { adapters: ['one', 'two'] },
  prompt: { num_virtual_tokens: 20 },
  'multitask-prompt': { num_virtual_tokens: 20 },
  prefix: { num_virtual_tokens: 20 },
  'p-tuning': { num_virtual_tokens: 20 },
  qat: { weight: 'int4', group_size: 'channel' },
  layerwise: { policy: 'lisa' },
};

const smolLm = {
  model_type: 'llama',
  vocab_size: 49152,
  hidden_size: 576,
  intermediate_size: 1536,
  num_hidden_layers: 30,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  max_position_embeddings: 8192,
  tie_word_embeddings: true,
};

/** Returns weights of any shape that are all zero and share the memory of one number. */
function zeroWeights(): ModelWeights {
  const tensors: Tensor[] = [];
  const zeros = (shape: readonly number[]): Tensor => {
    using s = scope();
    const tensor = detachFromScopes(s.keep(noGrad(() => ops.expand(ops.zeros([1]), shape))));
    tensors.push(tensor);
    return tensor;
  };
  const linear = (_: string, outFeatures: number, inFeatures: number, bias = false) =>
    new Linear(composite, zeros([outFeatures, inFeatures]), -1, inFeatures, bias ? zeros([outFeatures]) : undefined);
  return {
    kernels: composite,
    dtype: 'float32',
    linear,
    transposed(path, outFeatures, inFeatures) {
      const layer = linear(path, outFeatures, inFeatures, true);
      layer.transposed = true;
      return layer;
    },
    head: linear,
    embedding: (_, rows, width) => new Embedding(zeros([rows, width]), -1, width),
    tensor: (_, shape) => zeros(shape),
    vector: (_, size) => zeros([size]),
    lmHead: (_, __, embedding) => new Linear(composite, embedding.weight, -1, embedding.width),
    has: () => false,
    ignore() {},
    parameters: 0,
    release() {
      for (const tensor of tensors) tensor.dispose();
    },
  };
}

function modelOf(family: Family, config: Record<string, unknown>, task: TaskName): Model {
  const labels = { 'question-answering': ['start', 'end'], 'causal-lm': [], embedding: [] } as Partial<
    Record<TaskName, string[]>
  >;
  return family.build(config, zeroWeights())({ name: task, labels: labels[task] ?? ['no', 'yes'] });
}

/** Returns what a fusion reads as a saved adapter: only its shape matters here, not its values. */
const savedBottleneck = (name: string): SavedAdapter => ({
  name,
  method: 'bottleneck',
  config: methods.bottleneck.config.parse({}),
  fill() {},
});

/** Returns what `read` returns for the method's adapter on the model. */
function withAdapter<T>(name: MethodName, model: Model, read: (adapter: Adapter) => T): T {
  const method = methods[name] as unknown as Method<unknown>;
  const config = method.config.parse(requiredFields[name] ?? {});
  using adapter = method.attach(model, config, 0, { saved: savedBottleneck });
  return read(adapter);
}

const parameterCount = (adapter: Adapter) =>
  [...adapter.parameters.values()].reduce((sum, { numel }) => sum + numel, 0);

const layoutOf = (name: MethodName): string => {
  const { peftType, adapterHub, writes } = methods[name] as Method<unknown>;
  if (writes === 'settings') return 'settings beside another method, `graft.json`';
  if (writes === 'nothing') return 'nothing: it says what trains when';
  if (peftType) return `PEFT, \`${peftType}\``;
  return adapterHub ? 'AdapterHub' : 'a whole model, Hugging Face';
};

const papersOf = (description: string): string =>
  [...description.matchAll(/\d{4}\.\d{5}/g)].map(([id]) => `[${id}](https://arxiv.org/abs/${id})`).join(' ') || '–';

function methodTable(): string {
  const model = modelOf(families.find(({ types }) => types.includes('llama'))!, smolLm, 'causal-lm');
  const all = withAdapter('full', model, parameterCount);
  const rows = names.map((name) => {
    const [trained, merges] = withAdapter(name, model, (adapter) => [
      parameterCount(adapter),
      adapter.merge !== undefined,
    ]);
    const { description } = methods[name].config;
    const percentage = `${((100 * trained) / all).toPrecision(3)} %`;
    const { writes } = methods[name] as Method<unknown>;
    const beside = 'with the method beside it';
    const merged = { model: 'it is the base', settings: beside, nothing: beside, adapter: merges ? 'yes' : 'no' }[
      writes ?? 'adapter'
    ];
    return [
      `[\`${name}\`](${name}.md)`,
      papersOf(description!),
      `${trained.toLocaleString('en')} (${percentage})`,
      merged,
      layoutOf(name),
    ];
  });
  model[Symbol.dispose]();
  return markdownTable(['`type`', 'paper', 'trained parameters of SmolLM2-135M', 'can be merged', 'saved as'], rows);
}

/** Returns the small config of each family from the goldens of the tests. */
function configs(): Map<Family, Record<string, unknown>> {
  const goldens = join(packageRoot, 'test', 'golden', 'families');
  const files = readdirSync(goldens)
    .map((name) => join(goldens, name, 'config.json'))
    .filter(existsSync)
    .map((file) => JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>);
  return new Map(
    families.map((family) => {
      const config = files.find(({ model_type }) => family.types.includes(String(model_type)));
      if (!config) throw new Error(`test/golden/families has no config of ${family.types[0]}`);
      return [family, config];
    }),
  );
}

/** A method on a family for a task; `refusal` is the message where the method does not support it. */
export interface MethodPair {
  readonly family: Family;
  readonly task: TaskName;
  readonly method: MethodName;
  readonly refusal: string | undefined;
}

/** Attaches every method to every family for each of its tasks. */
export function pairs(): MethodPair[] {
  return [...configs()].flatMap(([family, config]) =>
    family.tasks.flatMap((task) => {
      const model = modelOf(family, config, task);
      const attached = names.map((method) => ({ family, task, method, refusal: refusalOf(method, model) }));
      model[Symbol.dispose]();
      return attached;
    }),
  );
}

function refusalOf(method: MethodName, model: Model): string | undefined {
  try {
    return withAdapter(method, model, () => undefined);
  } catch (cause) {
    if (cause instanceof GraftError) return cause.message;
    throw cause;
  }
}

function pairTable(): string {
  const all = pairs();
  const rows = families.map((family) => {
    const refused = all.filter((pair) => pair.family === family && pair.refusal !== undefined);
    const refusals = refused.map(({ method, task, refusal }) => `${method} for ${task}: ${refusal}`).join('; ');
    const tasks = family.tasks.map((task) => `\`${task}\``).join(' ');
    return [family.types.map((type) => `\`${type}\``).join(' '), tasks, refusals || `all ${names.length}`];
  });
  return markdownTable(['`model_type`', 'tasks (the first is the default)', 'supported methods'], rows);
}

/** Returns a table of a method's results in the comparisons of a folder, with those of full fine-tuning; empty where it has none. */
export function comparisons(name: MethodName, dir = join(packageRoot, 'docs', 'comparison')): string {
  const files = existsSync(dir) ? readdirSync(dir).filter((file) => file.endsWith('.json')) : [];
  const lines = files.sort().flatMap((file) => {
    const results = readResults(join(dir, file));
    const methodsOf = new Map(results.outcomes.map((outcome) => [outcome.name, outcome.method.split(' + ')]));
    const { head, rows } = table(results);
    if (!rows.some(([row]) => methodsOf.get(row!)!.includes(name))) return [];
    const page = file.replace(/json$/, 'html');
    const title = `${results.title}, ${results.date}`;
    const data = existsSync(join(dir, page)) ? `[${title}](../comparison/${page})` : title;
    return rows
      .filter(([row]) => methodsOf.get(row!)!.some((method) => method === name || method === 'full'))
      .map(([method, value, interval, ...rest]) => [method!, value!, head[1]!, interval!, ...rest, data]);
  });
  if (lines.length === 0) return '';
  const costs = ['trained', '% of all', 'steps to loss', 'tokens/s', 'peak MB', 'saved MB', 'time s', 'lr'];
  const columns = ['method', 'result', 'metric', '95 % confidence interval', ...costs, 'data and model'];
  return `## Comparison\n\n${markdownTable(columns, lines)}`;
}

/** Returns the page with `text` between its markers of this name. @throws Error where it has none */
function filled(page: string, marker: string, text: string, path: string): string {
  const [begin, end] = [`<!-- ${marker}: generated by npm run generate -->`, `<!-- end of ${marker} -->`];
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${path} has no '${begin}' followed by '${end}'`);
  return `${page.slice(0, from + begin.length)}\n${text}${text && '\n'}${page.slice(to)}`;
}

/** Returns the pages of docs/methods/ with their generated parts. @throws Error for a method without a page */
export function methodPages(): GeneratedFile[] {
  const read = (path: string) => {
    const file = join(packageRoot, path);
    if (!existsSync(file)) throw new Error(`${path} is missing: every method has a page`);
    return readFileSync(file, 'utf8');
  };
  const index = 'docs/methods/README.md';
  const withMethods = filled(read(index), 'methods', methodTable(), index);
  return [
    { path: index, text: filled(withMethods, 'families', pairTable(), index) },
    ...names.map((name) => {
      const path = `docs/methods/${name}.md`;
      return { path, text: filled(read(path), 'comparison', comparisons(name), path) };
    }),
  ];
}
