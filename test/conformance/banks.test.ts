/**
 * Adapters that share a batch: on every model, one pass over rows of the base and of adapters of all methods, against each adapter
 * attached alone in the ordinary way to a model of its own. And what is added and removed meanwhile.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { loadAdapter, loadResident, saveAdapter, savedAdapters } from '../../src/adapters/index.ts';
import { pack, type Row } from '../../src/data/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { attachMethods, Banks, type MethodChoice } from '../../src/methods/index.ts';
import { KvPool, type Model, outputOf, type PackedTokens, packTokens } from '../../src/nn/index.ts';
import { tokensOf } from '../../src/tasks/index.ts';
import { noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import { numbers, relativeError, temporary } from '../support.ts';
import { type Base, bases, familyBases } from './bases.ts';
import { perturb, savedBottlenecks } from './cases.ts';
import { liveHandles } from './properties.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

const folder = temporary();
process.on('exit', () => folder[Symbol.dispose]());

type Choice = { readonly type: string } & Readonly<Record<string, unknown>>;
type Choices = (model: Model, base: Base) => readonly Choice[] | undefined;

const lora = (config: object = {}): Choices => {
  return () => [{ type: 'lora', r: 4, ...config }];
};
const everywhere = { target_modules: 'all-linear' };
const three = { num_virtual_tokens: 3 };
const isImage = ({ image }: Model) => image !== undefined;
const isCausal = ({ task }: Model) => task.name === 'causal-lm';
const lastPart = (path: string) => path.split('.').at(-1)!;
/** The last part of the path of the blocks' norms, as `modules_to_save` names it, and of one linear layer. */
const ifTokens =
  (choices: (model: Model) => readonly Choice[]): Choices =>
  (model) =>
    isImage(model) ? undefined : choices(model);

