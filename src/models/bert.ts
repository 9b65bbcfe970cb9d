/**
 * BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692: positions count from behind the padding id, another head for rows), of
 * many languages as XLM-R (arXiv 1911.02116).
 * Norms come after each half. Reference: transformers `modeling_bert.py`, `modeling_roberta.py`, whose dropout is not
 * applied in training. Letters: N packed tokens, R rows, C width.
 */
import { z } from 'zod';
import { parseWith } from '../base/index.ts';
import {
  activationOf,
  attend,
  Dense,
  type Embedding,
  firstOfRows,
  headDimOf,
  LayerNorm,
  type LinearLayer,
  type Model,
  Module,
  normsLast,
  type PackedTokens,
  type Pass,
  Ports,
  pooledRows,
  requireRoom,
  type TaskHead,
  type TaskName,
  through,
  type Weights,
  writesNothing,
} from '../nn/index.ts';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import type { Family } from './family.ts';

/** What the types are called in checkpoints and in names of architectures. */
const called = {
  bert: { at: 'bert', stem: 'Bert' },
  roberta: { at: 'roberta', stem: 'Roberta' },
  'xlm-roberta': { at: 'roberta', stem: 'XLMRoberta' },
} as const;
type Type = keyof typeof called;

/** The fields of `config.json` that decide the computation; others are kept but not read. */
const configSchema = z.looseObject({
  model_type: z.enum(Object.keys(called) as [Type, ...Type[]]),
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

const architectureOf = (type: Type, task: TaskName): string => {
  const names: Partial<Record<TaskName, string>> = {
    'sequence-classification': 'ForSequenceClassification',
    'token-classification': 'ForTokenClassification',
    'question-answering': 'ForQuestionAnswering',
  };
  return called[type].stem + (names[task] ?? 'Model');
};

const normOf = (w: Weights, path: string, c: Config) =>
  new LayerNorm(w.vector(`${path}.weight`, c.hidden_size), w.vector(`${path}.bias`, c.hidden_size), c.layer_norm_eps);

class Embeddings extends Module {
  word_embeddings: Embedding;
  position_embeddings: Embedding;
  token_type_embeddings: Embedding;
  LayerNorm: LayerNorm;

  constructor(w: Weights, path: string, c: Config) {
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

/** What ends each half of a block: a product, and the norm of its sum with the stream. */
class Output extends Module {
  dense: LinearLayer;
  LayerNorm: LayerNorm;

  constructor(w: Weights, path: string, c: Config, inFeatures: number) {
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

  constructor(w: Weights, path: string, c: Config, layer: number) {
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
    const [q, k, v] = [this.query.forward(x), this.key.forward(x), this.value.forward(x)];
    const options = { layer: this.#layer, heads: this.#heads, causal: false };
    return attend(pass, q, k, v, options);
  }
}

class Attention extends Module {
  self: SelfAttention;
  output: Output;

  constructor(w: Weights, path: string, c: Config, layer: number) {
    super();
    this.self = new SelfAttention(w, `${path}.self`, c, layer);
    this.output = new Output(w, `${path}.output`, c, c.hidden_size);
  }
}

class Layer extends Module {
  attention: Attention;
  intermediate: Dense;
  output: Output;
  readonly #layer: number;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: Weights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.#act = activationOf(c.hidden_act);
    this.attention = new Attention(w, `${path}.attention`, c, layer);
    this.intermediate = new Dense(w.linear(`${path}.intermediate.dense`, c.intermediate_size, c.hidden_size, true));
    this.output = new Output(w, `${path}.output`, c, c.intermediate_size);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const { self, output: first } = this.attention;
    return normsLast(x, pass, {
      layer: this.#layer,
      norms: [first.LayerNorm, this.output.LayerNorm],
      attention: (y) => first.dense.forward(self.forward(y, pass)),
      mlp: (y) => this.output.dense.forward(this.#act(this.intermediate.dense.forward(y))),
    });
  }
}

class Encoder extends Module {
  layer: Layer[];

  constructor(w: Weights, path: string, c: Config) {
    super();
    this.layer = Array.from({ length: c.num_hidden_layers }, (_, i) => new Layer(w, `${path}.layer.${i}`, c, i));
  }
}

class Bert extends Module {
  embeddings: Embeddings;
  encoder: Encoder;
  /** tanh(dense(first token)): what BERT classifies rows by, and no other task's model has. The task `embedding` only keeps it. */
  pooler?: Dense;

  constructor(w: Weights, c: Config, task: TaskName, embeddings: Embeddings, encoder: Encoder) {
    super();
    this.embeddings = embeddings;
    this.encoder = encoder;
    const pooler = `${c.model_type}.pooler.dense`;
    const used = task === 'sequence-classification' && c.model_type === 'bert';
    if (used || (task === 'embedding' && w.has(`${pooler}.weight`))) {
      this.pooler = new Dense(w.head(pooler, c.hidden_size, c.hidden_size, true, false));
    }
  }
}

/** RoBERTa's head for rows: out_proj(tanh(dense(first token))). */
class RowHead extends Module {
  dense: LinearLayer;
  out_proj: LinearLayer;

  constructor(w: Weights, path: string, c: Config, labels: number) {
    super();
    this.dense = w.head(`${path}.dense`, c.hidden_size, c.hidden_size, true);
    this.out_proj = w.head(`${path}.out_proj`, labels, c.hidden_size, true);
  }
}

/** The encoder under its name, with the head of its task. */
class WithHead extends Module {
  bert?: Bert;
  roberta?: Bert;
  classifier?: LinearLayer | RowHead;
  qa_outputs?: LinearLayer;

  constructor(w: Weights, c: Config, { name, labels }: TaskHead, encoder: Bert) {
    super();
    const { at } = called[c.model_type];
    this[at] = encoder;
    if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', labels.length, c.hidden_size, true);
    else if (name === 'sequence-classification' && at === 'roberta') {
      this.classifier = new RowHead(w, 'classifier', c, labels.length);
    } else this.classifier = w.head('classifier', labels.length, c.hidden_size, true);
  }

  /** As `Model.logits`. */
  forward(hidden: Tensor, rowStarts: readonly number[], task: TaskName): Tensor {
    if (this.qa_outputs) return this.qa_outputs.forward(hidden);
    const classifier = this.classifier!;
    if (classifier instanceof RowHead) {
      return classifier.out_proj.forward(ops.tanh(classifier.dense.forward(firstOfRows(hidden, rowStarts))));
    }
    if (task === 'token-classification') return classifier.forward(hidden);
    return classifier.forward(ops.tanh(this.bert!.pooler!.dense.forward(firstOfRows(hidden, rowStarts))));
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
      stems: Object.fromEntries(types.map((type) => [type, called[type].stem])),
      defaultClass: `${called[at].stem}ForSequenceClassification`,
    },
  },

  build(raw, w) {
    const config = parseWith(configSchema, raw, '', 'input');
    const headDim = headDimOf(config.hidden_size, config.num_attention_heads);
    // What pre-training and other tasks use.
    w.ignore(/(^|\.)(position_ids|token_type_ids)$|(^|\.)pooler\.|^(cls|lm_head|classifier|qa_outputs)\./);
    const embeddings = new Embeddings(w, `${at}.embeddings`, config);
    const encoder = new Encoder(w, `${at}.encoder`, config);
    // RoBERTa's first row of positions is that behind the one of padding.
    const firstPosition = at === 'roberta' ? (config.pad_token_id ?? 1) + 1 : 0;
    const { kernels } = w;
    const ports = new Ports();

    return (task) => {
      const body = new Bert(w, config, task.name, embeddings, encoder);
      const head = task.name === 'embedding' ? undefined : new WithHead(w, config, task, body);
      // BertModel by itself has no `bert.` before its names.
      const before = head ? `${at}.` : '';
      const pooled = task.name === 'sequence-classification';

      return {
        family: 'bert',
        task,
        config,
        architecture: architectureOf(config.model_type, task.name),
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
          block: `${before}encoder.layer.*`,
          normAfter: true,
          embeddings: `${before}embeddings.word_embeddings`,
          head: head && (head.qa_outputs ? 'qa_outputs' : 'classifier'),
          attention: {
            q: `${before}encoder.layer.*.attention.self.query`,
            k: `${before}encoder.layer.*.attention.self.key`,
            v: `${before}encoder.layer.*.attention.self.value`,
            o: `${before}encoder.layer.*.attention.output.dense`,
          },
          mlp: { up: `${before}encoder.layer.*.intermediate.dense`, down: `${before}encoder.layer.*.output.dense` },
          defaultTargets: ['query', 'value'],
        },

        hidden(tokens: PackedTokens): Tensor {
          using s = scope();
          const words = embeddings.word_embeddings.forward(tokens.ids);
          const input = ports.enter(words, tokens, undefined, pooled);
          requireRoom(input.longest + firstPosition, config.max_position_embeddings);
          const positions = firstPosition > 0 ? ops.addScalar(input.positions, firstPosition) : input.positions;
          const pass: Pass = { keys: ports.keys(input.rowStarts), ports, kernels };
          const x = ports.afterEmbedding(embeddings.forward(input.x, positions, input.types));
          return s.keep(ports.afterFinalNorm(input.strip(through(x, encoder.layer, pass))));
        },

        logits: (hidden, rowStarts) =>
          head ? head.forward(hidden, rowStarts, task.name) : pooledRows(hidden, rowStarts, task),
        ...writesNothing,
        [Symbol.dispose]: () => w.release(),
      } satisfies Model;
    };
  },
});

export const bert = familyOf('bert', ['bert'], ['bert.pooler.dense', 'classifier']);
export const roberta = familyOf('roberta', ['roberta', 'xlm-roberta'], ['classifier.dense', 'classifier.out_proj']);
