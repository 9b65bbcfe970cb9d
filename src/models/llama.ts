/**
 * Llama 2 and 3 (arXiv 2307.09288, 2407.21783) and the families that differ from it in a detail: SmolLM2, Mistral
 * (sliding window), Qwen2 (bias on q, k, v) and Qwen3 (norm on each head's q and k).
 * Reference: transformers `modeling_llama.py` and its siblings. Letters: N packed tokens, C width, H heads, K kv heads,
 * D head size.
 */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';
import {
  type Embedding,
  forwardPass,
  type LinearLayer,
  type Model,
  type ModelWeights,
  Module,
  type Pass,
  Ports,
  type RmsNorm,
  RopeTable,
  requireHead,
  rmsNorm,
  ropeOf,
  type TaskHead,
} from '../nn/index.ts';
import { ops, scope, type Tensor } from '../tensor/index.ts';
import { architectureOf } from './architectures.ts';
import { readConfig } from './config-fields.ts';
import type { Family } from './family.ts';
import { ggufLlamaConfig } from './gguf-config.ts';
import { ggufLlamaNames } from './gguf-names.ts';
import { decoderLogits, headField } from './heads.ts';

const types = ['llama', 'mistral', 'qwen2', 'qwen3'] as const;

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
const configSchema = z.looseObject({
  model_type: z.enum(types),
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().nullish(),
  head_dim: z.int().positive().nullish(),
  hidden_act: z.string().default('silu'),
  rms_norm_eps: z.number().positive().default(1e-6),
  max_position_embeddings: z.int().positive().nullish(),
  original_max_position_embeddings: z.int().positive().nullish(),
  pad_token_id: z.int().nullish(),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  sliding_window: z.int().positive().nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.int().nonnegative().nullish(),
  layer_types: z.array(z.string()).nullish(),
  rope_theta: z.number().positive().nullish(),
  partial_rotary_factor: z.number().positive().nullish(),
  rope_scaling: z.record(z.string(), z.unknown()).nullish(),
  /** Theta and scaling, as transformers 5 stores them. */
  rope_parameters: z.record(z.string(), z.unknown()).nullish(),
});

type Config = z.infer<typeof configSchema>;

const stems = { llama: 'Llama', mistral: 'Mistral', qwen2: 'Qwen2', qwen3: 'Qwen3' } as const;

/** What transformers has for fields that a config leaves out, where families differ. */
const defaults: Readonly<
  Record<(typeof types)[number], { positions: number; kvHeads?: number; headDim?: number; window?: number }>
> = {
  llama: { positions: 2048 },
  mistral: { positions: 131_072, kvHeads: 8, window: 4096 },
  qwen2: { positions: 32_768, kvHeads: 32, window: 4096 },
  qwen3: { positions: 32_768, kvHeads: 32, headDim: 128, window: 4096 },
};

/** The config with all defaults filled in, from which the modules are built. */
interface ResolvedConfig {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly width: number;
  readonly inner: number;
  readonly eps: number;
  readonly positions: number;
  readonly qkvBias: boolean;
  readonly outBias: boolean;
  readonly mlpBias: boolean;
  readonly headNorm: boolean;
  readonly activation: 'silu' | 'gelu_tanh';
  /** For each layer, the size of its sliding window in tokens; 0: the layer attends to all. */
  readonly windows: readonly number[];
}

