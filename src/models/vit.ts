/**
 * ViT (arXiv 2010.11929) and DeiT (arXiv 2012.12877: one more token, for distillation): an image is a class token and its
 * patches; norms come before each sublayer. Reference: transformers `modeling_vit.py`, `modeling_deit.py`, whose dropout
 * is not applied in training. Modules are named as in transformers 5, where PEFT's names come from; checkpoints have older
 * names. Letters: R images, P patches, N = R × (tokens of an image), C width.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import {
  activationOf,
  blocksOf,
  Dense,
  firstTokens,
  forwardPass,
  headDimOf,
  type ImageShape,
  type LayerNorm,
  type LinearLayer,
  layerNorm,
  type Model,
  type ModelWeights,
  Module,
  type Pass,
  PatchProjection,
  Ports,
  poolRows,
  preNormBlock,
  selfAttention,
  type TaskHead,
} from '../nn/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { noCausalLm } from './heads.ts';

const types = ['vit', 'deit'] as const;
type Type = (typeof types)[number];

/** For each module of a layer, its name in the checkpoint. */
const storedNames: Readonly<Record<string, string>> = {
  'attention.q_proj': 'attention.attention.query',
  'attention.k_proj': 'attention.attention.key',
  'attention.v_proj': 'attention.attention.value',
  'attention.o_proj': 'attention.output.dense',
  'mlp.fc1': 'intermediate.dense',
  'mlp.fc2': 'output.dense',
};

/**
 * Returns the checkpoint's key: `vit.layers.0.mlp.fc1.bias` → `vit.encoder.layer.0.intermediate.dense.bias`, with or
 * without `vit.`.
 */
const storedKey = (key: string): string =>
  key.replace(/^(\w+\.)?layers\.(\d+)\.(\w+(?:\.\w+_proj|\.fc\d)?)/, (_, model = '', layer, part) => {
    return `${model}encoder.layer.${layer}.${storedNames[part] ?? part}`;
  });

const size = z.union([z.int().positive(), z.tuple([z.int().positive(), z.int().positive()])]);

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.enum(types),
  architectures: z.array(z.string()).nullish(),
  hidden_size: z.int().positive().default(768),
  intermediate_size: z.int().positive().default(3072),
  num_hidden_layers: z.int().positive().default(12),
  num_attention_heads: z.int().positive().default(12),
  hidden_act: z.string().default('gelu'),
  layer_norm_eps: z.number().positive().default(1e-12),
  image_size: size.default(224),
  patch_size: size.default(16),
  num_channels: z.int().positive().default(3),
  qkv_bias: z.boolean().default(true),
  pooler_act: z.string().default('tanh'),
});

type Config = z.infer<typeof configSchema>;

const pair = (value: z.infer<typeof size>): [number, number] => (typeof value === 'number' ? [value, value] : value);

/** The shape of an image and of its patches. */
interface Grid extends ImageShape {
  readonly patch: readonly [number, number];
}

function gridOf(c: Config): Grid {
  const [height, width] = pair(c.image_size);
  const patch = pair(c.patch_size);
  const patches = Math.floor(height / patch[0]) * Math.floor(width / patch[1]);
  if (height % patch[0] !== 0 || width % patch[1] !== 0) {
    throw new GraftError(
      'input',
      `image_size ${height} × ${width} is not a multiple of patch_size ${patch.join(' × ')}`,
    );
  }
  return { channels: c.num_channels, height, width, patch, tokens: patches + (c.model_type === 'deit' ? 2 : 1) };
}

const normOf = (w: ModelWeights, path: string, c: Config) => layerNorm(w, path, c.hidden_size, c.layer_norm_eps);

const linear = (w: ModelWeights, path: string, outFeatures: number, inFeatures: number, bias = true) =>
  w.linear(storedKey(path), outFeatures, inFeatures, bias);

class PatchEmbeddings extends Module {
  projection: PatchProjection;

  constructor(w: ModelWeights, path: string, c: Config, { channels, patch }: Grid) {
    super();
    const weight = w.tensor(`${path}.projection.weight`, [c.hidden_size, channels, ...patch]);
    this.projection = new PatchProjection(weight, w.vector(`${path}.projection.bias`, c.hidden_size));
  }
}

