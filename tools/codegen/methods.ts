/**
 * What docs/methods/ says that code knows better: the table of methods, what they go on, and each method's rows of the
 * comparisons in docs/comparison/. Methods are asked, not read: each is put on models of the right shape whose weights are
 * one zero seen many times, which take no memory.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, packageRoot } from '../../src/base/index.ts';
import { type Results, table } from '../../src/compare/index.ts';
import { type Adapter, type Method, methods, type SavedAdapter } from '../../src/methods/index.ts';
import { type Family, families } from '../../src/models/index.ts';
import { composite, Embedding, Linear, type Model, type ModelWeights, type TaskName } from '../../src/nn/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';
import { type GeneratedFile, markdownTable } from './markdown.ts';

type MethodName = keyof typeof methods;

const names = Object.keys(methods) as MethodName[];

/** What a method cannot do without; all else has its default. */
const needed: Partial<Record<MethodName, object>> = {
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

/** Weights of any shape, all zero, in the memory of one. */
function hollow(): ModelWeights {
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
  return family.build(config, hollow())({ name: task, labels: labels[task] ?? ['no', 'yes'] });
}

/** What a fusion is given for a saved adapter: its shape counts here, not its values. */
const saved = (name: string): SavedAdapter => ({
  name,
  method: 'bottleneck',
  config: methods.bottleneck.config.parse({}),
  fill() {},
});

function asked<T>(name: MethodName, model: Model, question: (adapter: Adapter) => T): T {
  const method = methods[name] as unknown as Method<unknown>;
  using adapter = method.attach(model, method.config.parse(needed[name] ?? {}), 0, { saved });
  return question(adapter);
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
  const all = asked('full', model, count);
  const rows = names.map((name) => {
    const [trained, merges] = asked(name, model, (adapter) => [count(adapter), adapter.merge !== undefined]);
    const { description } = methods[name].config;
    const share = `${((100 * trained) / all).toPrecision(3)} %`;
    const fold = merges ? 'yes' : name === 'full' ? 'is the base' : 'no';
    return [
      `[\`${name}\`](${name}.md)`,
      papersOf(description!),
      `${trained.toLocaleString('en')} (${share})`,
      fold,
      layoutOf(name),
    ];
  });
  model[Symbol.dispose]();
  return markdownTable(['`type`', 'paper', 'trained of SmolLM2-135M', 'merges into the base', 'saved as'], rows);
}

/** The small configs of the tests' goldens, one a family. */
function configs(): Map<Family, Record<string, unknown>> {
  const goldens = join(packageRoot, 'test', 'golden', 'families');
  const found = readdirSync(goldens)
    .map((name) => join(goldens, name, 'config.json'))
    .filter(existsSync)
    .map((file) => JSON.parse(readFileSync(file, 'utf8')) as Record<string, unknown>);
  return new Map(
    families.map((family) => {
      const config = found.find(({ model_type }) => family.types.includes(String(model_type)));
      if (!config) throw new Error(`test/golden/families has no ${family.types[0]}`);
      return [family, config];
    }),
  );
}

/** Which methods go on each family for each of its tasks, and why the others do not. */
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
    return asked(method, model, () => undefined);
  } catch (cause) {
    if (cause instanceof GraftError) return cause.message;
    throw cause;
  }
}

function pairTable(): string {
  const all = pairs();
  const rows = families.map((family) => {
    const own = all.filter((pair) => pair.family === family);
    const refused = own.filter(({ why }) => why !== undefined);
    const said = refused.map(({ method, task, why }) => `${method} for ${task}: ${why}`).join('; ');
    const tasks = family.tasks.map((task) => `\`${task}\``).join(' ');
    return [family.types.map((type) => `\`${type}\``).join(' '), tasks, said || `all ${names.length}`];
  });
  return markdownTable(['`model_type`', 'tasks, the first by default', 'methods'], rows);
}

/** The rows that a method has in the comparisons of a folder, full fine-tuning's beside them; empty where it has none. */
export function comparisons(name: MethodName, dir = join(packageRoot, 'docs', 'comparison')): string {
  const files = existsSync(dir) ? readdirSync(dir).filter((file) => file.endsWith('.json')) : [];
  const lines = files.sort().flatMap((file) => {
    const results = JSON.parse(readFileSync(join(dir, file), 'utf8')) as Results;
    const methodsOf = new Map(results.outcomes.map((outcome) => [outcome.name, outcome.method.split(' + ')]));
    const { head, rows } = table(results);
    if (!rows.some(([row]) => methodsOf.get(row!)!.includes(name))) return [];
    const picture = file.replace(/json$/, 'html');
    const said = `${results.title}, ${results.date}`;
    const on = existsSync(join(dir, picture)) ? `[${said}](../comparison/${picture})` : said;
    return rows
      .filter(([row]) => methodsOf.get(row!)!.some((method) => method === name || method === 'full'))
      .map(([method, value, interval, ...rest]) => [method!, value!, head[1]!, interval!, ...rest, on]);
  });
  if (lines.length === 0) return '';
  const costs = ['trained', 'of all %', 'steps to loss', 'tokens/s', 'peak MB', 'kept MB', 'time s', 'lr'];
  return `## Compared\n\n${markdownTable(['method', 'result', 'metric', '95 % interval', ...costs, 'on'], lines)}`;
}

/** Puts `text` between the page's markers of this name. @throws Error where it has none */
function filled(page: string, marker: string, text: string, path: string): string {
  const [begin, end] = [`<!-- ${marker}: generated by npm run generate -->`, `<!-- end of ${marker} -->`];
  const [from, to] = [page.indexOf(begin), page.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${path} has no '${begin}' and '${end}' after it`);
  return `${page.slice(0, from + begin.length)}\n${text}${text && '\n'}${page.slice(to)}`;
}

/** docs/methods/ with what is generated in it. @throws Error for a method without a page */
export function methodPages(): GeneratedFile[] {
  const read = (path: string) => {
    const file = join(packageRoot, path);
    if (!existsSync(file)) throw new Error(`${path} is missing: every method has a page`);
    return readFileSync(file, 'utf8');
  };
  const index = 'docs/methods/README.md';
  const start = filled(read(index), 'methods', methodTable(), index);
  return [
    { path: index, text: filled(start, 'families', pairTable(), index) },
    ...names.map((name) => {
      const path = `docs/methods/${name}.md`;
      return { path, text: filled(read(path), 'comparison', comparisons(name), path) };
    }),
  ];
}