function resolveConfig(config: Config): ResolvedConfig {
  const type = config.model_type;
  const heads = config.num_attention_heads;
  const absent = defaults[type];
  const kvHeads = (config.num_key_value_heads === undefined ? absent.kvHeads : config.num_key_value_heads) ?? heads;
  const headDim = (config.head_dim === undefined ? absent.headDim : config.head_dim) ?? config.hidden_size / heads;
  // transformers' Mistral and Qwen2 do not read attention_bias: a file with such biases has weights that the model does not use.
  const bias = (type === 'llama' || type === 'qwen3') && (config.attention_bias ?? false);
  const activations = { silu: 'silu', swish: 'silu', gelu_pytorch_tanh: 'gelu_tanh', gelu_new: 'gelu_tanh' } as const;
  const activation = activations[config.hidden_act as keyof typeof activations];
  if (!activation)
    throw invalid(`hidden_act '${config.hidden_act}' is not one of ${Object.keys(activations).join(', ')}`);
  if (heads % kvHeads !== 0) throw invalid(`${heads} attention heads are not a multiple of ${kvHeads} key/value heads`);
  if (!Number.isInteger(headDim)) {
    throw invalid(
      `hidden_size ${config.hidden_size} is not a multiple of the ${heads} attention heads, and head_dim is missing`,
    );
  }
  return {
    heads,
    kvHeads,
    headDim,
    width: config.hidden_size,
    inner: config.intermediate_size,
    eps: config.rms_norm_eps,
    positions: config.max_position_embeddings ?? absent.positions,
    qkvBias: type === 'qwen2' || bias,
    outBias: bias,
    mlpBias: type === 'llama' && (config.mlp_bias ?? false),
    headNorm: type === 'qwen3',
    activation,
    windows: windowsOf(config),
  };
}

/**
 * Returns the window of each layer. Llama has none and Mistral one for all layers, whatever `layer_types` says.
 * @throws GraftError 'input' for layer_types that contradict that
 */
function windowsOf(config: Config): number[] {
  const { model_type: type, num_hidden_layers: layers, layer_types: layerTypes } = config;
  const qwen = type === 'qwen2' || type === 'qwen3';
  const size = (config.sliding_window === undefined ? defaults[type].window : config.sliding_window) ?? 0;
  const window = type === 'llama' || (qwen && config.use_sliding_window !== true) ? 0 : size;
  const windows = Array.from({ length: layers }, (_, layer) => {
    if (qwen && layerTypes) return layerTypes[layer] === 'sliding_attention' ? window : 0;
    return qwen && layer < (config.max_window_layers ?? 28) ? 0 : window;
  });
  if (!layerTypes) return windows;
  const computed = windows.map((size) => (size > 0 ? 'sliding_attention' : 'full_attention'));
  if (layerTypes.length === layers && layerTypes.every((name, layer) => name === computed[layer])) return windows;
  throw invalid(
    `layer_types is ${JSON.stringify(layerTypes)}, and by its other fields this ${type} model has ${JSON.stringify(computed)}`,
  );
}

const invalid = (problem: string) => new GraftError('input', problem);

class Attention extends Module {
  q_proj: LinearLayer;
  k_proj: LinearLayer;
  v_proj: LinearLayer;
  o_proj: LinearLayer;
  q_norm?: RmsNorm;
  k_norm?: RmsNorm;
  readonly #c: ResolvedConfig;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: ResolvedConfig, layer: number) {
    super();
    this.#c = c;
    this.#layer = layer;
    this.q_proj = w.linear(`${path}.q_proj`, c.heads * c.headDim, c.width, c.qkvBias);
    this.k_proj = w.linear(`${path}.k_proj`, c.kvHeads * c.headDim, c.width, c.qkvBias);
    this.v_proj = w.linear(`${path}.v_proj`, c.kvHeads * c.headDim, c.width, c.qkvBias);
    this.o_proj = w.linear(`${path}.o_proj`, c.width, c.heads * c.headDim, c.outBias);
    if (c.headNorm) {
      this.q_norm = rmsNorm(w, `${path}.q_norm`, c.headDim, c.eps);
      this.k_norm = rmsNorm(w, `${path}.k_norm`, c.headDim, c.eps);
    }
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor, { keyValues, kernels, rotation }: Pass): Tensor {
    const { heads, kvHeads, headDim } = this.#c;
    const split = (t: Tensor, count: number) => ops.view(t, [t.size(0), count, headDim]);
    let q = split(this.q_proj.forward(x), heads);
    let k = split(this.k_proj.forward(x), kvHeads);
    const v = split(this.v_proj.forward(x), kvHeads);
    if (this.q_norm) q = this.q_norm.forward(q);
    if (this.k_norm) k = this.k_norm.forward(k);
    q = kernels.rope(q, ...rotation!);
    k = kernels.rope(k, ...rotation!);
    const visible = keyValues.forLayer(this.#layer, k, v);
    const window = this.#c.windows[this.#layer]!;
    const out = kernels.attention(q, visible.k, visible.v, keyValues.rows, headDim ** -0.5, true, window);
    return this.o_proj.forward(ops.view(out, [out.size(0), heads * headDim]));
  }
}

