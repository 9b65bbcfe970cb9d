/**
 * (IA)³ (Liu et al., arXiv 2205.05638, §3.3): what a layer gives is scaled by a trained vector l, y = l ⊙ (W x + b), for keys and
 * values; in a feed-forward layer it is what goes in, y = W (l ⊙ x) + b. Vectors begin at 1, where nothing changes. Fields and file
 * layout are PEFT's (tuners/ia3); the bias of the base is scaled along, as there.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import {
  type GateActivation,
  type Linear,
  type LinearLayer,
  type Model,
  moduleAt,
  replaceModule,
} from '../nn/index.ts';
import { Generator, mixSeed, ops, type Tensor } from '../tensor/index.ts';
import { loraConfig } from './lora/index.ts';
import {
  type Adapter,
  type Candidate,
  candidatesOf,
  type LayerWeight,
  LinearWrapper,
  layerUnder,
  type Method,
  type Switch,
  savedTargets,
  saveModules,
  selectTargets,
  trainable,
  wrappedAdapter,
} from './shared/index.ts';

const { exclude_modules, modules_to_save } = loraConfig.shape;

export const ia3Config = z
  .strictObject({
    target_modules: z
      .union([z.string(), z.array(z.string())])
      .nullish()
      .describe(
        'Which modules are scaled, as for lora. Default: keys, values and the second projection of the MLP, as in the paper.',
      ),
    exclude_modules,
    feedforward_modules: z
      .union([z.string(), z.array(z.string())])
      .nullish()
      .describe('Those of them whose input is scaled: ends of their paths, or a regular expression for whole paths.'),
    modules_to_save,
    init_ia3_weights: z
      .boolean()
      .default(true)
      .describe('true: vectors of 1, so that nothing changes at first; false: random.'),
    fan_in_fan_out: loraConfig.shape.fan_in_fan_out,
  })
  .describe(
    'Trained vectors that scale keys, values and the inside of the MLP ((IA)³, arXiv 2205.05638): the fewest parameters of all.',
  );

type Ia3Config = z.infer<typeof ia3Config>;

class Ia3Linear extends LinearWrapper {
  /** [1, in] where the input is scaled, else [out, 1] */
  readonly ia3_l: Tensor;
  readonly #input: boolean;
  readonly #size: number;

  constructor(base: LinearLayer, l: Tensor, state: Switch) {
    super(base, state);
    this.ia3_l = l;
    this.#input = l.size(0) === 1;
    this.#size = l.numel;
  }

  /** x [N, in or out] ⊙ l */
  #scaled(x: Tensor): Tensor {
    return ops.mul(x, ops.view(this.ia3_l, [this.#size]));
  }

  protected adapted(x: Tensor): Tensor {
    const { base_layer } = this;
    return this.#input ? base_layer.forward(this.#scaled(x)) : this.#scaled(base_layer.forward(x));
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    const { base_layer } = this;
    if (!this.state.enabled) return base_layer.forwardGated(gate, up, act);
    // act(gate) · up ⊙ l: the fused unit stays.
    if (this.#input) return base_layer.forwardGated(gate, this.#scaled(up), act);
    return this.#scaled(base_layer.forwardGated(gate, up, act));
  }

  fold({ weight, bias }: LayerWeight, _own: Tensor): LayerWeight {
    const scaled = this.#input || !bias ? bias : this.#scaled(bias);
    return { weight: ops.mul(weight, this.ia3_l), format: -1, bias: scaled };
  }
}

/** Keys, values and the second projection of the MLP, wherever the family has them. */
function defaultsOf({ sites }: Model, candidates: readonly Candidate[]) {
  const at = (site: string) => new RegExp(`^${site.replaceAll('.', '\\.').replaceAll('*', '\\d+')}$`);
  const pick = (sought: readonly string[]) =>
    candidates.map(({ path }) => path).filter((path) => sought.some((site) => at(site).test(path)));
  const { attention, mlp } = sites;
  return { targets: pick([attention.k, attention.v, mlp.down]), inputs: pick([mlp.down]) };
}

/** Whether a module's input is scaled: PEFT's rule (tuners/ia3/model.py `_check_target_module_feedforward`). */
function isInput(path: string, given: Ia3Config['feedforward_modules']): boolean {
  if (typeof given === 'string') return new RegExp(`^(?:${given})$`, 's').test(path);
  return (given ?? []).some((name) => path.endsWith(name));
}

export const ia3: Method<Ia3Config> = {
  name: 'ia3',
  peftType: 'IA3',
  config: ia3Config,

  attach(model, config, seed): Adapter {
    const candidates = candidatesOf(model);
    const defaults = defaultsOf(model, candidates);
    const inputs = config.feedforward_modules ?? (config.target_modules ? null : defaults.inputs);
    const selected = selectTargets(candidates, config, defaults.targets);
    const table = selected.find(({ kind }) => kind === 'embedding');
    if (table) {
      throw new GraftError('usage', `target_modules selects '${table.path}', and ia3 scales linear layers only`, {
        place: 'target_modules',
        hint: 'Leave it out, or use lora',
      });
    }
    if (Array.isArray(inputs) && Array.isArray(config.target_modules)) {
      const odd = inputs.find((name) => !config.target_modules!.includes(name));
      if (odd !== undefined)
        throw new GraftError('usage', `feedforward_modules names '${odd}', which target_modules does not`, {
          place: 'feedforward_modules',
          hint: 'Name it under target_modules too',
        });
    }

    const switched: Switch = { enabled: true };
    const copies = config.modules_to_save?.length ? [saveModules(model, config.modules_to_save)] : [];
    const parameters = new Map<string, Tensor>();
    const wrappers = selected.map(({ path }, i) => {
      const base = moduleAt(model.root, path) as LinearLayer;
      const shape = isInput(path, inputs) ? [1, base.inFeatures] : [base.outFeatures, 1];
      using generator = new Generator(mixSeed(seed, i));
      const l = trainable(() => (config.init_ia3_weights ? ops.ones(shape) : ops.randn(shape, { generator })));
      parameters.set(`${path}.ia3_l`, l);
      const wrapper = new Ia3Linear(base, l, switched);
      replaceModule(model.root, path, wrapper);
      return { path, wrapper };
    });
    for (const copy of copies) for (const [key, tensor] of copy.parameters) parameters.set(key, tensor);
    const paths = wrappers.map(({ path }) => path);

    return wrappedAdapter(model, {
      method: 'ia3',
      config,
      parameters,
      wrappers,
      switched,
      copies,
      warnings: [],
      advise: (lr) =>
        lr >= 1e-3 || !config.init_ia3_weights
          ? []
          : [`vectors that begin at 1 hardly move at a learning rate of ${lr}: the paper has 3e-3`],
      savedConfig: () => {
        const all = candidates.map(({ path }) => path);
        const targets = savedTargets(config.target_modules, paths, all);
        // PEFT asks that the one list be a part of the other: both in last parts, or both in whole paths.
        const short = (path: string) => (targets.includes(path) ? path : path.split('.').at(-1)!);
        const own = config.feedforward_modules ?? [...new Set(paths.filter((p) => isInput(p, inputs)).map(short))];
        return {
          target_modules: targets,
          feedforward_modules: own,
          fan_in_fan_out: wrappers.some(({ wrapper }) => (layerUnder(wrapper) as Linear).transposed),
        };
      },
    });
  },
};
