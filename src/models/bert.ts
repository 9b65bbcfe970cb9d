/**
 * BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692: positions start after the padding id, another classification
 * head), also XLM-R, which is multilingual (arXiv 1911.02116). Norms come after each sublayer. Reference: transformers
 * `modeling_bert.py`, `modeling_roberta.py`, whose dropout is not applied in training. Letters: N packed tokens, R rows, C
 * width.
 */
import { z } from 'zod';
import {
  activationOf,
  blocksOf,
  Dense,
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
  type TaskName,
} from '../nn/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';
import { architectureOf } from './architectures.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { headField, noCausalLm } from './heads.ts';

/** For each `model_type`, the prefix of the checkpoint's keys and the stem of transformers' class names. */
const typeNames = {
  bert: { prefix: 'bert', stem: 'Bert' },
  roberta: { prefix: 'roberta', stem: 'Roberta' },
  'xlm-roberta': { prefix: 'roberta', stem: 'XLMRoberta' },
} as const;
type Type = keyof typeof typeNames;

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.enum(Object.keys(typeNames) as [Type, ...Type[]]),
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  hidden_act: z.string().default('gelu'),
  layer_norm_eps: z.number().positive().default(1e-12),
  max_position_embeddings: z.int().positive().default(512),
  type_vocab_size: z.int().positive().default(2),
  pad_token_id: z.int().nonnegative().nullish(),
  position_embedding_type: z.literal('absolute').default('absolute'),
  is_decoder: z.literal(false).default(false),
});

type Config = z.infer<typeof configSchema>;

const normOf = (w: ModelWeights, path: string, c: Config) => layerNorm(w, path, c.hidden_size, c.layer_norm_eps);

class Embeddings extends Module {
  word_embeddings: Embedding;
  position_embeddings: Embedding;
  token_type_embeddings: Embedding;
  LayerNorm: LayerNorm;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.word_embeddings = w.embedding(`${path}.word_embeddings`, c.vocab_size, c.hidden_size);
    this.position_embeddings = w.embedding(`${path}.position_embeddings`, c.max_position_embeddings, c.hidden_size);
    this.token_type_embeddings = w.embedding(`${path}.token_type_embeddings`, c.type_vocab_size, c.hidden_size);
    this.LayerNorm = normOf(w, `${path}.LayerNorm`, c);
  }

  /** words [N, C] and int64 [N] each → [N, C] */
  forward(words: Tensor, positions: Tensor, tokenTypes: Tensor | undefined): Tensor {
    const ids = tokenTypes ?? ops.zeros([1], { dtype: 'int64' });
    const sum = ops.add(words, this.token_type_embeddings.forward(ids));
    return this.LayerNorm.forward(ops.add(sum, this.position_embeddings.forward(positions)));
  }
}

/** The end of each sublayer: a linear layer, and the norm of its sum with the residual stream. */
class Output extends Module {
  dense: LinearLayer;
  LayerNorm: LayerNorm;

  constructor(w: ModelWeights, path: string, c: Config, inFeatures: number) {
    super();
    this.dense = w.linear(`${path}.dense`, c.hidden_size, inFeatures, true);
    this.LayerNorm = normOf(w, `${path}.LayerNorm`, c);
  }
}

class SelfAttention extends Module {
  query: LinearLayer;
  key: LinearLayer;
  value: LinearLayer;
  readonly #heads: number;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    const linear = (name: string) => w.linear(`${path}.${name}`, c.hidden_size, c.hidden_size, true);
    this.query = linear('query');
    this.key = linear('key');
    this.value = linear('value');
    this.#heads = c.num_attention_heads;
    this.#layer = layer;
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const options = { layer: this.#layer, heads: this.#heads, causal: false };
    return selfAttention(x, pass, [this.query, this.key, this.value], options);
  }
}