class Mlp extends Module {
  gate_proj: LinearLayer;
  up_proj: LinearLayer;
  down_proj: LinearLayer;
  readonly #c: ResolvedConfig;

  constructor(w: ModelWeights, path: string, c: ResolvedConfig) {
    super();
    this.#c = c;
    this.gate_proj = w.linear(`${path}.gate_proj`, c.inner, c.width, c.mlpBias);
    this.up_proj = w.linear(`${path}.up_proj`, c.inner, c.width, c.mlpBias);
    this.down_proj = w.linear(`${path}.down_proj`, c.width, c.inner, c.mlpBias);
  }

  /** [N, C] → [N, C] */
  forward(x: Tensor): Tensor {
    return this.down_proj.forwardGated(this.gate_proj.forward(x), this.up_proj.forward(x), this.#c.activation);
  }
}

class Block extends Module {
  self_attn: Attention;
  mlp: Mlp;
  input_layernorm: RmsNorm;
  post_attention_layernorm: RmsNorm;
  readonly #layer: number;

  constructor(w: ModelWeights, path: string, c: ResolvedConfig, layer: number) {
    super();
    this.#layer = layer;
    this.self_attn = new Attention(w, `${path}.self_attn`, c, layer);
    this.mlp = new Mlp(w, `${path}.mlp`, c);
    this.input_layernorm = rmsNorm(w, `${path}.input_layernorm`, c.width, c.eps);
    this.post_attention_layernorm = rmsNorm(w, `${path}.post_attention_layernorm`, c.width, c.eps);
  }

  /**
   * The residual stream is passed on as two tensors, x and delta, so that one kernel both adds and norms them.
   * x [N, C] and, except in the first block, delta [N, C] → the same two of the next block
   */
  forward([x, delta]: readonly Tensor[], pass: Pass): [Tensor, Tensor] {
    using s = scope();
    const norm = this.input_layernorm;
    const [residual, normed] = delta ? norm.forwardAdded(x!, delta) : [x!, norm.forward(x!)];
    const common = { layer: this.#layer, norm: undefined, rowStarts: pass.keyValues.rows.qStarts };
    const attentionOutput = this.self_attn.forward(normed, pass);
    const attentionDelta = pass.ports.afterAttention({ ...common, delta: attentionOutput, residual });
    const [y, normedY] = this.post_attention_layernorm.forwardAdded(residual, attentionDelta);
    const mlpOutput = this.mlp.forward(normedY);
    return s.keep([y, pass.ports.afterMlp({ ...common, delta: mlpOutput, residual: y })]);
  }
}

class Decoder extends Module {
  embed_tokens: Embedding;
  layers: Block[];
  norm: RmsNorm;

  constructor(w: ModelWeights, config: Config, c: ResolvedConfig) {
    super();
    this.embed_tokens = w.embedding('model.embed_tokens', config.vocab_size, c.width);
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) => new Block(w, `model.layers.${i}`, c, i));
    this.norm = rmsNorm(w, 'model.norm', c.width, c.eps);
  }
}

/** The decoder with the head of the task. */
class LlamaWithHead extends Module {
  model?: Decoder;
  /** transformers' name of the decoder in models for question answering, except Mistral's. */
  transformer?: Decoder;
  lm_head?: LinearLayer;
  score?: LinearLayer;
  qa_outputs?: LinearLayer;

