/** What a LoRA adapter is on disk, where that is not simply its config and parameters. */
import type { Linear } from '../../nn/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import { savedTargets } from '../shared/index.ts';
import type { LoraConfig } from './config.ts';
import { type InitialUpdate, Residual } from './init.ts';

/** One updated layer: its path, its start, and whether its file stores the weight [in, out]. */
export interface UpdatedLayer {
  readonly path: string;
  readonly start: InitialUpdate;
  readonly layer: Linear;
}

/** Embeddings and head that share what is trained. */
export interface TiedTables {
  readonly embeddings: string;
  readonly head: string;
  readonly lora: boolean;
  readonly saved: boolean;
}

const doubled = (values: Readonly<Record<string, number>>, by: number) =>
  Object.fromEntries(Object.entries(values).map(([key, value]) => [key, value * by]));

/** Fields that are written otherwise than they were given. */
export function savedLoraConfig(
  config: LoraConfig,
  updated: readonly UpdatedLayer[],
  all: readonly string[],
  ties: TiedTables | undefined,
): Record<string, unknown> {
  const paths = updated.map(({ path }) => path);
  // PEFT calls the shared table by the embeddings' path.
  const shared = (names: readonly string[]) => [
    ...new Set([...names.filter((name) => name !== ties!.head), ties!.embeddings]),
  ];
  const targets = savedTargets(config.target_modules, paths, all);
  const rebased = updated.some(({ start }) => start.base instanceof Residual);
  // The file holds [A | A0] and [B | −B0] of twice the rank: the same s asks for α twice, or √2 times under α/√r.
  const more = config.use_rslora ? Math.SQRT2 : 2;
  const loftq = config.init_lora_weights === 'loftq' && !updated.some(({ start }) => start.base);
  return {
    target_modules: ties?.lora && Array.isArray(targets) ? shared(targets) : targets,
    ...(ties?.saved && { modules_to_save: shared(config.modules_to_save ?? []) }),
    ...(rebased && {
      r: 2 * config.r,
      lora_alpha: more * config.lora_alpha,
      rank_pattern: doubled(config.rank_pattern, 2),
      alpha_pattern: doubled(config.alpha_pattern, more),
      init_lora_weights: true,
    }),
    // What LoftQ began with is in the file; a base that it packed anew is made again.
    ...(loftq && { init_lora_weights: true }),
    loftq_config: config.init_lora_weights === 'loftq' && !loftq ? config.loftq_config : {},
    fan_in_fan_out: updated.some(({ layer }) => layer.transposed),
    loraplus_lr_ratio: undefined,
    loraplus_lr_embedding: undefined,
  };
}

/** The tensors of the file, by key; made in the caller's scope. */
export function savedLoraTensors(
  parameters: ReadonlyMap<string, Tensor>,
  updated: readonly UpdatedLayer[],
  ties: TiedTables | undefined,
): Map<string, Tensor> {
  const tensors = new Map(parameters);
  const rebased = updated.some(({ start }) => start.base instanceof Residual);
  for (const { path, start } of updated) {
    const [aOfTable, bOfTable] = [`${path}.lora_embedding_A`, `${path}.lora_embedding_B`];
    if (rebased && tensors.has(aOfTable)) {
      // A table keeps its base; it only has the rank of the others, the second half zeros.
      tensors.set(aOfTable, ops.cat([start.a, ops.zerosLike(start.a)], 0));
      tensors.set(bOfTable, ops.cat([start.b, ops.zerosLike(start.b)], 1));
    }
    if (!(start.base instanceof Residual)) continue;
    const { a, b, base } = { ...start, base: start.base };
    tensors.set(`${path}.lora_A.weight`, ops.cat([a, base.a], 0));
    tensors.set(`${path}.lora_B.weight`, ops.cat([b, ops.neg(base.b)], 1));
  }
  if (ties?.lora) {
    const flipped = (key: string) => ops.contiguous(ops.t(tensors.get(`${ties.embeddings}.${key}`)!));
    tensors.set(`${ties.head}.lora_A.weight`, flipped('lora_embedding_B'));
    tensors.set(`${ties.head}.lora_B.weight`, flipped('lora_embedding_A'));
  }
  if (ties?.saved) tensors.set(`${ties.head}.weight`, parameters.get(`${ties.embeddings}.weight`)!);
  return tensors;
}
