/**
 * GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and MLP of a block read the same residual stream, one
 * linear layer holds query, key and value of each head after one another, and only the first elements of a head are rotated.
 * Reference: transformers `modeling_gpt_neox.py`, whose dropout is not applied in training. Letters: N packed tokens, C width,
 * H heads, D head size.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import {
  activationOf,
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
  RopeTable,
  requireHead,
  ropeOf,
  type TaskHead,
} from '../nn/index.ts';
import { ops, type Tensor } from '../tensor/index.ts';
import { architectureOf } from './architectures.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { decoderLogits, headField } from './heads.ts';

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.literal('gpt_neox'),
  vocab_size: z.int().positive().default(50432),
  hidden_size: z.int().positive().default(6144),
  num_hidden_layers: z.int().positive().default(44),
  num_attention_heads: z.int().positive().default(64),
  intermediate_size: z.int().positive().default(24576),
  hidden_act: z.string().default('gelu'),
  layer_norm_eps: z.number().positive().default(1e-5),
  max_position_embeddings: z.int().positive().default(2048),
  use_parallel_residual: z.boolean().default(true),
  attention_bias: z.boolean().default(true),
  tie_word_embeddings: z.boolean().default(false),
  pad_token_id: z.int().nullish(),
  /** The share of a head that is rotated, and theta: before transformers 5, which has both in `rope_parameters`. */
  rotary_pct: z.number().positive().max(1).default(0.25),
  rotary_emb_base: z.number().positive().default(10_000),
  /** transformers 4 also writes both under these names, and no version reads them. */
  partial_rotary_factor: z.number().nullish(),
  rope_theta: z.number().nullish(),
  rope_scaling: z.record(z.string(), z.unknown()).nullish(),
  rope_parameters: z.record(z.string(), z.unknown()).nullish(),
});

type Config = z.infer<typeof configSchema>;

/** @throws GraftError 'input' where the config gives theta or the rotated share twice, and not the same */
function rotationOf({ rotary_pct: share, rotary_emb_base: theta, ...config }: Config, headDim: number) {
  const inRope = { ...config.rope_parameters, ...config.rope_scaling };
  const written = [
    ['partial_rotary_factor', config.partial_rotary_factor, inRope.partial_rotary_factor ?? share],
    ['rope_theta', config.rope_theta, inRope.rope_theta ?? theta],
  ] as const;
  for (const [field, value, used] of written) {
    if (value == null || value === used) continue;
    throw new GraftError('input', `${field} is ${value}, and the fields that gpt_neox reads say ${String(used)}`, {
      hint: 'Correct it, or delete it',
    });
  }
  return ropeOf({ ...config, rope_theta: theta, partial_rotary_factor: share }, headDim, true);
}

