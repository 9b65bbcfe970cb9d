/**
 * Llama 2 and 3 (arXiv 2307.09288, 2407.21783) and the families that differ from it in a detail: SmolLM2, Mistral
 * (sliding window), Qwen2 (bias on q, k, v) and Qwen3 (norm on each head's q and k).
 * Reference: transformers `modeling_llama.py` and its siblings. Letters: N packed tokens, C width, H heads, K kv heads,
 * D head size.
 */
import {
  attend,
  type Embedding,
  forwardAll,
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
import { ggufLlamaMetadata } from './gguf-metadata.ts';
import { ggufLlamaNames } from './gguf-names.ts';
import { decoderLogits, headField } from './heads.ts';
import { type LlamaConfig, llamaSchema, llamaTypes, type ResolvedConfig, resolveConfig } from './llama-config.ts';

const stems = { llama: 'Llama', mistral: 'Mistral', qwen2: 'Qwen2', qwen3: 'Qwen3' } as const;

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
  forward(x: Tensor, pass: Pass): Tensor {
    const { heads, headDim } = this.#c;
    const layers = [this.q_proj, this.k_proj, this.v_proj];
    const [q, k, v] = forwardAll(x, layers) as [Tensor, Tensor, Tensor];
    const normed = (t: Tensor, norm: RmsNorm | undefined) =>
      norm ? ops.view(norm.forward(ops.view(t, [t.size(0), -1, headDim])), t.shape) : t;
    const options = { layer: this.#layer, heads, causal: true, window: this.#c.window(this.#layer), rotates: true };
    return this.o_proj.forward(attend(pass, normed(q, this.q_norm), normed(k, this.k_norm), v, options));
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
    const [gate, up] = forwardAll(x, [this.gate_proj, this.up_proj]) as [Tensor, Tensor];
    return this.down_proj.forwardGated(gate, up, this.#c.activation);
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

  constructor(w: ModelWeights, config: LlamaConfig, c: ResolvedConfig) {
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

  constructor(w: ModelWeights, config: LlamaConfig, { name, labels }: TaskHead, decoder: Decoder) {
    super();
    const width = config.hidden_size;
    this[name === 'question-answering' && config.model_type !== 'mistral' ? 'transformer' : 'model'] = decoder;
    if (name === 'question-answering') this.qa_outputs = w.head('qa_outputs', labels.length, width, true);
    else if (name !== 'causal-lm') this.score = w.head('score', labels.length, width, name === 'token-classification');
    else this.lm_head = w.lmHead('lm_head', 'model.embed_tokens', decoder.embed_tokens, config.tie_word_embeddings);
  }
}

export const llama: Family = {
  types: llamaTypes,
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
  gguf: {
    architectures: ['llama', 'qwen2', 'qwen3'],
    names: ggufLlamaNames,
    config: ggufLlamaConfig,
    metadata: ggufLlamaMetadata,
  },

  build(raw, w) {
    const config = readConfig(llamaSchema, raw);
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

        ...forwardPass({
          kernels,
          ports,
          embed: ({ ids }) => decoder.embed_tokens.forward(ids),
          rotation: (input) => rope.at(input),
          blocks: () => decoder.layers.map((layer) => layer.forward.bind(layer)),
          finalNorm: ([x, delta]) => (delta ? decoder.norm.forwardAdded(x!, delta)[1] : decoder.norm.forward(x!)),
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
