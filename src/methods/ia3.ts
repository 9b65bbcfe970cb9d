/**
 * (IA)³ (Liu et al., arXiv 2205.05638, §3.3): a trained vector l scales the output of a layer, y = l ⊙ (W x + b), for keys and values;
 * in a feed-forward layer it scales the input, y = W (l ⊙ x) + b. Vectors begin at 1, where nothing changes. Fields and file layout
 * are PEFT's (tuners/ia3); the base's bias is scaled too, as there.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import type { GateActivation, LinearLayer, Model } from '../nn/index.ts';
import { Generator, mixSeed, ops, type Tensor } from '../tensor/index.ts';
import {
  type Adapter,
  type Candidate,
  candidatesOf,
  type LayerWeight,
  LinearWrapper,
  type Method,
  type RowUpdate,
  type Switch,
  targetFields,
  trainable,
  wrapLinearLayers,
  wrappedAdapter,
} from './shared/index.ts';

export const ia3Config = z
  .strictObject({
    target_modules: targetFields.target_modules.describe(
      'Modules that are scaled, named as for lora. Default: keys, values and the second projection of the MLP, as in the paper.',
    ),
    exclude_modules: targetFields.exclude_modules.describe('Modules that are not scaled, named in the same way.'),
    feedforward_modules: z
      .union([z.string(), z.array(z.string())])
      .nullish()
      .describe(
        'Those of the target modules whose input is scaled: the ends of their paths, or a regular expression for whole paths.',
      ),
    modules_to_save: targetFields.modules_to_save,
    init_ia3_weights: z
      .boolean()
      .default(true)
      .describe('true: the vectors begin at 1, so nothing changes at first; false: random.'),
    fan_in_fan_out: targetFields.fan_in_fan_out,
  })
  .describe(
    'Trained vectors that scale keys, values and the hidden layer of the MLP ((IA)³, arXiv 2205.05638): very few parameters.',
  );

type Ia3Config = z.infer<typeof ia3Config>;

class Ia3Linear extends LinearWrapper {
  /** l: [1, in] where the input is scaled, else [out, 1] */
  readonly ia3_l: Tensor;
  readonly #scalesInput: boolean;

  constructor(base: LinearLayer, l: Tensor, state: Switch) {
    super(base, state);
    this.ia3_l = l;
    this.#scalesInput = l.size(0) === 1;
  }

  /** x ⊙ l, for x [N, in] or [N, out] */
  #scaled(x: Tensor): Tensor {
    return ops.mul(x, ops.view(this.ia3_l, [this.ia3_l.numel]));
  }

  protected adapted(x: Tensor): Tensor {
    const { base_layer } = this;
    return this.#scalesInput ? base_layer.forward(this.#scaled(x)) : this.#scaled(base_layer.forward(x));
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    const { base_layer } = this;
    if (!this.state.enabled) return base_layer.forwardGated(gate, up, act);
    // act(gate) · (up ⊙ l): the fused kernel still applies.
    if (this.#scalesInput) return base_layer.forwardGated(gate, this.#scaled(up), act);
    return this.#scaled(base_layer.forwardGated(gate, up, act));
  }

  override rowUpdate(): RowUpdate {
    const l = ops.view(this.ia3_l, [this.ia3_l.numel]);
    return this.#scalesInput ? { inputGain: l } : { gain: l };
  }

  fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    const scaledBias = this.#scalesInput || !bias ? bias : this.#scaled(bias);
    return { weight: ops.mul(weight, this.ia3_l), format: -1, bias: scaledBias };
  }
}

/** Returns the paths of keys, values and the second projection of the MLP, and those of them whose input is scaled. */
function defaultTargets({ sites }: Model, candidates: readonly Candidate[]) {
  const pattern = (site: string) => new RegExp(`^${site.replaceAll('.', '\\.').replaceAll('*', '\\d+')}$`);
  const pathsOf = (...roles: readonly string[]) =>
    candidates.map(({ path }) => path).filter((path) => roles.some((role) => pattern(role).test(path)));
  const { attention, mlp } = sites;
  return { targets: pathsOf(attention.k, attention.v, mlp.down), inputs: pathsOf(mlp.down) };
}

/** Whether a module's input is scaled, by PEFT's rule (tuners/ia3/model.py `_check_target_module_feedforward`). */
function scalesInput(path: string, feedforward: Ia3Config['feedforward_modules']): boolean {
  if (typeof feedforward === 'string') return new RegExp(`^(?:${feedforward})$`, 's').test(path);
  return (feedforward ?? []).some((name) => path.endsWith(name));
}

export const ia3: Method<Ia3Config> = {
  name: 'ia3',
  peftType: 'IA3',
  config: ia3Config,

  attach(model, config, seed): Adapter {
    const defaults = defaultTargets(model, candidatesOf(model));
    const feedforward = config.feedforward_modules ?? (config.target_modules ? null : defaults.inputs);
    if (Array.isArray(feedforward) && Array.isArray(config.target_modules)) {
      const unknown = feedforward.find((name) => !config.target_modules!.includes(name));
      if (unknown !== undefined)
        throw new GraftError('usage', `feedforward_modules names '${unknown}', which is not in target_modules`, {
          place: 'feedforward_modules',
          hint: 'Add it to target_modules',
        });
    }
    const layers = wrapLinearLayers(model, 'ia3', config, defaults.targets, (base, path, i, toggle) => {
      const shape = scalesInput(path, feedforward) ? [1, base.inFeatures] : [base.outFeatures, 1];
      using generator = new Generator(mixSeed(seed, i));
      const l = trainable(() => (config.init_ia3_weights ? ops.ones(shape) : ops.randn(shape, { generator })));
      return { wrapper: new Ia3Linear(base, l, toggle), parameters: { ia3_l: l } };
    });
    return wrappedAdapter(model, {
      method: 'ia3',
      config,
      ...layers.parts,
      warnings: [],
      advise: (lr) =>
        lr >= 1e-3 || !config.init_ia3_weights
          ? []
          : [`vectors that begin at 1 hardly change at a learning rate of ${lr}: the paper uses 3e-3`],
      savedConfig: () => {
        const fields = layers.savedFields();
        // In PEFT one list has to contain the other: both hold last parts of paths, or both whole paths.
        const named = (path: string) => (fields.target_modules.includes(path) ? path : path.split('.').at(-1)!);
        const inputs = layers.paths.filter((path) => scalesInput(path, feedforward));
        const { feedforward_modules: asked } = config;
        if (!asked) return { ...fields, feedforward_modules: [...new Set(inputs.map(named))] };
        const { target_modules: targets } = fields;
        const contains = typeof asked === 'string' || asked.every((name) => targets.includes(name));
        if (contains || typeof targets === 'string') return { ...fields, feedforward_modules: asked };
        return { ...fields, target_modules: layers.paths, feedforward_modules: inputs };
      },
    });
  },
};