class Attention extends Module {
  query_key_value: LinearLayer;
  dense: LinearLayer;
  readonly #heads: number;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    const width = c.hidden_size;
    this.query_key_value = w.linear(`${path}.query_key_value`, 3 * width, width, c.attention_bias);
    this.dense = w.linear(`${path}.dense`, width, width, c.attention_bias);
    this.#heads = c.num_attention_heads;
    this.#layer = layer;
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, { keyValues, kernels, rotation }: Pass): Tensor {
    const [tokens, width] = x.shape as [number, number];
    const headDim = width / this.#heads;
    const perHead = ops.view(this.query_key_value.forward(x), [tokens, this.#heads, 3 * headDim]);
    const [q, k, v] = ops.splitWithSizes(perHead, [headDim, headDim, headDim], 2) as [Tensor, Tensor, Tensor];
    const visible = keyValues.forLayer(this.#layer, kernels.rope(k, ...rotation!), v);
    const rotated = kernels.rope(q, ...rotation!);
    const out = kernels.attention(rotated, visible.k, visible.v, keyValues.rows, headDim ** -0.5, true, 0);
    return this.dense.forward(ops.view(out, [tokens, width]));
  }
}

class Mlp extends Module {
  dense_h_to_4h: LinearLayer;
  dense_4h_to_h: LinearLayer;
  readonly #act: (x: Tensor) => Tensor;

  constructor(w: ModelWeights, path: string, c: Config) {
    super();
    this.dense_h_to_4h = w.linear(`${path}.dense_h_to_4h`, c.intermediate_size, c.hidden_size, true);
    this.dense_4h_to_h = w.linear(`${path}.dense_4h_to_h`, c.hidden_size, c.intermediate_size, true);
    this.#act = activationOf(c.hidden_act);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    return this.dense_4h_to_h.forward(this.#act(this.dense_h_to_4h.forward(x)));
  }
}

const normOf = (w: ModelWeights, path: string, c: Config) => layerNorm(w, path, c.hidden_size, c.layer_norm_eps);

class Block extends Module {
  input_layernorm: LayerNorm;
  post_attention_layernorm: LayerNorm;
  attention: Attention;
  mlp: Mlp;
  readonly #layer: number;
  readonly #parallel: boolean;

  constructor(w: ModelWeights, path: string, c: Config, layer: number) {
    super();
    this.#layer = layer;
    this.#parallel = c.use_parallel_residual;
    this.input_layernorm = normOf(w, `${path}.input_layernorm`, c);
    this.post_attention_layernorm = normOf(w, `${path}.post_attention_layernorm`, c);
    this.attention = new Attention(w, `${path}.attention`, c, layer);
    this.mlp = new Mlp(w, `${path}.mlp`, c);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, pass: Pass): Tensor {
    const norms = [this.input_layernorm, this.post_attention_layernorm] as const;
    const sublayers = { layer: this.#layer, norms, attention: this.attention, mlp: this.mlp };
    return preNormBlock(x, pass, sublayers, this.#parallel);
  }
}

class Decoder extends Module {
  embed_in: Embedding;
  layers: Block[];
  final_layer_norm: LayerNorm;

  constructor(w: ModelWeights, c: Config) {
    super();
    this.embed_in = w.embedding('gpt_neox.embed_in', c.vocab_size, c.hidden_size);
    this.layers = Array.from({ length: c.num_hidden_layers }, (_, i) => new Block(w, `gpt_neox.layers.${i}`, c, i));
    this.final_layer_norm = normOf(w, 'gpt_neox.final_layer_norm', c);
  }
}

/** transformers calls the output layer `lm_head`, and its files `embed_out`. */
const storedKey = (key: string) => key.replace(/^lm_head(?=\.|$)/, 'embed_out');

/** The decoder with the head of its task. */
class GptNeoxWithHead extends Module {
  gpt_neox: Decoder;
  lm_head?: LinearLayer;
  score?: LinearLayer;
  classifier?: LinearLayer;
  qa_outputs?: LinearLayer;

  constructor(w: ModelWeights, c: Config, { name, labels }: TaskHead, decoder: Decoder) {
    super();
    this.gpt_neox = decoder;
    const [count, width] = [labels.length, c.hidden_size];
    if (name === 'sequence-classification') this.score = w.head('score', count, width);
    else if (name === 'token-classification') this.classifier = w.head('classifier', count, width, true);
    else if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', count, width, true);
    else this.lm_head = w.lmHead(storedKey('lm_head'), 'gpt_neox.embed_in', decoder.embed_in, c.tie_word_embeddings);
  }
}

export const gptNeox: Family = {
  types: ['gpt_neox'],
  prefixes: ['gpt_neox'],
  tasks: ['causal-lm', 'sequence-classification', 'token-classification', 'question-answering', 'embedding'],
  heads: ['score', 'classifier', 'qa_outputs'],

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const [layers, width, heads] = [config.num_hidden_layers, config.hidden_size, config.num_attention_heads];
    const headDim = headDimOf(width, heads);
    const rope = new RopeTable(rotationOf(config, headDim), w.dtype);
    // The causal mask, which old checkpoints contain, and heads of other tasks.
    w.ignore(/(^|\.)attention\.(masked_)?bias$|^(embed_out|score|classifier|qa_outputs)\./);
    const decoder = new Decoder(w, config);
    const [kernels, ports] = [w.kernels, new Ports()];

    return (task) => {
      const head = task.name === 'embedding' ? undefined : new GptNeoxWithHead(w, config, task, decoder);
      // The paths of GPTNeoXModel by itself do not start with `gpt_neox.`.
      const start = head ? 'gpt_neox.' : '';
      const fused = `${start}layers.*.attention.query_key_value`;

      return {
        family: 'gpt_neox',
        task,
        config,
        architecture: architectureOf('GPTNeoX', task.name),
        kernels,
        ports,
        root: head ?? decoder,
        vocabSize: config.vocab_size,
        layers,
        width,
        kvHeads: heads,
        headDim,
        parameters: w.parameters,
        contextLength: config.max_position_embeddings,
        sites: {
          block: `${start}layers.*`,
          embeddings: `${start}embed_in`,
          head: headField(head),
          attention: { q: fused, k: fused, v: fused, o: `${start}layers.*.attention.dense` },
          mlp: { up: `${start}layers.*.mlp.dense_h_to_4h`, down: `${start}layers.*.mlp.dense_4h_to_h` },
          defaultTargets: ['query_key_value'],
        },
        fileKey: storedKey,

        ...forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => decoder.embed_in.forward(ids),
          rotation: (input) => rope.at(input),
          blocks: () => blocksOf(decoder.layers),
          finalNorm: ([x]) => decoder.final_layer_norm.forward(x!),
        }),

        logits: decoderLogits(head, task, config.pad_token_id),
        lossSum: (hidden, targets) => requireHead(head?.lm_head, 'causal-lm').crossEntropy(hidden, targets),
        [Symbol.dispose]() {
          rope.dispose();
          w.release();
        },
      } satisfies Model;
    };
  },
};
