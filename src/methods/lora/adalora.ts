/**
 * AdaLoRA (Zhang et al., arXiv 2303.10512): the update in the form of a singular value decomposition, W = W0 + s·B (E ∘ A) with A [r, in],
 * B [out, r] near to orthogonal by a term of the loss (eq. 4), and one number of E [r, 1] a rank; ranks of little importance lose theirs
 * while training goes on (rank-budget.ts). s = α/(init_r + 1e-5), for good. Fields and file layout are PEFT's (tuners/adalora).
 */
import { z } from 'zod';
import { GraftError } from '../../base/index.ts';
import { type Linear, type LinearLayer, moduleAt, replaceModule } from '../../nn/index.ts';
import { Generator, mixSeed, ops, Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  candidatesOf,
  layerUnder,
  type Method,
  type Switch,
  savedTargets,
  saveModules,
  selectTargets,
  trainable,
  trainBiases,
  wrappedAdapter,
} from '../shared/index.ts';
import { AdaLoraLinear, orthogonality } from './adalora-layer.ts';
import { loraConfig } from './config.ts';
import { RankBudget, requirePhases, type Triplets } from './rank-budget.ts';

const { lora_alpha, lora_dropout, target_modules, exclude_modules, layers_to_transform, layers_pattern } =
  loraConfig.shape;
const { bias, modules_to_save, fan_in_fan_out } = loraConfig.shape;
const share = z.number().gt(0).lt(1).default(0.85);

export const adaloraConfig = z
  .strictObject({
    target_r: z.int().positive().default(8).describe('Mean rank of a layer in the end.'),
    init_r: z.int().positive().default(12).describe('Rank of every layer at the start.'),
    tinit: z.int().nonnegative().default(0).describe('Steps before the first rank is cut.'),
    tfinal: z.int().nonnegative().default(0).describe('Steps after the last cut, with the ranks that are left.'),
    deltaT: z.int().positive().default(1).describe('Steps between two cuts.'),
    beta1: share.describe('Share of the sensitivity that a step keeps.'),
    beta2: share.describe('Share of the uncertainty that a step keeps.'),
    orth_reg_weight: z
      .number()
      .nonnegative()
      .default(0.5)
      .describe('Weight of the term that keeps A and B near to orthogonal.'),
    total_step: z
      .int()
      .positive()
      .nullish()
      .describe('Steps that the schedule counts with. Default: those of the run.'),
    lora_alpha: lora_alpha.describe('α: the update is scaled by α / init_r.'),
    lora_dropout,
    target_modules,
    exclude_modules,
    layers_to_transform,
    layers_pattern,
    bias,
    modules_to_save,
    fan_in_fan_out,
    init_lora_weights: z.boolean().default(true).describe('true: E is zero, so that nothing changes at first.'),
    r: z.int().optional().describe('PEFT writes it; init_r counts.'),
    rank_pattern: z
      .record(z.string(), z.array(z.boolean()))
      .nullish()
      .describe('Which ranks are left, by the key of E: of an adapter whose ranks are cut already.'),
  })
  .describe(
    'LoRA that moves ranks to the layers that need them (arXiv 2303.10512). Fields and defaults are PEFT’s; target_modules that are not given are those of LoRA.',
  );

type AdaLoraConfig = z.infer<typeof adaloraConfig>;

function initial(
  { init_lora_weights }: AdaLoraConfig,
  path: string,
  shape: [r: number, inside: number, outside: number],
  seed: bigint,
): Triplets {
  using generator = new Generator(seed);
  const [r, inside, outside] = shape;
  const [random, values] = init_lora_weights ? [0.02, 0] : [1, 1];
  const normal = (size: number[], std: number) =>
    trainable(() => (std === 0 ? ops.zeros(size) : ops.mulScalar(ops.randn(size, { generator }), std)));
  return { path, a: normal([r, inside], random), e: normal([r, 1], values), b: normal([outside, r], random) };
}

