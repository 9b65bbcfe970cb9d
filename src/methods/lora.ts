/**
 * LoRA (Hu et al., arXiv 2106.09685): W = W0 + s·BA with W0 frozen, A [r, in], B [out, r] and s = α/r (eq. 3), or
 * α/√r under rank stabilisation (arXiv 2312.03732). Fields, defaults and file layout are PEFT's (tuners/lora/config.py);
 * the drop-out acts on the adapter's input only, as there.
 */
import { GraftError } from '../base/index.ts';
import { type Embedding, type LinearLayer, moduleAt, replaceModule } from '../nn/index.ts';
import { detachFromScopes, Generator, mixSeed, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { type LoraConfig, loraConfig } from './lora-config.ts';
import { fold, LoraEmbedding, LoraLinear, unfold, unwrap } from './lora-layers.ts';
import type { Adapter, Method } from './method.ts';
import { type Copies, saveModules, trainBiases } from './saved.ts';
import { byPattern, candidatesOf, patternFits, savedTargets, selectTargets } from './targets.ts';

function initialValues(
  config: LoraConfig,
  rank: number,
  inside: number,
  outside: number,
  embedding: boolean,
  seed: bigint,
) {
  using s = scope();
  using generator = new Generator(seed);
  const normal = (shape: number[], std: number) => ops.mulScalar(ops.randn(shape, { generator }), std);
  const uniform = (shape: number[], bound: number) => ops.uniform_(ops.zeros(shape), -bound, bound, { generator });
  const zeros = (shape: number[]) => ops.zeros(shape);
  const aShape = [rank, inside];
  const bShape = [outside, rank];
  let pair: [Tensor, Tensor];
  if (embedding) {
    // For a table it is A that starts at zero: its columns are picked, not multiplied.
    pair = [config.init_lora_weights === false ? normal(aShape, 1) : zeros(aShape), normal(bShape, 1)];
  } else {
    const a = config.init_lora_weights === 'gaussian' ? normal(aShape, 1 / rank) : uniform(aShape, inside ** -0.5);
    pair = [a, config.init_lora_weights === false ? uniform(bShape, rank ** -0.5) : zeros(bShape)];
  }
  for (const tensor of pair) {
    detachFromScopes(s.keep(tensor));
    tensor.requiresGrad = true;
  }
  return pair;
}

export const lora: Method<LoraConfig> = {
  name: 'lora',
  peftType: 'LORA',
  config: loraConfig,

  attach(model, config, seed): Adapter {
    const candidates = candidatesOf(model);
    const targets = selectTargets(candidates, config, model.sites.defaultTargets);
    const paths = new Set(targets.map(({ path }) => path));
    const state = { enabled: true };
    const parameters = new Map<string, Tensor>();
    const copies: Copies[] = [];
    if (config.modules_to_save?.length) copies.push(saveModules(model, config.modules_to_save));
    if (config.bias !== 'none') {
      copies.push(
        trainBiases(
          model,
          (path) => config.bias === 'all' || paths.has(path),
          (path) => paths.has(path),
        ),
      );
    }

    const wrapped = targets.map(({ path }, index) => {
      const base = moduleAt(model.root, path) as LinearLayer | Embedding | LoraEmbedding;
      const rank = byPattern(config.rank_pattern, path, config.r);
      const alpha = byPattern(config.alpha_pattern, path, config.lora_alpha);
      const scaling = alpha / (config.use_rslora ? Math.sqrt(rank) : rank);
      const table = !('inFeatures' in base);
      const [inside, outside] = table ? [base.rows, base.width] : [base.inFeatures, base.outFeatures];
      const [a, b] = noGrad(() => initialValues(config, rank, inside, outside, table, mixSeed(seed, index)));
      const wrapper = table
        ? new LoraEmbedding(base, a, b, scaling, state)
        : new LoraLinear(base, a, b, scaling, config.lora_dropout, state);
      const [keyA, keyB] = table ? ['lora_embedding_A', 'lora_embedding_B'] : ['lora_A.weight', 'lora_B.weight'];
      parameters.set(`${path}.${keyA}`, a).set(`${path}.${keyB}`, b);
      replaceModule(model.root, path, wrapper);
      return { path, wrapper };
    });
    for (const copy of copies) for (const [key, tensor] of copy.parameters) parameters.set(key, tensor);

    let attached = true;
    let merged = false;

    const adapter: Adapter = {
      method: 'lora',
      config,
      parameters,
      warnings: [
        ...(['rank_pattern', 'alpha_pattern'] as const).flatMap((field) =>
          Object.keys(config[field])
            .filter((key) => ![...paths].some((path) => patternFits(key, path)))
            .map((key) => `${field} '${key}' fits no module`),
        ),
        // As in PEFT: the layers know how they are stored, and the field changes nothing.
        ...(config.fan_in_fan_out ? ['fan_in_fan_out is ignored: these layers are stored [out, in]'] : []),
      ],

      get enabled() {
        return state.enabled || merged;
      },
      set enabled(on: boolean) {
        if (merged) throw new GraftError('state', 'a merged adapter cannot be switched', { mend: 'Unmerge it first' });
        state.enabled = on;
        for (const copy of copies) copy.use(on);
      },

      savedConfig: () => ({
        target_modules: savedTargets(
          config.target_modules,
          [...paths],
          candidates.map(({ path }) => path),
        ),
      }),

      merge() {
        if (merged) return;
        adapter.enabled = true;
        for (const { wrapper } of wrapped) fold(wrapper);
        merged = true;
        state.enabled = false;
      },

      unmerge() {
        if (!merged) return;
        for (const { wrapper } of wrapped) unfold(wrapper);
        merged = false;
        state.enabled = true;
      },

      detach() {
        if (!attached) return;
        attached = false;
        adapter.unmerge!();
        for (const { path, wrapper } of wrapped) unwrap(model.root, path, wrapper);
        for (const tensor of parameters.values()) tensor.dispose();
        for (const copy of copies) copy.dispose();
      },
      [Symbol.dispose]: () => adapter.detach(),
    };
    return adapter;
  },
};
