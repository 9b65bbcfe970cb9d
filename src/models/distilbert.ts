/**
 * DistilBERT (arXiv 1910.01108): BERT without token types and pooler, with different names of its modules.
 * Reference: transformers `modeling_distilbert.py`, whose dropout is not applied in training. Letters: N packed tokens,
 * C width.
 */
import { z } from 'zod';
import {
  activationOf,
  blocksOf,
  type Embedding,
  firstTokens,
  forwardPass,
  headDimOf,
  type LayerNorm,
  type LinearLayer,
  layerNorm,
  type Model,
  type ModelWeights,
  Module,
  type Pass,
  Ports,
  poolRows,
  postNormBlock,
  requirePositions,
  selfAttention,
  type TaskHead,
} from '../nn/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';
import { architectureOf } from './architectures.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { headField, noCausalLm } from './heads.ts';

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.literal('distilbert'),
  vocab_size: z.int().positive().default(30522),
  dim: z.int().positive().default(768),
  hidden_dim: z.int().positive().default(3072),
  n_layers: z.int().positive().default(6),
  n_heads: z.int().positive().default(12),
  activation: z.string().default('gelu'),
  max_position_embeddings: z.int().positive().default(512),
});

type Config = z.infer<typeof configSchema>;

/** transformers has this value in its code, not in the config. */
const eps = 1e-12;

const normOf = (w: ModelWeights, path: string, c: Config) => layerNorm(w, path, c.dim, eps);

class Embeddings extends Module {
  word_embeddings: Embedding;
  position_embeddings: Embedding;
  LayerNorm: LayerNorm;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.word_embeddings = w.embedding(`${path}.word_embeddings`, c.vocab_size, c.dim);
    this.position_embeddings = w.embedding(`${path}.position_embeddings`, c.max_position_embeddings, c.dim);
    this.LayerNorm = normOf(w, `${path}.LayerNorm`, c);
  }

  /** words [N, C] and positions int64 [N] → [N, C] */
  forward(words: Tensor, positions: Tensor): Tensor {
    return this.LayerNorm.forward(ops.add(words, this.position_embeddings.forward(positions)));
  }
}

class Attention extends Module {
  q_lin: LinearLayer;
  k_lin: LinearLayer;
  v_lin: LinearLayer;
  out_lin: LinearLayer;
  readonly #heads: number;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    const linear = (name: string) => w.linear(`${path}.${name}`, c.dim, c.dim, true);
    this.q_lin = linear('q_lin');
    this.k_lin = linear('k_lin');
    this.v_lin = linear('v_lin');
    this.out_lin = linear('out_lin');
    this.#heads = c.n_heads;
    this.#layer = layer;
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const options = { layer: this.#layer, heads: this.#heads, causal: false };
    return this.out_lin.forward(selfAttention(x, pass, [this.q_lin, this.k_lin, this.v_lin], options));
  }
}

class FeedForward extends Module {
  lin1: LinearLayer;
  lin2: LinearLayer;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.lin1 = w.linear(`${path}.lin1`, c.hidden_dim, c.dim, true);
    this.lin2 = w.linear(`${path}.lin2`, c.dim, c.hidden_dim, true);
    this.#act = activationOf(c.activation);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    return this.lin2.forward(this.#act(this.lin1.forward(x)));
  }
}

class Layer extends Module {
  attention: Attention;
  sa_layer_norm: LayerNorm;
  ffn: FeedForward;
  output_layer_norm: LayerNorm;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.attention = new Attention(w, `${path}.attention`, c, layer);
    this.sa_layer_norm = normOf(w, `${path}.sa_layer_norm`, c);
    this.ffn = new FeedForward(w, `${path}.ffn`, c);
    this.output_layer_norm = normOf(w, `${path}.output_layer_norm`, c);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const norms = [this.sa_layer_norm, this.output_layer_norm] as const;
    return postNormBlock(x, pass, { layer: this.#layer, norms, attention: this.attention, mlp: this.ffn });
  }
}

class Transformer extends Module {
  layer: Layer[];

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.layer = Array.from({ length: c.n_layers }, (_, i) => new Layer(w, `${path}.layer.${i}`, c, i));
  }
}

class DistilBert extends Module {
  embeddings: Embeddings;
  transformer: Transformer;

