/**
 * GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): learned positions, norms before each
 * sublayer, one linear layer for queries, keys and values, whose weight the checkpoint stores as [in, out] (Conv1D).
 * Reference: transformers `modeling_gpt2.py`, whose dropout is not applied in training. Letters: N packed tokens, C width.
 */
import { z } from 'zod';
import {
  activationOf,
  attend,
  blocksOf,
  type Embedding,
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
  preNormBlock,
  requireHead,
  requirePositions,
  type TaskHead,
} from '../nn/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';
import { architectureOf } from './architectures.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { decoderLogits, headField } from './heads.ts';

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.literal('gpt2'),
  vocab_size: z.int().positive().default(50257),
  n_positions: z.int().positive().default(1024),
  n_embd: z.int().positive().default(768),
  n_layer: z.int().positive().default(12),
  n_head: z.int().positive().default(12),
  n_inner: z.int().positive().nullish(),
  activation_function: z.string().default('gelu_new'),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  scale_attn_weights: z.boolean().default(true),
  scale_attn_by_inverse_layer_idx: z.boolean().default(false),
  add_cross_attention: z.literal(false).default(false),
  tie_word_embeddings: z.boolean().default(true),
  pad_token_id: z.int().nullish(),
});

type Config = z.infer<typeof configSchema>;

class Attention extends Module {
  c_attn: LinearLayer;
  c_proj: LinearLayer;
  readonly #heads: number;
  readonly #layer: number;
  readonly #scale: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.c_attn = w.transposed(`${path}.c_attn`, 3 * c.n_embd, c.n_embd);
    this.c_proj = w.transposed(`${path}.c_proj`, c.n_embd, c.n_embd);
    this.#heads = c.n_head;
    this.#layer = layer;
    const scale = c.scale_attn_weights ? (c.n_embd / c.n_head) ** -0.5 : 1;
    this.#scale = c.scale_attn_by_inverse_layer_idx ? scale / (layer + 1) : scale;
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const width = x.size(1);
    const [q, k, v] = ops.splitWithSizes(this.c_attn.forward(x), [width, width, width], 1) as [Tensor, Tensor, Tensor];
    const options = { layer: this.#layer, heads: this.#heads, causal: true, scale: this.#scale };
    return this.c_proj.forward(attend(pass, q, k, v, options));
  }
}

class Mlp extends Module {
  c_fc: LinearLayer;
  c_proj: LinearLayer;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    const inner = c.n_inner ?? 4 * c.n_embd;
    this.c_fc = w.transposed(`${path}.c_fc`, inner, c.n_embd);
    this.c_proj = w.transposed(`${path}.c_proj`, c.n_embd, inner);
    this.#act = activationOf(c.activation_function);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    return this.c_proj.forward(this.#act(this.c_fc.forward(x)));
  }
}

const normOf = (w: ModelWeights, path: string, c: Config) => layerNorm(w, path, c.n_embd, c.layer_norm_epsilon);

class Block extends Module {
  ln_1: LayerNorm;
  attn: Attention;
  ln_2: LayerNorm;
  mlp: Mlp;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.ln_1 = normOf(w, `${path}.ln_1`, c);
    this.attn = new Attention(w, `${path}.attn`, c, layer);
    this.ln_2 = normOf(w, `${path}.ln_2`, c);
    this.mlp = new Mlp(w, `${path}.mlp`, c);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const norms = [this.ln_1, this.ln_2] as const;
    return preNormBlock(x, pass, { layer: this.#layer, norms, attention: this.attn, mlp: this.mlp });
  }
}

class Transformer extends Module {
  wte: Embedding;
  wpe: Embedding;
  h: Block[];
  ln_f: LayerNorm;

