/**
 * Generates the parts of docs/methods/ that follow from the code: the table of methods, the families that they support, and
 * the rows of each method in the comparisons of docs/comparison/. Each method is attached to models of the real shapes
 * whose weights are views of a single zero, and so take no memory.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../../src/base/index.ts';
import { type Results, table } from '../../src/compare/index.ts';
import { type Adapter, type Method, methods, type SavedAdapter } from '../../src/methods/index.ts';
import { type Family, families } from '../../src/models/index.ts';
import { composite, Embedding, Linear, type Model, type TaskName, type Weights } from '../../src/nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { type GeneratedFile, markdownTable } from './markdown.ts';

type MethodName = keyof typeof methods;

const names = Object.keys(methods) as MethodName[];

/** The fields of a method that have no default. */
const requiredFields: Partial<Record<MethodName, object>> = {
  fusion: { adapters: ['one', 'two'] },
  prompt: { num_virtual_tokens: 20 },
  'multitask-prompt': { num_virtual_tokens: 20 },
  prefix: { num_virtual_tokens: 20 },
  'p-tuning': { num_virtual_tokens: 20 },
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

/** Returns weights of any shape that are views of a single zero. */
function zeroWeights(): Weights {
  const tensors: Tensor[] = [];
  const zeros = (shape: readonly number[]): Tensor => {
    using s = scope();
    const tensor = detachFromScopes(s.keep(noGrad(() => ops.expand(ops.zeros([1]), shape))));
    tensors.push(tensor);
    return tensor;
  };
  const linear = (_: string, outside: number, inside: number, bias = false) =>
    new Linear(composite, zeros([outside, inside]), -1, inside, bias ? zeros([outside]) : undefined);
  return {
    kernels: composite,
    dtype: 'float32',
    linear,
    transposed(path, outside, inside) {
      const layer = linear(path, outside, inside, true);
      layer.transposed = true;
      return layer;
    },
    head: linear,
    embedding: (_, rows, width) => new Embedding(zeros([rows, width]), -1, width),
    tensor: (_, shape) => zeros(shape),
    vector: (_, size) => zeros([size]),
    tied: (_, embedding) => new Linear(composite, embedding.weight, -1, embedding.width),
    has: () => false,
    ignore() {},
    fresh: [],
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

/** A saved adapter for a fusion: only its shape matters here, not its values. */
const savedAdapter = (name: string): SavedAdapter => ({
  name,
  method: 'bottleneck',
  config: methods.bottleneck.config.parse({}),
  fill() {},
});

/** Attaches a method to a model and returns what `read` reads off the adapter. */
function attached<T>(name: MethodName, model: Model, read: (adapter: Adapter) => T): T {
  const method = methods[name] as unknown as Method<unknown>;
  using adapter = method.attach(model, method.config.parse(requiredFields[name] ?? {}), 0, { saved: savedAdapter });
  return read(adapter);
}

const count = (adapter: Adapter) => [...adapter.parameters.values()].reduce((sum, { numel }) => sum + numel, 0);

const layoutOf = (name: MethodName): string => {
  const { peftType, adapterHub } = methods[name] as Method<unknown>;
  if (peftType) return `PEFT, \`${peftType}\``;
  return adapterHub ? 'AdapterHub' : 'a whole model, Hugging Face';
};

const papersOf = (description: string): string =>
  [...description.matchAll(/\d{4}\.\d{5}/g)].map(([id]) => `[${id}](https://arxiv.org/abs/${id})`).join(' ') || '–';

function methodTable(): string {
  const model = modelOf(families.find(({ types }) => types.includes('llama'))!, smolLm, 'causal-lm');
  const all = attached('full', model, count);
  const rows = names.map((name) => {
    const [trained, merges] = attached(name, model, (adapter) => [count(adapter), adapter.merge !== undefined]);
    const { description } = methods[name].config;
    const share = `${((100 * trained) / all).toPrecision(3)} %`;
    const mergeable = merges ? 'yes' : name === 'full' ? 'is the base' : 'no';
    return [
      `[\`${name}\`](${name}.md)`,
      papersOf(description!),
      `${trained.toLocaleString('en')} (${share})`,
      mergeable,
      layoutOf(name),
    ];
  });
  model[Symbol.dispose]();
  return markdownTable(['`type`', 'paper', 'trained of SmolLM2-135M', 'merges into the base', 'saved as'], rows);
}

/** Returns the small config of the tests' goldens for each family. */
function configs(): Map<Family, Record<string, unknown>> {
  const goldens = join(packageRoot, 'test', 'golden', 'families');
  const goldenConfigs = readdirSync(goldens)
    .map((name) => join(goldens, name, 'config.json'))
    .filter(existsSync)
    .map((file) => JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>);
  return new Map(
    families.map((family) => {
      const config = goldenConfigs.find(({ model_type }) => family.types.includes(String(model_type)));
      if (!config) throw new Error(`test/golden/families has no golden of ${family.types[0]}`);
      return [family, config];
    }),
  );
}

/** Returns for each family, task and method the reason why they do not go together, or undefined where they do. */
export function pairs(): { family: Family; task: TaskName; method: MethodName; why: string | undefined }[] {
  return [...configs()].flatMap(([family, config]) =>
    family.tasks.flatMap((task) => {
      const model = modelOf(family, config, task);
      const answers = names.map((method) => ({ family, task, method, why: refusal(method, model) }));
      model[Symbol.dispose]();
      return answers;
    }),
  );
}

function refusal(method: MethodName, model: Model): string | undefined {
  try {
    return attached(method, model, () => undefined);
  } catch (cause) {
    if (cause instanceof GraftError) return cause.message;
    throw cause;
  }
}

function pairTable(): string {
  const all = pairs();
  const rows = families.map((family) => {
    const ofFamily = all.filter((pair) => pair.family === family);
    const refused = ofFamily.filter(({ why }) => why !== undefined);
    const refusals = refused.map(({ method, task, why }) => `${method} for ${task}: ${why}`).join('; ');
    const tasks = family.tasks.map((task) => `\`${task}\``).join(' ');
    return [family.types.map((type) => `\`${type}\``).join(' '), tasks, refusals || `all ${names.length}`];
  });
  return markdownTable(['`model_type`', 'tasks, the first by default', 'methods'], rows);
}

/** Returns the rows of a method in the comparisons of a directory, with those of full fine-tuning; empty where it has none. */
export function comparisons(name: MethodName, dir = join(packageRoot, 'docs', 'comparison')): string {
  const files = existsSync(dir) ? readdirSync(dir).filter((file) => file.endsWith('.json')) : [];
  const lines = files.sort().flatMap((file) => {
    const results = JSON.parse(readFileSync(join(dir, file), 'utf8')) as Results;
    const methodsOf = new Map(results.outcomes.map((outcome) => [outcome.name, outcome.method.split(' + ')]));
    const { head, rows } = table(results);
    if (!rows.some(([row]) => methodsOf.get(row!)!.includes(name))) return [];
    const picture = file.replace(/json$/, 'html');
    const title = `${results.title}, ${results.date}`;
    const source = existsSync(join(dir, picture)) ? `[${title}](../comparison/${picture})` : title;
    return rows
      .filter(([row]) => methodsOf.get(row!)!.some((method) => method === name || method === 'full'))
      .map(([method, value, interval, ...rest]) => [method!, value!, head[1]!, interval!, ...rest, source]);
  });
  if (lines.length === 0) return '';
  const costs = ['trained', 'of all %', 'steps to loss', 'tokens/s', 'peak MB', 'kept MB', 'time s', 'lr'];
  return `## Compared\n\n${markdownTable(['method', 'result', 'metric', '95 % interval', ...costs, 'on'], lines)}`;
}

/** Returns the page with `text` between its markers of this name. @throws Error where it has no such markers */
function withGenerated(page: string, marker: string, text: string, path: string): string {
  const [begin, end] = [`<!-- ${marker}: generated by npm run generate -->`, `<!-- end of ${marker} -->`];
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${path} has no '${begin}' and '${end}' after it`);
  return `${page.slice(0, from + begin.length)}\n${text}${text && '\n'}${page.slice(to)}`;
}

/** Returns the pages of docs/methods/ with their generated parts. @throws Error for a method without a page */
export function methodPages(): GeneratedFile[] {
  const read = (path: string) => {
    const file = join(packageRoot, path);
    if (!existsSync(file)) throw new Error(`${path} is missing: every method needs a page`);
    return readFileSync(file, 'utf8');
  };
  const index = 'docs/methods/README.md';
  const withMethods = withGenerated(read(index), 'methods', methodTable(), index);
  return [
    { path: index, text: withGenerated(withMethods, 'families', pairTable(), index) },
    ...names.map((name) => {
      const path = `docs/methods/${name}.md`;
      return { path, text: withGenerated(read(path), 'comparison', comparisons(name), path) };
    }),
  ];
}