/** Adapters that banks hold, each of one method or several; undefined: the model cannot have it. */
const held: Readonly<Record<string, Choices>> = {
  LoRA: lora(),
  'LoRA, every layer, patterns': lora({
    ...everywhere,
    use_rslora: true,
    rank_pattern: { '.*0\\..*': 2 },
    alpha_pattern: { '.*1\\..*': 3 },
  }),
  'LoRA, biases of targets': lora({ bias: 'lora_only' }),
  'LoRA, all biases': (model, base) => (base.packed || isImage(model) ? undefined : lora({ bias: 'all' })(model, base)),
  'LoRA, biases of updates': lora({ ...everywhere, lora_bias: true }),
  DoRA: lora({ ...everywhere, use_dora: true }),
  'LoRA, table and head': (model) =>
    isCausal(model)
      ? [
          {
            type: 'lora',
            r: 4,
            target_modules: [
              lastPart(model.sites.embeddings),
              lastPart(model.sites.head!),
              lastPart(model.sites.mlp.up),
            ],
          },
        ]
      : undefined,
  'DoRA, table': ifTokens(({ sites }) => [
    { type: 'lora', r: 4, use_dora: true, target_modules: [lastPart(sites.embeddings), lastPart(sites.mlp.down)] },
  ]),
  'LoRA, rows of tokens': ifTokens(() => [
    { type: 'lora', r: 4, trainable_token_indices: Array.from({ length: 45 }, (_, i) => 2 * i + 1) },
  ]),
  'LoRA, a table and a layer trained whole': ifTokens(({ sites }) => [
    {
      type: 'lora',
      r: 4,
      target_modules: [lastPart(sites.attention.o)],
      modules_to_save: [lastPart(sites.embeddings), sites.mlp.up.replace('*', '0')],
    },
  ]),
  PiSSA: (_, { packed }) => (packed ? undefined : [{ type: 'lora', r: 4, init_lora_weights: 'pissa' }]),
  AdaLoRA: () => [{ type: 'adalora', init_r: 4, target_r: 2 }],
  '(IA)³': () => [{ type: 'ia3' }],
  '(IA)³, one block': ({ sites: { attention, mlp } }) => {
    const [q, o, down] = [attention.q, attention.o, mlp.down].map((path) => path.replace('*', '0'));
    return [{ type: 'ia3', target_modules: [q, o, down], feedforward_modules: [down, o] }];
  },
  Pfeiffer: () => [{ type: 'bottleneck', reduction_factor: 4 }],
  Houlsby: () => [{ type: 'bottleneck', config: 'double_seq_bn', reduction_factor: 2 }],
  parallel: () => [{ type: 'bottleneck', config: 'par_bn', reduction_factor: 2 }],
  Compacter: () => [{ type: 'bottleneck', config: 'compacter', reduction_factor: 2, phm_dim: 2 }],
  invertible: ifTokens(() => [{ type: 'bottleneck', config: 'seq_bn_inv', reduction_factor: 4 }]),
  'invertible, undone before the head': (model) =>
    isCausal(model)
      ? [{ type: 'bottleneck', config: 'seq_bn_inv', reduction_factor: 4, inverse_before_head: true }]
      : undefined,
  'gated, with norms': () => [
    {
      ...{ type: 'bottleneck', reduction_factor: 4, non_linearity: 'leakyrelu', scaling: 'channel' },
      ...{ use_gating: true, ln_before: true, ln_after: true },
    },
  ],
  fusion: (_, base) => [
    { type: 'fusion', adapters: savedBottlenecks(base, [{ reduction_factor: 4 }, { reduction_factor: 8 }]) },
  ],
  prefix: () => [{ type: 'prefix', ...three }],
  'prefix of an encoder': () => [
    { type: 'prefix', num_virtual_tokens: 5, prefix_projection: true, encoder_hidden_size: 12 },
  ],
  prompt: () => [{ type: 'prompt', ...three, prompt_tuning_init: 'RANDOM' }],
  'multitask prompt': () => [{ type: 'multitask-prompt', ...three, num_ranks: 2 }],
  'P-tuning, MLP': () => [{ type: 'p-tuning', num_virtual_tokens: 2, encoder_hidden_size: 12 }],
  'P-tuning, LSTM': () => [
    { type: 'p-tuning', ...three, encoder_hidden_size: 12, encoder_reparameterization_type: 'LSTM' },
  ],
  'LoRA, (IA)³ and LoRA': () => [
    { type: 'lora', r: 2, ...everywhere },
    { type: 'ia3' },
    { type: 'lora', r: 4, ...everywhere },
  ],
  'DoRA above LoRA': () => [
    { type: 'lora', r: 2, ...everywhere },
    { type: 'lora', r: 4, ...everywhere, use_dora: true },
  ],
  'prefix, prompts, bottlenecks and LoRA': () => [
    { type: 'prefix', ...three },
    { type: 'prompt', ...three, prompt_tuning_init: 'RANDOM' },
    { type: 'p-tuning', num_virtual_tokens: 2, encoder_hidden_size: 12 },
    { type: 'bottleneck', reduction_factor: 4 },
    { type: 'bottleneck', reduction_factor: 8 },
    { type: 'lora', r: 4 },
  ],
};

/** Saves an adapter of each, with random numbers, and returns the directories by name. */
function savedOn(base: Base): Map<string, string> {
  const dirs = new Map<string, string>();
  Object.entries(held).forEach(([name, choicesOf], i) => {
    using _ = scope();
    using model = base.load();
    const choices = choicesOf(model, base);
    if (!choices) return;
    const dir = join(folder.path, `${base.name.replaceAll('/', '-')} ${i}`);
    if (!existsSync(dir)) {
      const adapter = attachMethods(model, choices as unknown as MethodChoice[], i, savedAdapters(model));
      for (const [p, part] of adapter.parts.entries()) perturb(part, 100 * i + p);
      saveAdapter(model, adapter, dir, { base: 'b' });
      adapter.detach();
    }
    dirs.set(name, dir);
  });
  return dirs;
}