class Embeddings extends Module {
  cls_token: Tensor;
  distillation_token?: Tensor;
  position_embeddings: Tensor;
  patch_embeddings: PatchEmbeddings;

  constructor(w: ModelWeights, path: string, c: Config, grid: Grid) {
    super();
    this.cls_token = w.tensor(`${path}.cls_token`, [1, 1, c.hidden_size]);
    if (c.model_type === 'deit') {
      this.distillation_token = w.tensor(`${path}.distillation_token`, [1, 1, c.hidden_size]);
    }
    this.position_embeddings = w.tensor(`${path}.position_embeddings`, [1, grid.tokens, c.hidden_size]);
    this.patch_embeddings = new PatchEmbeddings(w, `${path}.patch_embeddings`, c, grid);
  }

  /** [R, channels, height, width] → [N, C] */
  forward(pixels: Tensor): Tensor {
    const first = this.distillation_token ? [this.cls_token, this.distillation_token] : [this.cls_token];
    const patches = this.patch_embeddings.projection.forward(pixels);
    const [images, , width] = patches.shape as [number, number, number];
    const tokens = ops.cat([...first.map((token) => ops.expand(token, [images, 1, width])), patches], 1);
    return ops.view(ops.add(tokens, this.position_embeddings), [-1, width]);
  }
}

class Attention extends Module {
  q_proj: LinearLayer;
  k_proj: LinearLayer;
  v_proj: LinearLayer;
  o_proj: LinearLayer;
  readonly #heads: number;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    const { hidden_size: width, qkv_bias: bias } = c;
    this.q_proj = linear(w, `${path}.q_proj`, width, width, bias);
    this.k_proj = linear(w, `${path}.k_proj`, width, width, bias);
    this.v_proj = linear(w, `${path}.v_proj`, width, width, bias);
    this.o_proj = linear(w, `${path}.o_proj`, width, width);
    this.#heads = c.num_attention_heads;
    this.#layer = layer;
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const options = { layer: this.#layer, heads: this.#heads, causal: false };
    return this.o_proj.forward(selfAttention(x, pass, [this.q_proj, this.k_proj, this.v_proj], options));
  }
}

class Mlp extends Module {
  fc1: LinearLayer;
  fc2: LinearLayer;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.fc1 = linear(w, `${path}.fc1`, c.intermediate_size, c.hidden_size);
    this.fc2 = linear(w, `${path}.fc2`, c.hidden_size, c.intermediate_size);
    this.#act = activationOf(c.hidden_act);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.#act(this.fc1.forward(x)));
  }
}

class Layer extends Module {
  layernorm_before: LayerNorm;
  attention: Attention;
  layernorm_after: LayerNorm;
  mlp: Mlp;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.layernorm_before = normOf(w, storedKey(`${path}.layernorm_before`), c);
    this.attention = new Attention(w, `${path}.attention`, c, layer);
    this.layernorm_after = normOf(w, storedKey(`${path}.layernorm_after`), c);
    this.mlp = new Mlp(w, `${path}.mlp`, c);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const norms = [this.layernorm_before, this.layernorm_after] as const;
    return preNormBlock(x, pass, { layer: this.#layer, norms, attention: this.attention, mlp: this.mlp });
  }
}

class Vit extends Module {
  embeddings: Embeddings;
  layers: Layer[];
  layernorm: LayerNorm;
  /** Kept, unused, by the task `embedding`. */
  pooler?: Dense;

  constructor(w: ModelWeights, path: string, c: Config, grid: Grid) {
    super();
    this.embeddings = new Embeddings(w, `${path}.embeddings`, c, grid);
    this.layers = Array.from({ length: c.num_hidden_layers }, (_, i) => new Layer(w, `${path}.layers.${i}`, c, i));
    this.layernorm = normOf(w, `${path}.layernorm`, c);
  }
}

/**
 * The encoder under its name in the checkpoint, with the classifier, or DeiT's two, the second of which was trained by
 * distillation.
 */
class VitWithHead extends Module {
  vit?: Vit;
  deit?: Vit;
  classifier?: LinearLayer;
  cls_classifier?: LinearLayer;
  distillation_classifier?: LinearLayer;

