/** The weighted combination of saved LoRA adapters as a new adapter: PEFT's `add_weighted_adapter` on files, without the base. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';
import { readJsonObject, requireNew, writeDirectory, writeSafetensors } from '../io/index.ts';
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
import { readTensor } from '../models/index.ts';
import { mixSeed, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { isGgufAdapter } from './gguf/index.ts';
import { keyPrefix, openPeftWeights, requireUnchangedBase } from './peft/index.ts';
import { layoutOf } from './registry.ts';
import { tensorToWrite } from './tensor-files.ts';

/** Options of `combineAdapters`. */
export interface CombineOptions {
  /** One weight for each adapter, of any sign. */
  readonly weights: readonly number[];
  /** PEFT's `combination_type`. */
  readonly how: Combination;
  /** Rank after a decomposition. Default: the highest rank of the adapters. */
  readonly svd_rank?: number;
  /** Fraction of the values that ties, dare and magnitude_prune keep, from 0 to 1. Default: 0.5. */
  readonly density?: number;
  /** Whether ties elects a sign by the sum of the values or by their number. Default: total. */
  readonly majority_sign_method?: 'total' | 'frequency';
  /** Seed of DARE's random masks. Default: 0. */
  readonly seed?: number;
  /** DARE's masks, instead of random ones. */
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

/** A saved LoRA adapter. */
interface SavedLora {
  readonly dir: string;
  /** All fields of the config file. */
  readonly raw: Readonly<Record<string, unknown>>;
  readonly config: z.infer<typeof fields>;
  /** A [r, in] and B [out, r], float32, by module. */
  readonly updates: ReadonlyMap<string, { a: Tensor; b: Tensor; isEmbedding: boolean }>;
}

/** Matches the key of A or B of an embedding, or of a linear layer. */
const updateKey = /^base_model\.model\.(.*)\.lora_(?:(embedding_)([AB])|([AB])\.weight)$/;

/** Reads an adapter. Its tensors belong to the caller's scope. @throws GraftError 'usage' for what cannot be combined */
function readLora(dir: string): SavedLora {
  if (isGgufAdapter(dir)) {
    throw new GraftError('usage', 'GGUF files of adapters cannot be combined', {
      place: dir,
      hint: 'Write them in PEFT’s format first: graft convert --to peft',
    });
  }
  const place = join(dir, 'adapter_config.json');
  const { method, config } = layoutOf(dir).readConfig(dir);
  if (method !== 'lora') {
    throw new GraftError('usage', `this is ${method}, and only LoRA adapters can be combined`, { place: dir });
  }
  requireUnchangedBase(config, dir);
  const raw = readJsonObject(place);
  using source = openPeftWeights(dir);
  const matrices = new Map<string, Partial<Record<'A' | 'B', Tensor>> & { isEmbedding: boolean }>();
  const otherTensors: string[] = [];
  for (const name of source.entries.keys()) {
    const [, module, embedding, ofEmbedding, ofLinear] = updateKey.exec(name) ?? [];
    if (module === undefined) {
      if (!name.endsWith('.base_layer.weight')) otherTensors.push(name);
      continue;
    }
    matrices.set(module, {
      ...matrices.get(module),
      isEmbedding: embedding !== undefined,
      [(ofEmbedding ?? ofLinear) as 'A' | 'B']: readTensor(source, name, 'float32'),
    });
  }
  if (otherTensors.length > 0) {
    throw new GraftError(
      'usage',
      `this adapter holds more than A and B of LoRA, which cannot be combined: ${otherTensors[0]}`,
      {
        place: dir,
        hint: 'Combine adapters without DoRA, biases, saved modules and task heads',
      },
    );
  }
  const updates = new Map(
    [...matrices].map(([module, { A: a, B: b, isEmbedding }]) => {
      if (!a || !b) throw new GraftError('input', `${module} has only one of A and B`, { place: dir });
      return [module, { a, b, isEmbedding }] as const;
    }),
  );
  return { dir, raw, config: parseWith(fields, raw, place, 'input'), updates };
}

/** The target fields of the combination: whole paths where an adapter leaves out layers or modules that another updates. */
function targetsOf(adapters: readonly SavedLora[]): Record<string, unknown> {
  const limits = { layers_to_transform: null, layers_pattern: null, exclude_modules: null };
  const limited = adapters.some(({ raw }) => Object.keys(limits).some((field) => (raw[field] ?? null) !== null));
  if (!limited) return { target_modules: joinedTargets(adapters) };
  return { target_modules: [...new Set(adapters.flatMap(({ updates }) => [...updates.keys()]))].sort(), ...limits };
}

/** The `target_modules` of all adapters as one list, or as one regular expression. */
function joinedTargets(adapters: readonly SavedLora[]): string | string[] {
  const targets = adapters.map(({ config }) => config.target_modules);
  if (targets.every((t) => typeof t === 'string')) return targets.map((t) => `(${t})`).join('|');
  if (targets.some((t) => typeof t === 'string'))
    throw new GraftError('usage', 'target_modules is a list in some adapters and a regular expression in others', {
      hint: 'Use a list in all of them',
    });
  return [...new Set(targets.flat())].sort();
}

/**
 * Writes the combination of the adapters into the new directory `out`.
 * @returns the rank of the combination, and the number of modules that it updates
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
      hint: 'Give one weight for each adapter',
    });
  if (!(density >= 0 && density <= 1))
    throw new GraftError('usage', 'density must be from 0 to 1', { place: 'density' });
  if (!combinations.includes(options.how)) {
    throw new GraftError('usage', `'${options.how}' is not a way to combine adapters`, {
      hint: `Use one of ${combinations.join(', ')}`,
    });
  }
  // One adapter is only scaled.
  const how = dirs.length === 1 ? 'linear' : options.how;
  using _ = scope();
  const adapters = dirs.map(readLora);
  const rank = combinedRank(
    how,
    adapters.map(({ config }) => Math.max(config.r, ...Object.values(config.rank_pattern))),
    options.svd_rank,
  );
  const tensors = noGrad(() => combineAll(adapters, { ...options, how, rank, density, majority, seed }));
  const [first] = adapters as [SavedLora, ...SavedLora[]];
  // The combination has the scaling 1. PEFT keeps the first adapter's use_rslora, which makes it √r.
  const config = {
    ...first.raw,
    r: rank,
    lora_alpha: rank,
    use_rslora: false,
    rank_pattern: {},
    alpha_pattern: {},
    ...targetsOf(adapters),
    init_lora_weights: true,
    inference_mode: true,
  };
  writeDirectory(out, (work) => {
    writeFileSync(join(work, 'adapter_config.json'), `${JSON.stringify(config, null, 2)}\n`);
    writeSafetensors(join(work, 'adapter_model.safetensors'), [...tensors].map(tensorToWrite), { format: 'pt' });
  });
  return { rank, modules: tensors.size / 2 };
}

/** A and B of every module, by their keys in the file. */
function combineAll(
  adapters: readonly SavedLora[],
  { weights, draw, seed, ...combining }: CombineOptions & Omit<CombineSettings, 'draw'> & { seed: number },
): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  const modules = [...new Set(adapters.flatMap(({ updates }) => [...updates.keys()]))];
  modules.forEach((module, n) => {
    const owners = adapters.flatMap((adapter, i) => (adapter.updates.has(module) ? [{ adapter, i }] : []));
    const updates = owners.map(({ adapter: { config, updates }, i }): WeightedUpdate => {
      const { a, b } = updates.get(module)!;
      const r = byPattern(config.rank_pattern, module, config.r);
      const alpha = byPattern(config.alpha_pattern, module, config.lora_alpha);
      return { a, b, scaling: alpha / (config.use_rslora ? Math.sqrt(r) : r), weight: weights[i]! };
    });
    requireSameShape(
      module,
      owners.map(({ adapter }) => adapter.dir),
      updates,
      combining.how,
    );
    const own = dareMasks(combining.density, mixSeed(seed, n));
    const drawn: CombineSettings['draw'] = draw ? (side, i, shape) => draw(module, side, owners[i]!.i, shape) : own;
    const { a, b } = combineUpdates(updates, { ...combining, draw: drawn });
    const { isEmbedding } = owners[0]!.adapter.updates.get(module)!;
    const key = (letter: 'A' | 'B') =>
      `${keyPrefix}${module}.lora_${isEmbedding ? `embedding_${letter}` : `${letter}.weight`}`;
    tensors.set(key('A'), ops.contiguous(a));
    tensors.set(key('B'), ops.contiguous(b));
  });
  return tensors;
}

/** @throws GraftError 'mismatch' for updates of different shapes, 'usage' for ranks that cannot be combined so */
function requireSameShape(
  module: string,
  dirs: readonly string[],
  updates: readonly WeightedUpdate[],
  how: Combination,
): void {
  const shapes = updates.map(({ a, b }) => `${b.size(0)}×${a.size(1)}`);
  const different = shapes.findIndex((shape) => shape !== shapes[0]);
  if (different >= 0)
    throw new GraftError(
      'mismatch',
      `the adapters are for different bases: ${module} is ${shapes[0]} in ${dirs[0]} and ${shapes[different]} in ${dirs[different]}`,
    );
  combinedRank(
    how,
    updates.map(({ a }) => a.size(0)),
  );
}