/** Rows that the model reads, in number. */
function rowsOf(model: Model, base: Base, count: number): Row[] {
  const rows: Row[] = [];
  for (let seed = 0; rows.length < count; seed++) rows.push(...base.batch(model, seed).rows);
  return rows.slice(0, count).map(({ pair: _, ...row }) => row);
}

/** Returns the head's output for each row. */
function outputs(model: Model, tokens: PackedTokens): Float32Array[] {
  const { rowStarts } = tokens;
  const all = noGrad(() => outputOf(model, tokens));
  const perToken = all.size(0) === rowStarts.at(-1);
  const width = all.size(1);
  const values = numbers(all);
  return rowStarts.slice(1).map((end, r) => {
    const [from, to] = perToken ? [rowStarts[r]!, end] : [r, r + 1];
    return values.slice(from * width, to * width);
  });
}

const counts = { rows: 0, adapters: 0, worst: 0 };

for (const base of [...bases, ...familyBases]) {
  test(`rows of the base and of every adapter in one batch on ${base.name}`, () => {
    const dirs = savedOn(base);
    const live = liveHandles();
    {
      using _ = scope();
      using model = base.load();
      using banks = new Banks(model);
      const names = [...dirs.keys()];
      names.forEach((name, i) => {
        const { alone } = loadResident(model, banks, dirs.get(name)!, i + 1);
        assert.equal(alone, undefined, `${name}: ${alone?.reason}`);
        assert.ok(banks.holds(i + 1));
      });
      // Each adapter twice, the base now and then; some neighbours share an adapter.
      const adapters = names.flatMap((_, i) => (i % 3 === 0 ? [i + 1, 0] : i % 3 === 1 ? [i + 1, i + 1] : [i + 1]));
      adapters.push(...names.map((_, i) => names.length - i));
      const rows = rowsOf(model, base, adapters.length);
      const mixed = outputs(model, { ...tokensOf(model, pack(rows)), adapters });

      using reference = base.load();
      const ofBase = rows.map((row) => outputs(reference, tokensOf(reference, pack([row])))[0]!);
      const alone = (name: string | undefined) => {
        using adapter = name === undefined ? undefined : loadAdapter(reference, dirs.get(name)!);
        rows.forEach((row, r) => {
          if ((name === undefined ? 0 : names.indexOf(name) + 1) !== adapters[r]) return;
          using _ = scope();
          const [wanted] = outputs(reference, tokensOf(reference, pack([row]))) as [Float32Array];
          const error = relativeError(mixed[r]!, wanted);
          counts.worst = Math.max(counts.worst, error);
          assert.ok(error <= 1e-5, `row ${r}, ${name ?? 'the base'}: ${error}`);
          if (name === undefined) return;
          const change = relativeError(wanted, ofBase[r]!);
          assert.ok(change > 3e-5, `row ${r}: ${name} changes the base's answer by ${change} only`);
          counts.rows++;
        });
        if (adapter) counts.adapters++;
      };
      for (const name of [undefined, ...names]) alone(name);
    }
    assert.equal(liveHandles(), live, 'live handles');
  });
}

// --- decoding, with keys and values in a pool

const decoded = { rows: 0, tokens: 0, worst: 0 };
const isDecoder = ({ name }: Base) => /^(models|gguf)\/|^a wide llama|^gpt2(-scaled)?$|^gpt-neox(-serial)?$/.test(name);
const mostTokens = 64;
/** Prompts are at most 13 tokens long, and adapters put at most 8 virtual ones before them. */
const newTokensOf = ({ contextLength }: Model) => Math.min(mostTokens, contextLength - 13 - 8);

/** Returns the likeliest token of each row of logits [R, V]. */
const likeliest = (logits: Tensor): number[] => Array.from(ops.argmax(logits, -1).data() as BigInt64Array, Number);