  constructor(w: ModelWeights, c: Config, { labels }: TaskHead, encoder: Vit) {
    super();
    this[c.model_type] = encoder;
    const head = (path: string) => w.head(path, labels.length, c.hidden_size, true);
    if (w.has('distillation_classifier.weight')) {
      this.cls_classifier = head('cls_classifier');
      this.distillation_classifier = head('distillation_classifier');
    } else this.classifier = head('classifier');
  }

  /** [N, C] → [R, L] */
  forward(hidden: Tensor, rowStarts: readonly number[]): Tensor {
    const first = firstTokens(hidden, rowStarts);
    if (this.classifier) return this.classifier.forward(first);
    const second = firstTokens(
      hidden,
      rowStarts.map((start) => start + 1),
    );
    const both = ops.add(this.cls_classifier!.forward(first), this.distillation_classifier!.forward(second));
    return ops.divScalar(both, 2);
  }
}

const familyOf = (type: Type): Family => ({
  types: [type],
  prefixes: [type],
  tasks: ['image-classification', 'embedding'],
  heads: ['classifier', ...(type === 'deit' ? ['cls_classifier', 'distillation_classifier'] : [])],
  ...(type === 'vit' && { adapterHub: { block: 'encoder.layer.*', output_adapter: 'output.output_adapters' } }),

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const { hidden_size: width, num_attention_heads: heads, num_hidden_layers: layers } = config;
    const headDim = headDimOf(width, heads);
    const grid = gridOf(config);
    w.ignore(/(^|\.)pooler\.|(^|\.)mask_token$|^(decoder|classifier|cls_classifier|distillation_classifier)\./);
    const encoder = new Vit(w, type, config, grid);
    const [kernels, ports] = [w.kernels, new Ports()];

    return (task) => {
      if (task.name === 'embedding' && w.has(`${type}.pooler.dense.weight`)) {
        encoder.pooler ??= new Dense(w.head(`${type}.pooler.dense`, width, width, true));
      }
      const head = task.name === 'embedding' ? undefined : new VitWithHead(w, config, task, encoder);
      // The paths of ViTModel by itself do not start with `vit.`.
      const start = head ? `${type}.` : '';
      const stem = { vit: 'ViT', deit: 'DeiT' }[type];

      return {
        family: 'vit',
        task,
        config,
        architecture: `${stem}${head ? 'ForImageClassification' : 'Model'}${head?.cls_classifier ? 'WithTeacher' : ''}`,
        kernels,
        ports,
        root: head ?? encoder,
        vocabSize: 0,
        layers,
        width,
        kvHeads: heads,
        headDim,
        parameters: w.parameters,
        contextLength: Number.POSITIVE_INFINITY, // images have a fixed size, and virtual tokens no positions
        image: grid,
        sites: {
          block: `${start}layers.*`,
          embeddings: `${start}embeddings.patch_embeddings.projection`,
          head: head && (head.classifier ? 'classifier' : 'cls_classifier'),
          ...(head?.distillation_classifier && { furtherHeads: ['distillation_classifier'] }),
          attention: {
            q: `${start}layers.*.attention.q_proj`,
            k: `${start}layers.*.attention.k_proj`,
            v: `${start}layers.*.attention.v_proj`,
            o: `${start}layers.*.attention.o_proj`,
          },
          mlp: { up: `${start}layers.*.mlp.fc1`, down: `${start}layers.*.mlp.fc2` },
          // PEFT has no default for this family: the layers that it has for BERT.
          defaultTargets: ['q_proj', 'v_proj'],
        },
        fileKey: storedKey,

        ...forwardPass({
          kernels,
          ports,
          embed({ pixels }) {
            if (!pixels) throw new GraftError('usage', `${type} models read images, and these rows are token ids`);
            return encoder.embeddings.forward(pixels);
          },
          readsFirstToken: false, // heads read the class token behind a prompt too (arXiv 2203.12119, eq. 4)
          blocks: () => blocksOf(encoder.layers),
          finalNorm: ([x]) => encoder.layernorm.forward(x!),
        }),

        logits: (hidden, rowStarts) =>
          head ? head.forward(hidden, rowStarts) : poolRows(hidden, rowStarts, { pooling: 'cls', ...task }),
        ...noCausalLm,
        [Symbol.dispose]: () => w.release(),
      } satisfies Model;
    };
  },
});

export const vit = familyOf('vit');
export const deit = familyOf('deit');
