/**
 * LoRA (Hu et al., arXiv 2106.09685): W = W0 + s·BA with W0 frozen, A [r, in], B [out, r] and s = α/r (eq. 3), or
 * α/√r under rank stabilisation (arXiv 2312.03732). Fields, defaults and file layout are PEFT's (tuners/lora/config.py);
 * the drop-out acts on the adapter's input only, as there.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import {
  crossEntropyOfLogits,
  Embedding,
  type GateActivation,
  type Kernels,
  Linear,
  type LinearLayer,
  Module,
  moduleAt,
  replaceModule,
} from '../nn/index.ts';
import { detachFromScopes, Generator, gradEnabled, mixSeed, noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import type { Adapter, Method } from './method.ts';
import { type Copies, saveModules, trainBiases } from './saved.ts';
import { byPattern, candidatesOf, patternFits, selectTargets } from './targets.ts';

const names = z.union([z.string(), z.array(z.string())]);

export const loraConfig = z.strictObject({
  r: z.int().positive().default(8).describe('Rank of the update.'),
  lora_alpha: z.number().positive().default(8).describe('α: the update is scaled by α/r.'),
  lora_dropout: z
    .number()
    .min(0)
    .lt(1)
    .default(0)
    .describe("Share of the adapter's input that is dropped while training."),
  target_modules: names
    .nullish()
    .describe('Last parts of module paths, or one regular expression for whole paths, or all-linear.'),
  exclude_modules: names.nullish().describe('The same, for what is left out.'),
  layers_to_transform: z
    .union([z.int().nonnegative(), z.array(z.int().nonnegative())])
    .nullish()
    .describe('Only these layers.'),
  layers_pattern: names.nullish().describe('Name of the list that layers_to_transform counts in.'),
  rank_pattern: z.record(z.string(), z.int().positive()).default({}).describe('Other ranks, by regular expression.'),
  alpha_pattern: z.record(z.string(), z.number().positive()).default({}).describe('Other α, by regular expression.'),
  use_rslora: z.boolean().default(false).describe('Scale by α/√r (arXiv 2312.03732).'),
  bias: z.enum(['none', 'all', 'lora_only']).default('none').describe('Which biases are trained too.'),
  modules_to_save: z.array(z.string()).nullish().describe('Modules that are trained and saved whole.'),
  init_lora_weights: z
    .union([z.boolean(), z.literal('gaussian')])
    .default(true)
    .describe('A uniform as in PEFT, or normal; B zero. false: both random.'),
  fan_in_fan_out: z.boolean().default(false).describe('The base weight is stored [in, out].'),
});

export type LoraConfig = z.infer<typeof loraConfig>;

/** A wrapper stands where its layer stood: a walk over the model sees one module, not two. */
const inner: ReadonlySet<string> = new Set(['base_layer']);

/** A linear layer with an update beside it. */
class LoraLinear extends Module implements LinearLayer {
  base_layer: LinearLayer;
  readonly lora_A: Tensor;
  readonly lora_B: Tensor;
  readonly scaling: number;
  readonly dropout: number;
  readonly state: { enabled: boolean };
  override hidden: ReadonlySet<string> = inner;

  constructor(base: LinearLayer, a: Tensor, b: Tensor, scaling: number, dropout: number, state: { enabled: boolean }) {
    super();
    this.base_layer = base;
    this.lora_A = a;
    this.lora_B = b;
    this.scaling = scaling;
    this.dropout = dropout;
    this.state = state;
  }

  get inFeatures(): number {
    return this.base_layer.inFeatures;
  }

  get outFeatures(): number {
    return this.base_layer.outFeatures;
  }

  /** [N, in] → [N, out] */
  forward(x: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.forward(x);
    const dropped = this.dropout > 0 && gradEnabled() ? ops.dropout(x, this.dropout, true) : null;
    const base = this.base_layer.plain();
    if (base) {
      const { weight, format, bias, kernels } = base;
      return kernels.loraLinear(x, dropped, weight, format, bias ?? null, this.lora_A, this.lora_B, this.scaling);
    }
    // On top of another active adapter: add to what it gives.
    const h = ops.mm(dropped ?? x, ops.t(this.lora_A));
    return ops.add(this.base_layer.forward(x), ops.mm(h, ops.t(this.lora_B)), { alpha: this.scaling });
  }

  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled) return this.base_layer.forwardGated(gate, up, act);
    const base = this.base_layer.plain();
    if (base && !(this.dropout > 0 && gradEnabled())) {
      const { weight, format, bias, kernels } = base;
      return kernels.loraGatedLinear(
        gate,
        up,
        act,
        weight,
        format,
        bias ?? null,
        this.lora_A,
        this.lora_B,
        this.scaling,
      );
    }
    return this.forward(this.kernels.glu(gate, up, act));
  }

  get kernels(): Kernels {
    return this.base_layer.kernels;
  }

  crossEntropy(h: Tensor, targets: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.crossEntropy(h, targets);
    return crossEntropyOfLogits((rows) => this.forward(rows), h, targets);
  }

  plain() {
    return this.state.enabled ? undefined : this.base_layer.plain();
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }

  /** s·BA [out, in]: what the update adds to the weight. */
  delta(): Tensor {
    return ops.mulScalar(ops.mm(this.lora_B, this.lora_A), this.scaling);
  }
}

