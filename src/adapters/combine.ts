/** Several saved LoRA adapters as one more: PEFT's `add_weighted_adapter` on files, without the base. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { openSafetensors, readJsonObject, requireNew, writeDirectory, writeSafetensors } from '../io/index.ts';
import {
  byPattern,
  type Combination,
  type CombineSettings,
  combinations,
  combinedRank,
  combineUpdates,
  dareMasks,
  type WeightedUpdate,
} from '../methods/index.ts';
import { type DType, mixSeed, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { readPeftConfig, requireOwnBase } from './peft/index.ts';

export interface CombineOptions {
  /** One for each adapter; any sign. */
  readonly weights: readonly number[];
  /** `combination_type` of PEFT. */
  readonly how: Combination;
  /** Rank after a decomposition; default: the highest of the adapters'. */
  readonly svd_rank?: number;
  /** Share of the numbers that ties, dare and magnitude_prune keep; default 0.5. */
  readonly density?: number;
  readonly majority_sign_method?: 'total' | 'frequency';
  /** Of DARE's draws. */
  readonly seed?: number;
  /** DARE's draws, in the place of those from the seed. */
  readonly draw?: (module: string, ...which: Parameters<CombineSettings['draw']>) => Tensor;
}

const fields = z.object({
  r: z.number(),
  lora_alpha: z.number(),
  use_rslora: z.boolean().default(false),
  rank_pattern: z.record(z.string(), z.number()).default({}),
  alpha_pattern: z.record(z.string(), z.number()).default({}),
  target_modules: z.union([z.string(), z.array(z.string())]),
});

interface Saved {
  readonly dir: string;
  readonly raw: Readonly<Record<string, unknown>>;
  readonly config: z.infer<typeof fields>;
  /** A and B by module, and how the module's keys end. */
  readonly updates: ReadonlyMap<string, { a: Tensor; b: Tensor; table: boolean }>;
}

const key = /^base_model\.model\.(.*)\.lora_(?:(embedding_)([AB])|([AB])\.weight)$/;

/** Its tensors belong to the caller's scope. */
function readSaved(dir: string): Saved {
  const place = join(dir, 'adapter_config.json');
  const { method, config: own } = readPeftConfig(dir);
  if (method.name !== 'lora') {
    throw new GraftError('usage', `this is ${method.name}, and only LoRA adapters can be combined`, { place: dir });
  }
  requireOwnBase(own, dir);
  const raw = readJsonObject(place);
  using source = openSafetensors(join(dir, 'adapter_model.safetensors'));
  const halves = new Map<string, Partial<Record<'A' | 'B', Tensor>> & { table: boolean }>();
  const foreign: string[] = [];
  for (const [name, { format, shape }] of source.entries) {
    const [, module, embedding, ofTable, ofLinear] = key.exec(name) ?? [];
    if (module === undefined) {
      if (!name.endsWith('.base_layer.weight')) foreign.push(name);
      continue;
    }
    const stored = Tensor.empty(shape, format as DType);
    source.read(name, stored.memory());
    const tensor = stored.dtype === 'float32' ? stored : ops.toCopy(stored, { dtype: 'float32' });
    const table = embedding !== undefined;
    halves.set(module, { ...halves.get(module), table, [(ofTable ?? ofLinear) as 'A' | 'B']: tensor });
  }
  if (foreign.length > 0) {
    throw new GraftError('usage', `it holds more than A and B of LoRA, which cannot be weighed: ${foreign[0]}`, {
      place: dir,
      hint: 'Combine adapters without DoRA, biases, saved modules and task heads',
    });
  }
  const updates = new Map(
    [...halves].map(([module, { A: a, B: b, table }]) => {
      if (!a || !b) throw new GraftError('input', `${module} has only one of A and B`, { place: dir });
      return [module, { a, b, table }] as const;
    }),
  );
  return { dir, raw, config: parseWith(fields, raw, place, 'input'), updates };
}

/** The targets of all; by their whole paths where an adapter leaves out layers or modules that another has. */
function targetsOf(saved: readonly Saved[]): Record<string, unknown> {
  const limits = { layers_to_transform: null, layers_pattern: null, exclude_modules: null };
  const limited = saved.some(({ raw }) => Object.keys(limits).some((field) => (raw[field] ?? null) !== null));
  if (!limited) return { target_modules: joined(saved) };
  return { target_modules: [...new Set(saved.flatMap(({ updates }) => [...updates.keys()]))].sort(), ...limits };
}

function joined(saved: readonly Saved[]): string | string[] {
  const targets = saved.map(({ config }) => config.target_modules);
  if (targets.every((t) => typeof t === 'string')) return targets.map((t) => `(${t})`).join('|');
  if (targets.some((t) => typeof t === 'string'))
    throw new GraftError('usage', 'some adapters name their targets by a list and some by a regular expression', {
      hint: 'Give all of them a list',
    });
  return [...new Set(targets.flat())].sort();
}