/** Decodes greedily, all rows in one batch, and returns the rows with their new tokens and the logits [V] that each came from. */
function decode(model: Model, prompts: readonly (readonly number[])[], adapters: readonly number[]) {
  using pool = new KvPool(model, prompts.length * 4);
  const rows = prompts.map((prompt) => [...prompt]);
  const logits: Float32Array[][] = rows.map(() => []);
  const filled = rows.map(() => 0);
  noGrad(() => {
    for (let step = 0; step < newTokensOf(model); step++) {
      using _ = scope();
      const fed = rows.map((row) => (step === 0 ? row : row.slice(-1)));
      const tokens = packTokens(fed, [], adapters);
      const blocks = rows.map((_, r) => [0, 1, 2, 3].map((b) => 4 * r + b));
      const hidden = model.hidden(tokens, { pool, blocks, filled: [...filled] });
      const last = Tensor.from(BigInt64Array.from(tokens.rowStarts.slice(1), (end) => BigInt(end - 1)));
      const starts = [...Array(rows.length + 1).keys()];
      model.ports.selectRuns(starts, adapters);
      const out = model.logits(ops.indexSelect(hidden, 0, last), starts);
      const values = numbers(out);
      const width = out.size(1);
      likeliest(out).forEach((token, r) => {
        filled[r]! += fed[r]!.length + (step === 0 ? model.ports.virtualLengthOf(adapters[r]) : 0);
        logits[r]!.push(values.slice(r * width, (r + 1) * width));
        rows[r]!.push(token);
      });
    }
  });
  return { rows, logits };
}

for (const base of [...bases, ...familyBases].filter(isDecoder)) {
  test(`${mostTokens} tokens of the base and of every adapter, decoded in one batch, on ${base.name}`, () => {
    const dirs = savedOn(base);
    dirs.delete('gated, with norms'); // its gate reads the whole row
    using _ = scope();
    using model = base.load();
    using banks = new Banks(model);
    const names = [...dirs.keys()];
    names.forEach((name, i) => {
      loadResident(model, banks, dirs.get(name)!, i + 1);
    });
    const adapters = [0, ...names.map((_, i) => i + 1), 0, 1, 1];
    const prompts = rowsOf(model, base, adapters.length).map(({ ids }) => Array.from(ids));
    const newTokens = newTokensOf(model);
    const { rows, logits } = decode(model, prompts, adapters);
    using reference = base.load();
    for (const [number, name] of [undefined, ...names].entries()) {
      using _adapter = name === undefined ? undefined : loadAdapter(reference, dirs.get(name)!);
      rows.forEach((row, r) => {
        if (adapters[r] !== number) return;
        using _ = scope();
        const prompt = prompts[r]!.length;
        const all = noGrad(() => outputOf(reference, packTokens([row.slice(0, -1)])));
        const wanted = ops.narrow(all, 0, prompt - 1, newTokens);
        assert.deepEqual(row.slice(prompt), likeliest(wanted), `row ${r}, ${name ?? 'the base'}`);
        const error = relativeError(
          Float32Array.from(logits[r]!.flatMap((v) => Array.from(v))),
          numbers(ops.clone(wanted)),
        );
        decoded.worst = Math.max(decoded.worst, error);
        assert.ok(error <= 1e-5, `row ${r}, ${name ?? 'the base'}: ${error}`);
        decoded.rows++;
        decoded.tokens += newTokens;
      });
    }
  });
}

test('so many tokens were compared', (t) => {
  t.diagnostic(JSON.stringify(decoded));
  assert.deepEqual({ ...decoded, worst: 0 }, { rows: 500, tokens: 27_512, worst: 0 });
});

test('so many rows were compared', (t) => {
  t.diagnostic(JSON.stringify(counts));
  assert.deepEqual({ ...counts, worst: 0 }, { rows: 2644, adapters: 1131, worst: 0 });
});