export const adalora: Method<AdaLoraConfig> = {
  name: 'adalora',
  peftType: 'ADALORA',
  config: adaloraConfig,

  attach(model, config, seed): Adapter {
    requirePhases(config, config.total_step);
    const candidates = candidatesOf(model);
    const selected = selectTargets(candidates, config, model.sites.defaultTargets);
    const table = selected.find(({ kind }) => kind === 'embedding');
    if (table) {
      throw new GraftError('usage', `target_modules selects '${table.path}', and adalora is for linear layers only`, {
        place: 'target_modules',
        hint: 'Leave it out, or use lora',
      });
    }
    const paths = new Set(selected.map(({ path }) => path));
    const switched: Switch = { enabled: true };
    const copies = config.modules_to_save?.length ? [saveModules(model, config.modules_to_save)] : [];
    if (config.bias !== 'none') {
      const own = (path: string) => paths.has(path);
      copies.push(trainBiases(model, (path) => config.bias === 'all' || own(path), own));
    }
    const parameters = new Map<string, Tensor>();
    const layers: Triplets[] = [];
    const wrappers = [...paths].map((path, i) => {
      const base = moduleAt(model.root, path) as LinearLayer;
      const rank = config.rank_pattern?.[`${path}.lora_E`]?.filter(Boolean).length ?? config.init_r;
      const triplets = initial(config, path, [rank, base.inFeatures, base.outFeatures], mixSeed(seed, i));
      const { a, e, b } = triplets;
      layers.push(triplets);
      parameters.set(`${path}.lora_A`, a).set(`${path}.lora_B`, b).set(`${path}.lora_E`, e);
      const scaling = config.lora_alpha / (config.init_r + 1e-5);
      const wrapper = new AdaLoraLinear(base, triplets, scaling, config.lora_dropout, switched);
      replaceModule(model.root, path, wrapper);
      return { path, wrapper };
    });
    for (const copy of copies) for (const [key, tensor] of copy.parameters) parameters.set(key, tensor);
    // Ranks that are cut stay cut.
    const budget = config.rank_pattern ? undefined : new RankBudget(layers, config, config.total_step ?? undefined);

    return wrappedAdapter(model, {
      method: 'adalora',
      config,
      parameters,
      wrappers,
      switched,
      copies,
      owned: [...(budget?.state.values() ?? [])],
      warnings: [],
      advise: (lr) =>
        lr >= 5e-4 || !budget || !config.init_lora_weights
          ? []
          : [
              `an update that begins at almost nothing hardly grows at a learning rate of ${lr}: the paper has 5e-4 to 2e-3`,
            ],
      ...(config.orth_reg_weight > 0 && {
        regularisation: () => ops.mulScalar(orthogonality(layers), config.orth_reg_weight),
      }),
      ...(budget && {
        state: budget.state,
        beforeStep: (_step: number, steps: number) => budget.begin(steps),
        afterStep: (step: number) => budget.after(step + 1),
      }),
      savedConfig: () => ({
        target_modules: savedTargets(
          config.target_modules,
          [...paths],
          candidates.map(({ path }) => path),
        ),
        fan_in_fan_out: wrappers.some(({ wrapper }) => (layerUnder(wrapper) as Linear).transposed),
        total_step: config.total_step ?? budget?.steps ?? config.tinit + config.tfinal + 1,
        rank_pattern: budget?.kept
          ? Object.fromEntries([...budget.kept].map(([path, kept]) => [`${path}.lora_E`, kept]))
          : (config.rank_pattern ?? null),
      }),
      savedTensors() {
        const tensors = new Map(parameters);
        for (const [path, kept] of budget?.kept ?? []) {
          const left = Tensor.from(BigInt64Array.from(kept.flatMap((on, i) => (on ? [BigInt(i)] : []))));
          for (const [name, axis] of [
            ['lora_A', 0],
            ['lora_E', 0],
            ['lora_B', 1],
          ] as const) {
            tensors.set(`${path}.${name}`, ops.indexSelect(parameters.get(`${path}.${name}`)!, axis, left));
          }
        }
        return tensors;
      },
    });
  },
};
