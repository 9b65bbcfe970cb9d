/**
 * AdaLoRA (Zhang et al., arXiv 2303.10512): the update as a singular value decomposition, W = W0 + s·B (E ∘ A) with A [r, in] and
 * B [out, r], which a term of the loss keeps close to orthogonal (eq. 4), and one value of E [r, 1] for each rank. In training,
 * ranks of little importance lose their value of E (rank-budget.ts). s = α/(init_r + 1e-5) throughout. Fields and file layout are
 * PEFT's (tuners/adalora).
 */
import { z } from 'zod';
import { Generator, mixSeed, ops, Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  type Method,
  targetFields,
  trainable,
  wrapLinearLayers,
  wrappedAdapter,
} from '../shared/index.ts';
import { AdaLoraLinear, orthogonality } from './adalora-layer.ts';
import { loraConfig } from './config.ts';
import { RankBudget, requirePhases, type Triplets } from './rank-budget.ts';

const smoothing = z.number().gt(0).lt(1).default(0.85);

export const adaloraConfig = z
  .strictObject({
    target_r: z.int().positive().default(8).describe('Mean rank of the layers at the end.'),
    init_r: z.int().positive().default(12).describe('Rank of every layer at the start.'),
    tinit: z.int().nonnegative().default(0).describe('Steps before ranks are pruned for the first time.'),
    tfinal: z.int().nonnegative().default(0).describe('Steps after the last pruning, with the final ranks.'),
    deltaT: z.int().positive().default(1).describe('Steps between two prunings.'),
    beta1: smoothing.describe('Decay of the moving average of the sensitivity.'),
    beta2: smoothing.describe('Decay of the moving average of the uncertainty.'),
    orth_reg_weight: z
      .number()
      .nonnegative()
      .default(0.5)
      .describe('Weight of the regularisation that keeps A and B close to orthogonal.'),
    total_step: z
      .int()
      .positive()
      .nullish()
      .describe('Number of steps that the pruning schedule assumes. Default: the steps of the run.'),
    lora_alpha: loraConfig.shape.lora_alpha.describe('α: the update is scaled by α / init_r.'),
    lora_dropout: loraConfig.shape.lora_dropout,
    target_modules: targetFields.target_modules,
    exclude_modules: targetFields.exclude_modules,
    layers_to_transform: targetFields.layers_to_transform,
    layers_pattern: targetFields.layers_pattern,
    bias: targetFields.bias,
    modules_to_save: targetFields.modules_to_save,
    fan_in_fan_out: targetFields.fan_in_fan_out,
    init_lora_weights: z
      .boolean()
      .default(true)
      .describe('true: E is zero, so the update starts at zero; false: E is random.'),
    r: z.int().optional().describe('PEFT writes this field; init_r is used instead.'),
    rank_pattern: z
      .record(z.string(), z.array(z.boolean()))
      .nullish()
      .describe('Which ranks are kept, by the key of E, in an adapter whose ranks are already pruned.'),
  })
  .describe(
    'LoRA that moves ranks to the layers that need them (arXiv 2303.10512). Fields and defaults are PEFT’s; the default target_modules are those of LoRA.',
  );

type AdaLoraConfig = z.infer<typeof adaloraConfig>;

function initialTriplets(
  { init_lora_weights }: AdaLoraConfig,
  path: string,
  [r, inFeatures, outFeatures]: readonly [r: number, inFeatures: number, outFeatures: number],
  seed: bigint,
): Triplets {
  using generator = new Generator(seed);
  const [stdOfAB, stdOfE] = init_lora_weights ? [0.02, 0] : [1, 1];
  const normal = (shape: number[], std: number) =>
    trainable(() => (std === 0 ? ops.zeros(shape) : ops.mulScalar(ops.randn(shape, { generator }), std)));
  return {
    path,
    a: normal([r, inFeatures], stdOfAB),
    e: normal([r, 1], stdOfE),
    b: normal([outFeatures, r], stdOfAB),
  };
}

/** Returns the tensors of the file: without the ranks that are pruned. */
function savedAdaloraTensors(parameters: ReadonlyMap<string, Tensor>, budget: RankBudget | undefined) {
  const tensors = new Map(parameters);
  for (const [path, kept] of budget?.kept ?? []) {
    const ranks = Tensor.from(BigInt64Array.from(kept.flatMap((isKept, i) => (isKept ? [BigInt(i)] : []))));
    for (const [name, axis] of [
      ['lora_A', 0],
      ['lora_E', 0],
      ['lora_B', 1],
    ] as const) {
      tensors.set(`${path}.${name}`, ops.indexSelect(parameters.get(`${path}.${name}`)!, axis, ranks));
    }
  }
  return tensors;
}

export const adalora: Method<AdaLoraConfig> = {
  name: 'adalora',
  peftType: 'ADALORA',
  needsAllGradients: true,
  config: adaloraConfig,

  attach(model, config, seed): Adapter {
    requirePhases(config, config.total_step);
    const triplets: Triplets[] = [];
    const scaling = config.lora_alpha / (config.init_r + 1e-5);
    const layers = wrapLinearLayers(model, 'adalora', config, model.sites.defaultTargets, (base, path, i, toggle) => {
      const rank = config.rank_pattern?.[`${path}.lora_E`]?.filter(Boolean).length ?? config.init_r;
      const layer = initialTriplets(config, path, [rank, base.inFeatures, base.outFeatures], mixSeed(seed, i));
      triplets.push(layer);
      return {
        wrapper: new AdaLoraLinear(base, layer, scaling, config.lora_dropout, toggle),
        parameters: { lora_A: layer.a, lora_B: layer.b, lora_E: layer.e },
      };
    });
    // An adapter whose ranks are pruned already keeps them.
    const budget = config.rank_pattern ? undefined : new RankBudget(triplets, config, config.total_step ?? undefined);

    const adapter = wrappedAdapter(model, {
      method: 'adalora',
      config,
      ...layers.parts,
      owned: [...(budget?.state.values() ?? [])],
      warnings: [],
      advise: (lr) =>
        lr >= 5e-4 || !budget || !config.init_lora_weights
          ? []
          : [`the update starts near zero and hardly grows at a learning rate of ${lr}: the paper uses 5e-4 to 2e-3`],
      ...(config.orth_reg_weight > 0 && {
        regularisation: () => ops.mulScalar(orthogonality(triplets), config.orth_reg_weight),
      }),
      ...(budget && {
        state: budget.state,
        beforeStep: (_step: number, steps: number) => budget.begin(steps),
        changesTrainedOnly: true as const,
        afterStep: (step: number) => budget.after(step + 1),
        readsGradients: true,
      }),
      savedConfig: () => ({
        ...layers.savedFields(),
        total_step: config.total_step ?? budget?.steps ?? config.tinit + config.tfinal + 1,
        rank_pattern: budget?.kept
          ? Object.fromEntries([...budget.kept].map(([path, kept]) => [`${path}.lora_E`, kept]))
          : (config.rank_pattern ?? null),
      }),
      savedTensors: () => savedAdaloraTensors(adapter.parameters, budget),
    });
    return adapter;
  },
};
