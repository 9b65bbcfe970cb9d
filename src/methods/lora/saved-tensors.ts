/** The config and tensors of a LoRA adapter on disk, where they differ from the adapter's own. */
import type { Linear } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import { savedTargets } from '../shared/index.ts';
import { type InitialUpdate, Residual } from './base-changes.ts';
import type { LoraConfig } from './config.ts';

/** One updated layer and its initial update. */
export interface UpdatedLayer {
  readonly path: string;
  readonly initial: InitialUpdate;
  readonly layer: Linear;
}

/** Paths of the embedding and the head where they share a table, and what of it they share. */
export interface TiedTables {
  readonly embeddings: string;
  readonly head: string;
  /** They share one LoRA update. */
  readonly lora: boolean;
  /** They share one trained copy (`modules_to_save`). */
  readonly saved: boolean;
}

const scaled = (values: Readonly<Record<string, number>>, factor: number) =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [key, value * factor]));

const hasResidual = (updated: readonly UpdatedLayer[]) =>
  updated.some(({ initial }) => initial.baseChange instanceof Residual);

/** Returns the fields of the saved config that differ from `config`. */
export function savedLoraConfig(
  config: LoraConfig,
  updated: readonly UpdatedLayer[],
  allPaths: readonly string[],
  ties: TiedTables | undefined,
): Record<string, unknown> {
  const paths = updated.map(({ path }) => path);
  // PEFT calls the shared table by the path of the embedding.
  const withoutHead = (names: readonly string[]) => [
    ...new Set([...names.filter((name) => name !== ties!.head), ties!.embeddings]),
  ];
  const targets = savedTargets(config.target_modules, paths, allPaths);
  // With a residual base, the file holds [A | A0] and [B | −B0] of rank 2r; for the same s, α doubles, or grows by √2 under α/√r.
  const alphaFactor = config.use_rslora ? Math.SQRT2 : 2;
  const oneStepLoftq = config.init_lora_weights === 'loftq' && !updated.some(({ initial }) => initial.baseChange);
  return {
    target_modules: ties?.lora && Array.isArray(targets) ? withoutHead(targets) : targets,
    ...(ties?.saved && { modules_to_save: withoutHead(config.modules_to_save ?? []) }),
    ...(hasResidual(updated) && {
      r: 2 * config.r,
      lora_alpha: alphaFactor * config.lora_alpha,
      rank_pattern: scaled(config.rank_pattern, 2),
      alpha_pattern: scaled(config.alpha_pattern, alphaFactor),
      init_lora_weights: true,
    }),
    // After one LoftQ step the file is enough; after several, the base has to be quantised again when it is loaded.
    ...(oneStepLoftq && { init_lora_weights: true }),
    loftq_config: config.init_lora_weights === 'loftq' && !oneStepLoftq ? config.loftq_config : {},
    fan_in_fan_out: updated.some(({ layer }) => layer.transposed),
    loraplus_lr_ratio: undefined,
    loraplus_lr_embedding: undefined,
  };
}

/** Returns the tensors of the file by key; they belong to the caller's scope. */
export function savedLoraTensors(
  parameters: ReadonlyMap<string, Tensor>,
  updated: readonly UpdatedLayer[],
  ties: TiedTables | undefined,
): Map<string, Tensor> {
  const tensors = new Map(parameters);
  const residual = hasResidual(updated);
  for (const { path, initial } of updated) {
    const { a, b, baseChange } = initial;
    const [tableA, tableB] = [`${path}.lora_embedding_A`, `${path}.lora_embedding_B`];
    if (residual && tensors.has(tableA)) {
      // The base of an embedding is unchanged; it is padded with zeros to the rank of the others.
      tensors.set(tableA, ops.cat([a, ops.zerosLike(a)], 0));
      tensors.set(tableB, ops.cat([b, ops.zerosLike(b)], 1));
    }
    if (!(baseChange instanceof Residual)) continue;
    tensors.set(`${path}.lora_A.weight`, ops.cat([a, baseChange.a], 0));
    tensors.set(`${path}.lora_B.weight`, ops.cat([b, ops.neg(baseChange.b)], 1));
  }
  if (ties?.lora) {
    const transposed = (key: string) => ops.contiguous(ops.t(tensors.get(`${ties.embeddings}.${key}`)!));
    tensors.set(`${ties.head}.lora_A.weight`, transposed('lora_embedding_B'));
    tensors.set(`${ties.head}.lora_B.weight`, transposed('lora_embedding_A'));
  }
  if (ties?.saved) tensors.set(`${ties.head}.weight`, parameters.get(`${ties.embeddings}.weight`)!);
  return tensors;
}