/** An embedding with an update: row i of the table gains s·(B A[:, i])ᵀ. */
class LoraEmbedding extends Module {
  base_layer: Embedding | LoraEmbedding;
  readonly lora_embedding_A: Tensor;
  readonly lora_embedding_B: Tensor;
  readonly scaling: number;
  readonly state: { enabled: boolean };
  override hidden: ReadonlySet<string> = inner;

  constructor(base: Embedding | LoraEmbedding, a: Tensor, b: Tensor, scaling: number, state: { enabled: boolean }) {
    super();
    this.base_layer = base;
    this.lora_embedding_A = a;
    this.lora_embedding_B = b;
    this.scaling = scaling;
    this.state = state;
  }

  get width(): number {
    return this.base_layer.width;
  }

  get rows(): number {
    return this.base_layer.rows;
  }

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    const base = this.base_layer.forward(ids);
    if (!this.state.enabled) return base;
    const h = ops.embedding(ops.t(this.lora_embedding_A), ids);
    return ops.add(base, ops.mm(h, ops.t(this.lora_embedding_B)), { alpha: this.scaling });
  }

  denseWeight(): Tensor {
    return this.base_layer.denseWeight();
  }

  delta(): Tensor {
    return ops.mulScalar(ops.t(ops.mm(this.lora_embedding_B, this.lora_embedding_A)), this.scaling);
  }
}

type Wrapper = LoraLinear | LoraEmbedding;

/** Takes `wrapper` out of the chain of wrappers at `path`, wherever in it it stands. */
function unwrap(root: Module, path: string, wrapper: Wrapper): void {
  let outer = moduleAt(root, path) as Wrapper;
  if (outer === wrapper) {
    replaceModule(root, path, wrapper.base_layer as Module);
    return;
  }
  while (outer.base_layer !== wrapper) outer = outer.base_layer as Wrapper;
  outer.base_layer = wrapper.base_layer as LinearLayer & Embedding;
}

/** The layer under all wrappers, and a way to put another in its place. */
function innermost(wrapper: Wrapper): { layer: Linear | Embedding; put: (layer: Linear | Embedding) => void } {
  let outer = wrapper;
  while (outer.base_layer instanceof LoraLinear || outer.base_layer instanceof LoraEmbedding) outer = outer.base_layer;
  return {
    layer: outer.base_layer as Linear | Embedding,
    put(layer) {
      outer.base_layer = layer as Linear & Embedding;
    },
  };
}

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

/** `all-linear` and the defaults as names that any reader understands: last parts where they say it exactly, else paths. */
function savedTargets(config: LoraConfig, paths: readonly string[], all: readonly string[]) {
  const given = config.target_modules;
  if (given && (typeof given !== 'string' || given.toLowerCase() !== 'all-linear')) return given;
  const last = [...new Set(paths.map((path) => path.split('.').at(-1)!))].sort();
  const exact = all.filter((path) => last.includes(path.split('.').at(-1)!)).length === paths.length;
  return exact ? last : paths;
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
    let merged: { before: Linear | Embedding; after: Linear | Embedding; put: (l: Linear | Embedding) => void }[] = [];

    const adapter: Adapter = {
      method: 'lora',
      config,
      parameters,
      warnings: (['rank_pattern', 'alpha_pattern'] as const).flatMap((field) =>
        Object.keys(config[field])
          .filter((key) => ![...paths].some((path) => patternFits(key, path)))
          .map((key) => `${field} '${key}' fits no module`),
      ),

      get enabled() {
        return state.enabled || merged.length > 0;
      },
      set enabled(on: boolean) {
        if (merged.length > 0)
          throw new GraftError('state', 'a merged adapter cannot be switched', { mend: 'Unmerge it first' });
        state.enabled = on;
        for (const copy of copies) copy.use(on);
      },

      savedConfig: () => ({
        target_modules: savedTargets(
          config,
          [...paths],
          candidates.map(({ path }) => path),
        ),
      }),

      merge() {
        if (merged.length > 0) return;
        merged = noGrad(() =>
          wrapped.map(({ wrapper }) => {
            using s = scope();
            const { layer, put } = innermost(wrapper);
            const sum = detachFromScopes(s.keep(ops.add(layer.denseWeight(), wrapper.delta())));
            const after =
              layer instanceof Embedding
                ? new Embedding(sum, -1, layer.width)
                : new Linear(layer.kernels, sum, -1, layer.inFeatures, layer.bias);
            put(after);
            return { before: layer, after, put };
          }),
        );
        state.enabled = false;
      },

      unmerge() {
        for (const { before, after, put } of merged) {
          put(before);
          after.weight.dispose();
        }
        if (merged.length > 0) state.enabled = true;
        merged = [];
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