  constructor(w: ModelWeights, config: Config, { name, labels }: TaskHead, decoder: Decoder) {
    super();
    const width = config.hidden_size;
    this[name === 'question-answering' && config.model_type !== 'mistral' ? 'transformer' : 'model'] = decoder;
    if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', labels.length, width, true);
    else if (name !== 'causal-lm') this.score = w.head('score', labels.length, width, name === 'token-classification');
    else this.lm_head = w.lmHead('lm_head', 'model.embed_tokens', decoder.embed_tokens, config.tie_word_embeddings);
  }
}

export const llama: Family = {
  types,
  prefixes: ['model', 'transformer'],
  tasks: ['causal-lm', 'sequence-classification', 'token-classification', 'question-answering', 'embedding'],
  heads: ['score', 'qa_outputs'],
  adapterHub: {
    block: 'layers.*',
    updates: {
      attention: { 'self_attn.q_proj': 'q', 'self_attn.k_proj': 'k', 'self_attn.v_proj': 'v' },
      // AdapterHub calls the down projection `intermediate`.
      mlp: { 'mlp.down_proj': 'intermediate_lora', 'mlp.up_proj': 'output_lora' },
      stems,
      defaultClass: 'LlamaForCausalLM',
    },
  },
  gguf: { architectures: ['llama', 'qwen2', 'qwen3'], names: ggufLlamaNames, config: ggufLlamaConfig },

  build(raw, w) {
    const config = readConfig(configSchema, raw);
    const c = resolveConfig(config);
    w.ignore(/^(lm_head|score|qa_outputs)\./);
    const decoder = new Decoder(w, config, c);
    const [kernels, ports] = [w.kernels, new Ports()];
    const rope = new RopeTable(ropeOf({ ...config, max_position_embeddings: c.positions }, c.headDim), w.dtype);
    return (task) => {
      const head = task.name === 'embedding' ? undefined : new LlamaWithHead(w, config, task, decoder);
      // The paths of LlamaModel by itself do not start with `model.`.
      const start = head ? (head.model ? 'model.' : 'transformer.') : '';

      return {
        family: 'llama',
        task,
        config,
        architecture: architectureOf(stems[config.model_type], task.name),
        kernels,
        ports,
        root: head ?? decoder,
        vocabSize: config.vocab_size,
        layers: config.num_hidden_layers,
        width: c.width,
        kvHeads: c.kvHeads,
        headDim: c.headDim,
        parameters: w.parameters,
        contextLength: c.positions,
        sites: {
          block: `${start}layers.*`,
          embeddings: `${start}embed_tokens`,
          head: headField(head),
          attention: {
            q: `${start}layers.*.self_attn.q_proj`,
            k: `${start}layers.*.self_attn.k_proj`,
            v: `${start}layers.*.self_attn.v_proj`,
            o: `${start}layers.*.self_attn.o_proj`,
          },
          mlp: {
            gate: `${start}layers.*.mlp.gate_proj`,
            up: `${start}layers.*.mlp.up_proj`,
            down: `${start}layers.*.mlp.down_proj`,
          },
          defaultTargets: ['q_proj', 'v_proj'],
        },

        hidden: forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => decoder.embed_tokens.forward(ids),
          rotation: (input, cachedTokens) => rope.at(input, cachedTokens),
          blocks: () => decoder.layers.map((layer) => layer.forward.bind(layer)),
          finalNorm: ([x, delta]) => decoder.norm.forwardAdded(x!, delta!)[1],
        }),

        logits: decoderLogits(head, task, config.pad_token_id),
        lossSum: (hidden, targets) => requireHead(head?.lm_head, 'causal-lm').crossEntropy(hidden, targets),
        newCache: (capacity) => ports.newCache(config.num_hidden_layers, capacity, c.kvHeads, c.headDim),
        [Symbol.dispose]() {
          rope.dispose();
          w.release();
        },
      } satisfies Model;
    };
  },
};