class Attention extends Module {
  self: SelfAttention;
  output: Output;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.self = new SelfAttention(w, `${path}.self`, c, layer);
    this.output = new Output(w, `${path}.output`, c, c.hidden_size);
  }

  /** [N, C] → [N, C], without the norm */
  forward(x: Tensor, pass: Pass): Tensor {
    return this.output.dense.forward(this.self.forward(x, pass));
  }
}

class Layer extends Module {
  attention: Attention;
  intermediate: Dense;
  output: Output;
  readonly #layer: number;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.#act = activationOf(c.hidden_act);
    this.attention = new Attention(w, `${path}.attention`, c, layer);
    this.intermediate = new Dense(w.linear(`${path}.intermediate.dense`, c.intermediate_size, c.hidden_size, true));
    this.output = new Output(w, `${path}.output`, c, c.intermediate_size);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const { attention, intermediate, output } = this;
    const norms = [attention.output.LayerNorm, output.LayerNorm] as const;
    const mlp = { forward: (y: Tensor) => output.dense.forward(this.#act(intermediate.dense.forward(y))) };
    return postNormBlock(x, pass, { layer: this.#layer, norms, attention, mlp });
  }
}

class Encoder extends Module {
  layer: Layer[];

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.layer = Array.from({ length: c.num_hidden_layers }, (_, i) => new Layer(w, `${path}.layer.${i}`, c, i));
  }
}

class Bert extends Module {
  embeddings: Embeddings;
  encoder: Encoder;
  /**
   * tanh(dense(first token)), which BERT's classification of rows reads. The task `embedding` keeps it, unused; other tasks
   * have none.
   */
  pooler?: Dense;

  constructor(w: ModelWeights, c: Config, task: TaskName, embeddings: Embeddings, encoder: Encoder) {
    super();
    this.embeddings = embeddings;
    this.encoder = encoder;
    const pooler = `${c.model_type}.pooler.dense`;
    const isUsed = task === 'sequence-classification' && c.model_type === 'bert';
    if (isUsed || (task === 'embedding' && w.has(`${pooler}.weight`))) {
      this.pooler = new Dense(w.head(pooler, c.hidden_size, c.hidden_size, true, false));
    }
  }
}

/** RoBERTa's head for classification of rows: out_proj(tanh(dense(first token))). */
class ClassificationHead extends Module {
  dense: LinearLayer;
  out_proj: LinearLayer;

  constructor(w: ModelWeights, path: string, c: Config, labels: number) {
    super();
    this.dense = w.head(`${path}.dense`, c.hidden_size, c.hidden_size, true);
    this.out_proj = w.head(`${path}.out_proj`, labels, c.hidden_size, true);
  }
}

/** The encoder under its name in the checkpoint, with the head of the task. */
class BertWithHead extends Module {
  bert?: Bert;
  roberta?: Bert;
  classifier?: LinearLayer | ClassificationHead;
  qa_outputs?: LinearLayer;

  constructor(w: ModelWeights, c: Config, { name, labels }: TaskHead, encoder: Bert) {
    super();
    const { prefix } = typeNames[c.model_type];
    this[prefix] = encoder;
    if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', labels.length, c.hidden_size, true);
    else if (name === 'sequence-classification' && prefix === 'roberta') {
      this.classifier = new ClassificationHead(w, 'classifier', c, labels.length);
    } else this.classifier = w.head('classifier', labels.length, c.hidden_size, true);
  }

  /** As `Model.logits`. */
  forward(hidden: Tensor, rowStarts: readonly number[], task: TaskName): Tensor {
    if (this.qa_outputs) return this.qa_outputs.forward(hidden);
    const classifier = this.classifier!;
    if (classifier instanceof ClassificationHead) {
      return classifier.out_proj.forward(ops.tanh(classifier.dense.forward(firstTokens(hidden, rowStarts))));
    }
    if (task === 'token-classification') return classifier.forward(hidden);
    return classifier.forward(ops.tanh(this.bert!.pooler!.dense.forward(firstTokens(hidden, rowStarts))));
  }
}

const familyOf = (at: 'bert' | 'roberta', types: readonly Type[], rowHead: readonly [string, string]): Family => ({
  types,
  prefixes: [at],
  tasks: ['embedding', 'sequence-classification', 'token-classification', 'question-answering'],
  heads: ['classifier', 'qa_outputs'],
  adapterHub: {
    block: 'encoder.layer.*',
    mh_adapter: 'attention.output',
    output_adapter: 'output',
    rowHead,
    updates: {
      attention: { 'attention.self.query': 'q', 'attention.self.key': 'k', 'attention.self.value': 'v' },
      mlp: { 'intermediate.dense': 'intermediate_lora', 'output.dense': 'output_lora' },
      stems: Object.fromEntries(types.map((type) => [type, typeNames[type].stem])),
      defaultClass: `${typeNames[at].stem}ForSequenceClassification`,
    },
  },

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const headDim = headDimOf(config.hidden_size, config.num_attention_heads);
    // Weights of pre-training and of other tasks.
    w.ignore(/(^|\.)(position_ids|token_type_ids)$|(^|\.)pooler\.|^(cls|lm_head|classifier|qa_outputs)\./);
    const embeddings = new Embeddings(w, `${at}.embeddings`, config);
    const encoder = new Encoder(w, `${at}.encoder`, config);
    // RoBERTa's first position is the one after the padding's.
    const firstPosition = at === 'roberta' ? (config.pad_token_id ?? 1) + 1 : 0;
    const { kernels } = w;
    const ports = new Ports();

    return (task) => {
      const body = new Bert(w, config, task.name, embeddings, encoder);
      const head = task.name === 'embedding' ? undefined : new BertWithHead(w, config, task, body);
      // The paths of BertModel by itself do not start with `bert.`.
      const start = head ? `${at}.` : '';

      return {
        family: 'bert',
        task,
        config,
        architecture: architectureOf(typeNames[config.model_type].stem, task.name),
        kernels,
        ports,
        root: head ?? body,
        vocabSize: config.vocab_size,
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        kvHeads: config.num_attention_heads,
        headDim,
        parameters: w.parameters,
        contextLength: config.max_position_embeddings - firstPosition,
        sites: {
          block: `${start}encoder.layer.*`,
          normAfter: true,
          embeddings: `${start}embeddings.word_embeddings`,
          head: headField(head),
          attention: {
            q: `${start}encoder.layer.*.attention.self.query`,
            k: `${start}encoder.layer.*.attention.self.key`,
            v: `${start}encoder.layer.*.attention.self.value`,
            o: `${start}encoder.layer.*.attention.output.dense`,
          },
          mlp: { up: `${start}encoder.layer.*.intermediate.dense`, down: `${start}encoder.layer.*.output.dense` },
          defaultTargets: ['query', 'value'],
        },

        ...forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => embeddings.word_embeddings.forward(ids),
          readsFirstToken: task.name === 'sequence-classification',
          addPositions({ x, positions, longest, types }) {
            requirePositions(longest + firstPosition, config.max_position_embeddings);
            const shifted = firstPosition > 0 ? ops.addScalar(positions, firstPosition) : positions;
            return embeddings.forward(x, shifted, types);
          },
          blocks: () => blocksOf(encoder.layer),
        }),

        logits: (hidden, rowStarts) =>
          head ? head.forward(hidden, rowStarts, task.name) : poolRows(hidden, rowStarts, task),
        ...noCausalLm,
        [Symbol.dispose]: () => w.release(),
      } satisfies Model;
    };
  },
});

export const bert = familyOf('bert', ['bert'], ['bert.pooler.dense', 'classifier']);
export const roberta = familyOf('roberta', ['roberta', 'xlm-roberta'], ['classifier.dense', 'classifier.out_proj']);