/**
 * Writes the adapter that `dirs` are together, as PEFT combines them.
 * @returns its rank and the number of modules that it updates
 * @throws GraftError 'usage' for adapters that cannot be combined so, 'input' for broken files
 */
export function combineAdapters(
  dirs: readonly string[],
  out: string,
  options: CombineOptions,
): { rank: number; modules: number } {
  requireNew(out);
  const { weights, density = 0.5, majority_sign_method: majority = 'total', seed = 0 } = options;
  if (weights.length !== dirs.length)
    throw new GraftError('usage', `there are ${dirs.length} adapters and ${weights.length} weights`, {
      place: 'weights',
      hint: 'Give one for each adapter',
    });
  if (!(density >= 0 && density <= 1))
    throw new GraftError('usage', 'density is a share, from 0 to 1', { place: 'density' });
  if (!combinations.includes(options.how)) {
    throw new GraftError('usage', `'${options.how}' is no way to combine adapters`, {
      hint: `There are ${combinations.join(', ')}`,
    });
  }
  // Of one adapter only its scale changes.
  const how = dirs.length === 1 ? 'linear' : options.how;
  using _ = scope();
  const saved = dirs.map(readSaved);
  const rank = combinedRank(
    how,
    saved.map(({ config }) => Math.max(config.r, ...Object.values(config.rank_pattern))),
    options.svd_rank,
  );
  const tensors = noGrad(() => combineAll(saved, { ...options, how, rank, density, majority, seed }));
  const [first] = saved as [Saved, ...Saved[]];
  // What was combined has the scaling 1. PEFT keeps the first adapter's use_rslora, which makes it √r.
  const config = {
    ...first.raw,
    r: rank,
    lora_alpha: rank,
    use_rslora: false,
    rank_pattern: {},
    alpha_pattern: {},
    ...targetsOf(saved),
    init_lora_weights: true,
    inference_mode: true,
  };
  writeDirectory(out, (work) => {
    writeFileSync(join(work, 'adapter_config.json'), `${JSON.stringify(config, null, 2)}\n`);
    const entries = [...tensors].map(([name, t]) => ({ name, dtype: t.dtype, shape: t.shape, bytes: () => t.bytes() }));
    writeSafetensors(join(work, 'adapter_model.safetensors'), entries, { format: 'pt' });
  });
  return { rank, modules: tensors.size / 2 };
}

function combineAll(
  saved: readonly Saved[],
  { weights, draw, seed, ...combining }: CombineOptions & Omit<CombineSettings, 'draw'> & { seed: number },
): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  const modules = [...new Set(saved.flatMap(({ updates }) => [...updates.keys()]))];
  modules.forEach((module, n) => {
    const owners = saved.flatMap((adapter, i) => (adapter.updates.has(module) ? [{ adapter, i }] : []));
    const updates = owners.map(({ adapter: { config, updates }, i }): WeightedUpdate => {
      const { a, b } = updates.get(module)!;
      const r = byPattern(config.rank_pattern, module, config.r);
      const alpha = byPattern(config.alpha_pattern, module, config.lora_alpha);
      return { a, b, scaling: alpha / (config.use_rslora ? Math.sqrt(r) : r), weight: weights[i]! };
    });
    requireOneShape(
      module,
      owners.map(({ adapter }) => adapter.dir),
      updates,
      combining.how,
    );
    const own = dareMasks(combining.density, mixSeed(seed, n));
    const drawn: CombineSettings['draw'] = draw ? (side, i, shape) => draw(module, side, owners[i]!.i, shape) : own;
    const { a, b } = combineUpdates(updates, { ...combining, draw: drawn });
    const at = `base_model.model.${module}.lora_`;
    const { table } = owners[0]!.adapter.updates.get(module)!;
    tensors.set(table ? `${at}embedding_A` : `${at}A.weight`, ops.contiguous(a));
    tensors.set(table ? `${at}embedding_B` : `${at}B.weight`, ops.contiguous(b));
  });
  return tensors;
}

function requireOneShape(
  module: string,
  dirs: readonly string[],
  updates: readonly WeightedUpdate[],
  how: Combination,
): void {
  const shapes = updates.map(({ a, b }) => `${b.size(0)}×${a.size(1)}`);
  const other = shapes.findIndex((shape) => shape !== shapes[0]);
  if (other >= 0)
    throw new GraftError(
      'mismatch',
      `the adapters are for other bases: ${module} is ${shapes[0]} in ${dirs[0]} and ${shapes[other]} in ${dirs[other]}`,
    );
  combinedRank(
    how,
    updates.map(({ a }) => a.size(0)),
  );
}