  constructor(w: ModelWeights, c: Config) {
    super();
    this.wte = w.embedding('transformer.wte', c.vocab_size, c.n_embd);
    this.wpe = w.embedding('transformer.wpe', c.n_positions, c.n_embd);
    this.h = Array.from({ length: c.n_layer }, (_, i) => new Block(w, `transformer.h.${i}`, c, i));
    this.ln_f = normOf(w, 'transformer.ln_f', c);
  }
}

/** The transformer with the head of its task. */
class Gpt2WithHead extends Module {
  transformer: Transformer;
  lm_head?: LinearLayer;
  score?: LinearLayer;
  classifier?: LinearLayer;
  qa_outputs?: LinearLayer;

  constructor(w: ModelWeights, c: Config, { name, labels }: TaskHead, transformer: Transformer) {
    super();
    this.transformer = transformer;
    const count = labels.length;
    if (name === 'causal-lm')
      this.lm_head = w.lmHead('lm_head', 'transformer.wte', transformer.wte, c.tie_word_embeddings);
    else if (name === 'sequence-classification') this.score = w.head('score', count, c.n_embd);
    else if (name === 'token-classification') this.classifier = w.head('classifier', count, c.n_embd, true);
    else this.qa_outputs = w.head('qa_outputs', count, c.n_embd, true);
  }
}

export const gpt2: Family = {
  types: ['gpt2'],
  prefixes: ['transformer'],
  tasks: ['causal-lm', 'sequence-classification', 'token-classification', 'question-answering', 'embedding'],
  heads: ['score', 'classifier', 'qa_outputs'],
  transposed: ['c_attn', 'c_fc', 'c_proj'],
  adapterHub: {
    block: 'h.*',
    updates: {
      attention: { 'attn.c_attn': 'qkv' },
      mlp: { 'mlp.c_fc': 'intermediate_lora', 'mlp.c_proj': 'output_lora' },
      stems: { gpt2: 'GPT2' },
      defaultClass: 'GPT2LMHeadModel',
    },
  },

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const headDim = headDimOf(config.n_embd, config.n_head, 'n_embd');
    // The causal mask, which old checkpoints contain, and heads of other tasks.
    w.ignore(/(^|\.)attn\.(masked_)?bias$|^(lm_head|score|classifier|qa_outputs)\./);
    const transformer = new Transformer(w, config);
    const { kernels } = w;
    const ports = new Ports();

    return (task) => {
      const head = task.name === 'embedding' ? undefined : new Gpt2WithHead(w, config, task, transformer);
      // The paths of GPT2Model by itself do not start with `transformer.`.
      const start = head ? 'transformer.' : '';

      return {
        family: 'gpt2',
        task,
        config,
        architecture: task.name === 'causal-lm' ? 'GPT2LMHeadModel' : architectureOf('GPT2', task.name),
        kernels,
        ports,
        root: head ?? transformer,
        vocabSize: config.vocab_size,
        layers: config.n_layer,
        width: config.n_embd,
        kvHeads: config.n_head,
        headDim,
        parameters: w.parameters,
        contextLength: config.n_positions,
        sites: {
          block: `${start}h.*`,
          embeddings: `${start}wte`,
          head: headField(head),
          attention: {
            q: `${start}h.*.attn.c_attn`,
            k: `${start}h.*.attn.c_attn`,
            v: `${start}h.*.attn.c_attn`,
            o: `${start}h.*.attn.c_proj`,
          },
          mlp: { up: `${start}h.*.mlp.c_fc`, down: `${start}h.*.mlp.c_proj` },
          defaultTargets: ['c_attn'],
        },

        ...forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => transformer.wte.forward(ids),
          addPositions({ x, positions, longest }) {
            requirePositions(longest, config.n_positions);
            return ops.add(x, transformer.wpe.forward(positions));
          },
          blocks: () => blocksOf(transformer.h),
          finalNorm: ([x]) => transformer.ln_f.forward(x!),
        }),

        logits: decoderLogits(head, task, config.pad_token_id),
        lossSum: (hidden, targets) => requireHead(head?.lm_head, 'causal-lm').crossEntropy(hidden, targets),
        [Symbol.dispose]: () => w.release(),
      } satisfies Model;
    };
  },
};
