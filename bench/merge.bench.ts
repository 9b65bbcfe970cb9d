/**
 * Models that Graft writes, loaded by transformers: an adapter merged into every base of test/golden/, and every base after some
 * steps of full fine-tuning. Compared are logits (with those of base and adapter in Graft), keys of the file, and token ids.
 *   npm run proof:merge -- [--only NAME]
 * The peer is the Python of `npm run proof:peer`, or of GRAFT_PEER. Exits with 1 if anything differs.
 */
import { cpSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { saveAdapter } from '../src/adapters/index.ts';
import { pack, tokenizerFilesOf, tokenizerIfAny } from '../src/data/index.ts';
import { startEngine } from '../src/engine/index.ts';
import { openSafetensors, readJsonObject } from '../src/io/index.ts';
import { attachMethods } from '../src/methods/index.ts';
import { loadModel, saveModel } from '../src/models/index.ts';
import { type Model, outputOf, type PackedTokens, packImages, packTokens } from '../src/nn/index.ts';
import { createOptimizer } from '../src/optim/index.ts';
import { mergeFiles } from '../src/session/jobs/merge.ts';
import { noGrad, ops, scope } from '../src/tensor/index.ts';
import { trainStep } from '../src/train/index.ts';
import { rowsFor } from '../test/conformance/bases.ts';
import { golden } from '../test/support.ts';
import { integers, peer, report, workFolder } from './support.ts';

const { values: args } = parseArgs({ options: { only: { type: 'string', default: '' } } });
await startEngine();
const dir = workFolder();
const steps = 3;

/** Texts with spaces, digits, accents, an emoji, a contraction and several lines. */
const texts = [
  'Hello world',
  " it's 12345 o'clock\n\n  then",
  'déjà vu — naïve Übergröße 漢字 🙂',
  'def f(x):\n\treturn x + 1',
];

interface Base {
  readonly name: string;
  readonly path: string;
}

/** Returns the golden as it is, with further files or with other fields in its config. */
function variant(name: string, from: string, change: (at: string) => void): Base {
  const path = join(dir, 'bases', name);
  cpSync(from, path, { recursive: true });
  change(path);
  return { name, path };
}

const withFields = (fields: object) => (at: string) => {
  const config = { ...readJsonObject(join(at, 'config.json')), ...fields };
  writeFileSync(join(at, 'config.json'), JSON.stringify(config));
};

/** The tokenizers of test/golden/, each beside a model that it could belong to. */
function withTokenizers(): Base[] {
  const decoders = ['llama2', 'llama3', 'mistral', 'qwen2', 'unigram'].map((name) =>
    variant(`llama2 with the tokenizer ${name}`, golden('models', 'llama2'), (at) => {
      cpSync(golden('tokenizer', `${name}.json`), join(at, 'tokenizer.json'));
      const special = { bos_token: '<s>', eos_token: '</s>' };
      writeFileSync(
        join(at, 'tokenizer_config.json'),
        JSON.stringify({ tokenizer_class: 'PreTrainedTokenizerFast', ...special }),
      );
    }),
  );
  const encoders = [
    ['bert', 'bert-seqcls'],
    ['gpt2', 'gpt2'],
    ['roberta', 'roberta-seqcls'],
  ].map(([files, model]) =>
    variant(`${model} with its vocabulary`, golden('families', model!), (at) => {
      for (const name of readdirSync(golden('tokenizer', 'files', files!)))
        if (/^(vocab|merges|tokenizer_config)\./.test(name))
          cpSync(golden('tokenizer', 'files', files!, name), join(at, name));
    }),
  );
  return [...decoders, ...encoders];
}

/** GGUF files whose metadata scale the rotary positions, or have the tokenizer add tokens. */
function ggufVariants(): Base[] {
  const theta = 10_000;
  const pairs = Array.from({ length: 4 }, (_, i) => i);
  const wavelengths = pairs.map((i) => 2 * Math.PI * theta ** (i / 4));
  const llama3 = wavelengths.map((wavelength) => {
    if (wavelength < 8192 / 4) return 1;
    const smooth = (8192 / wavelength - 1) / 3;
    return wavelength > 8192 ? 8 : 1 / ((1 - smooth) / 8 + smooth);
  });
  const yarn = { 'llama.rope.scaling.type': 'yarn', 'llama.rope.scaling.factor': 4.5 };
  const none = { fields: {}, tensors: {} };
  const variants = {
    'gguf with divisors of Llama 3': { ...none, tensors: { 'rope_freqs.weight': llama3 } },
    'gguf with other divisors': { ...none, tensors: { 'rope_freqs.weight': [1, 1.5, 2.5, 3] } },
    'gguf with YaRN': { ...none, fields: { ...yarn, 'llama.rope.scaling.original_context_length': 16 } },
    'gguf with linear scaling': { ...none, fields: { ...yarn, 'llama.rope.scaling.type': 'linear' } },
    'gguf that adds BOS': { ...none, fields: { 'tokenizer.ggml.add_bos_token': true } },
    'gguf that adds BOS and EOS': {
      ...none,
      fields: { 'tokenizer.ggml.add_bos_token': true, 'tokenizer.ggml.add_eos_token': true },
    },
  };
  const file = join(dir, 'variants.json');
  writeFileSync(file, JSON.stringify(variants));
  peer('gguf_variants.py', '--gguf', golden('gguf', 'llama.gguf'), '--variants', file, '--out', join(dir, 'gguf'));
  return Object.keys(variants).map((name) => ({ name, path: join(dir, 'gguf', `${name}.gguf`) }));
}

/** Says that a head of its own is tied. */
const ownHead = withFields({ tie_word_embeddings: true });

const quantized = {
  quantization_config: { quant_method: 'bitsandbytes', load_in_4bit: true },
  torch_dtype: 'bfloat16',
};
const bases: readonly Base[] = [
  ...['models', 'families'].flatMap((folder) =>
    readdirSync(golden(folder)).map((name) => ({ name: `${folder}/${name}`, path: golden(folder, name) })),
  ),
  ...['llama', 'qwen2'].map((name) => ({ name: `gguf/${name}`, path: golden('gguf', `${name}.gguf`) })),
  ...ggufVariants(),
  ...withTokenizers(),
  variant('llama2 with a head of its own under the flag', golden('models', 'llama2'), ownHead),
  variant('llama2 that says it is quantised', golden('models', 'llama2'), withFields(quantized)),
].filter(({ name }) => name.includes(args.only));

/** Rows that the model reads: ids, one row as long as the context allows (48 at most), or two images. */
function inputsFor(model: Model): { packed: PackedTokens; json: object } {
  const { image, vocabSize, contextLength } = model;
  const below = integers(5);
  if (image) {
    const size = image.channels * image.height * image.width;
    const images = [0, 1].map(() => Float32Array.from({ length: size }, () => below(2001) / 1000 - 1));
    const nested = images.map((pixels) =>
      Array.from({ length: image.channels }, (_, c) =>
        Array.from({ length: image.height }, (_, y) => {
          const start = (c * image.height + y) * image.width;
          return Array.from(pixels.subarray(start, start + image.width));
        }),
      ),
    );
    return { packed: packImages(images, image), json: { pixels: nested } };
  }
  const lengths = [Math.min(48, contextLength), 5, 1];
  // No id is the padding's, before which transformers would read the last token of a row.
  const ids = lengths.map((length) => Array.from({ length }, () => 3 + below(vocabSize - 3)));
  return { packed: packTokens(ids), json: { ids } };
}

interface Job {
  readonly name: string;
  readonly dir: string;
  readonly expected: readonly Float32Array[];
  readonly tokenIds: readonly (readonly number[])[] | undefined;
  readonly json: object;
}

/** What the model computes for its inputs, row by row, and the peer's job to compute it from `path`. */
function jobOf(name: string, model: Model, path: string, base: string): Job {
  const { packed, json } = inputsFor(model);
  const expected = noGrad(() => {
    using _ = scope();
    const headless = model.task.name === 'embedding';
    const out = ops.contiguous(headless ? model.hidden(packed) : outputOf(model, packed));
    const rows = packed.rowStarts.length - 1;
    return Array.from({ length: rows }, (_, r) => {
      const [start, end] = out.size(0) === rows ? [r, r + 1] : [packed.rowStarts[r]!, packed.rowStarts[r + 1]!];
      return (ops.contiguous(ops.narrow(out, 0, start, end - start)).data() as Float32Array).slice();
    });
  });
  const tokenizer = tokenizerIfAny(base);
  const tokenIds = tokenizer && texts.map((text) => Array.from(tokenizer.encode(text)));
  return { name, dir: path, expected, tokenIds, json: { ...json, ...(tokenizer && { texts }) } };
}

async function merged({ name, path }: Base, i: number): Promise<Job> {
  const [adapterDir, out] = [join(dir, `adapter-${i}`), join(dir, `merged-${i}`)];
  using model = loadModel(path);
  using adapter = attachMethods(model, [{ type: 'lora', r: 4, lora_alpha: 8, init_lora_weights: false }], i);
  saveAdapter(model, adapter, adapterDir, { base: path });
  await mergeFiles({ model: path, adapter: adapterDir, out });
  return jobOf(`${name}, merged`, model, out, path);
}

function trained({ name, path }: Base, i: number): Job {
  const out = join(dir, `full-${i}`);
  using model = loadModel(path);
  using adapter = attachMethods(model, [{ type: 'full' }], i);
  const { parameters } = adapter;
  using optimizer = createOptimizer(
    { type: 'adamw', beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0 },
    parameters,
  );
  const batch = rowsFor(model, i);
  const { multiLabel, labels } = model.task;
  const several = () =>
    pack(batch.rows.map((row, r) => ({ ...row, target: labels.map((_, label) => (label + r) % 2) })));
  const batches = [multiLabel ? several() : batch];
  for (let step = 0; step < steps; step++)
    trainStep({ model, parameters, optimizer, batches, lr: 1e-2, maxGradNorm: 1, seed: 3, step });
  saveModel(model, out, path, 'float32', tokenizerFilesOf(path));
  return jobOf(`${name}, full`, model, out, path);
}

const jobs: Job[] = [];
const notWritten: string[] = [];
mkdirSync(join(dir, 'bases'), { recursive: true });
for (const [i, base] of bases.entries()) {
  for (const write of [merged, trained]) {
    try {
      jobs.push(await write(base, i));
    } catch (error) {
      notWritten.push(`${base.name}, ${write.name}: ${(error as Error).message}`);
    }
  }
  if (base.name.startsWith('gguf/')) {
    using model = loadModel(base.path);
    jobs.push({ ...jobOf(`${base.name} itself`, model, base.path, base.path), tokenIds: undefined });
  }
  console.error(`wrote ${base.name}`);
}
const [jobsFile, out] = [join(dir, 'jobs.json'), join(dir, 'peer.safetensors')];
writeFileSync(jobsFile, JSON.stringify(jobs.map(({ dir, json }) => ({ dir, ...json }))));

interface PeerResult {
  readonly error?: string;
  readonly missing_keys?: string[];
  readonly unexpected_keys?: string[];
  readonly mismatched_keys?: string[];
  readonly token_ids?: number[][];
}

const { results, transformers } = peer('load.py', '--jobs', jobsFile, '--out', out) as {
  results: PeerResult[];
  transformers: string;
};
using source = openSafetensors(out);
const problems = [...notWritten];
let [rows, worst, worstAt, keys, textsCompared, differentTexts, notLoaded] = [0, 0, '', 0, 0, 0, 0];
for (const [j, { name, expected, tokenIds }] of jobs.entries()) {
  const result = results[j]!;
  if (result.error) {
    notLoaded++;
    problems.push(`${name}: ${result.error}`);
    continue;
  }
  for (const kind of ['missing_keys', 'unexpected_keys', 'mismatched_keys'] as const) {
    keys += result[kind]!.length;
    if (result[kind]!.length > 0) problems.push(`${name}: ${kind} ${result[kind]!.slice(0, 3).join(', ')}`);
  }
  for (const [r, row] of expected.entries()) {
    const theirs = new Float32Array(source.entries.get(`${j}.${r}`)!.bytes / 4);
    source.read(`${j}.${r}`, new Uint8Array(theirs.buffer));
    const difference = row.reduce((most, x, i) => Math.max(most, Math.abs(x - theirs[i]!)), 0);
    if (row.length !== theirs.length || !(difference <= worst)) [worst, worstAt] = [difference, `${name}, row ${r}`];
    if (row.length !== theirs.length || !(difference <= 1e-4))
      problems.push(`${name}, row ${r}: logits differ by ${difference}`);
    rows++;
  }
  for (const [t, ids] of (tokenIds ?? []).entries()) {
    textsCompared++;
    if (JSON.stringify(ids) === JSON.stringify(result.token_ids![t])) continue;
    differentTexts++;
    problems.push(
      `${name}: ${JSON.stringify(texts[t])} is ${JSON.stringify(result.token_ids![t])}, here ${JSON.stringify(ids)}`,
    );
  }
}
for (const problem of problems) console.log(problem);
const least = (what: string, got: number, bar = 0) => ({ what, got, bar, better: 'less' as const });
report(
  'merge',
  [
    least('models that Graft does not write', notWritten.length),
    least('models that transformers does not load', notLoaded),
    least('keys missing, unexpected or of another shape', keys),
    least('largest difference of a logit', worst, 1e-4),
    least('texts with other token ids', differentTexts),
    { what: 'models checked', got: jobs.length, bar: args.only ? 1 : 90, better: 'more' },
  ],
  { transformers, bases: bases.length, models: jobs.length, rows, texts: textsCompared, worst_at: worstAt, problems },
);