  constructor(w: ModelWeights, c: Config) {
    super();
    this.embeddings = new Embeddings(w, 'distilbert.embeddings', c);
    this.transformer = new Transformer(w, 'distilbert.transformer', c);
  }
}

/** The encoder with the head of its task. */
class DistilBertWithHead extends Module {
  distilbert: DistilBert;
  pre_classifier?: LinearLayer;
  classifier?: LinearLayer;
  qa_outputs?: LinearLayer;

  constructor(w: ModelWeights, c: Config, { name, labels }: TaskHead, encoder: DistilBert) {
    super();
    this.distilbert = encoder;
    if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', labels.length, c.dim, true);
    else {
      if (name === 'sequence-classification') this.pre_classifier = w.head('pre_classifier', c.dim, c.dim, true);
      this.classifier = w.head('classifier', labels.length, c.dim, true);
    }
  }

  /** As `Model.logits`. */
  forward(hidden: Tensor, rowStarts: readonly number[]): Tensor {
    if (!this.classifier) return this.qa_outputs!.forward(hidden);
    if (!this.pre_classifier) return this.classifier.forward(hidden);
    return this.classifier.forward(ops.relu(this.pre_classifier.forward(firstTokens(hidden, rowStarts))));
  }
}

export const distilbert: Family = {
  types: ['distilbert'],
  prefixes: ['distilbert'],
  tasks: ['embedding', 'sequence-classification', 'token-classification', 'question-answering'],
  heads: ['classifier', 'qa_outputs'],
  headLayers: ['pre_classifier'],
  adapterHub: {
    block: 'transformer.layer.*',
    updates: {
      attention: { 'attention.q_lin': 'q', 'attention.k_lin': 'k', 'attention.v_lin': 'v' },
      mlp: { 'ffn.lin1': 'intermediate_lora', 'ffn.lin2': 'output_lora' },
      stems: { distilbert: 'DistilBert' },
      defaultClass: 'DistilBertForSequenceClassification',
    },
  },

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const { dim, n_heads: heads, n_layers: layers } = config;
    const headDim = headDimOf(dim, heads, 'dim');
    // Weights of pre-training and of other tasks.
    w.ignore(/(^|\.)position_ids$|^(vocab_\w+|pre_classifier|classifier|qa_outputs)\./);
    const encoder = new DistilBert(w, config);
    const { kernels } = w;
    const ports = new Ports();

    return (task) => {
      const head = task.name === 'embedding' ? undefined : new DistilBertWithHead(w, config, task, encoder);
      // The paths of DistilBertModel by itself do not start with `distilbert.`.
      const start = head ? 'distilbert.' : '';

      return {
        family: 'distilbert',
        task,
        config,
        architecture: architectureOf('DistilBert', task.name),
        kernels,
        ports,
        root: head ?? encoder,
        vocabSize: config.vocab_size,
        layers,
        width: dim,
        kvHeads: heads,
        headDim,
        parameters: w.parameters,
        contextLength: config.max_position_embeddings,
        sites: {
          block: `${start}transformer.layer.*`,
          normAfter: true,
          embeddings: `${start}embeddings.word_embeddings`,
          head: headField(head),
          attention: {
            q: `${start}transformer.layer.*.attention.q_lin`,
            k: `${start}transformer.layer.*.attention.k_lin`,
            v: `${start}transformer.layer.*.attention.v_lin`,
            o: `${start}transformer.layer.*.attention.out_lin`,
          },
          mlp: { up: `${start}transformer.layer.*.ffn.lin1`, down: `${start}transformer.layer.*.ffn.lin2` },
          // PEFT has no default for this family: the layers that it has for BERT.
          defaultTargets: ['q_lin', 'v_lin'],
        },

        ...forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => encoder.embeddings.word_embeddings.forward(ids),
          readsFirstToken: task.name === 'sequence-classification',
          addPositions({ x, positions, longest }) {
            requirePositions(longest, config.max_position_embeddings);
            return encoder.embeddings.forward(x, positions);
          },
          blocks: () => blocksOf(encoder.transformer.layer),
        }),

        logits: (hidden, rowStarts) => (head ? head.forward(hidden, rowStarts) : poolRows(hidden, rowStarts, task)),
        ...noCausalLm,
        [Symbol.dispose]: () => w.release(),
      } satisfies Model;
    };
  },
};
