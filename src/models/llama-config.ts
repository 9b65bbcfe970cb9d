/** The `config.json` of the Llama family: what transformers 5.23 reads of it, with the defaults of each model type. */
import { z } from 'zod';
import { GraftError } from '../base/index.ts';

export const llamaTypes = ['llama', 'mistral', 'qwen2', 'qwen3'] as const;

/** The fields of `config.json` that decide the computation; `readConfig` decides about the others. */
export const llamaSchema = z.looseObject({
  model_type: z.enum(llamaTypes),
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

export type LlamaConfig = z.infer<typeof llamaSchema>;

/** What transformers has for fields that a config leaves out, where families differ. */
const defaults: Readonly<
  Record<(typeof llamaTypes)[number], { positions: number; kvHeads?: number; headDim?: number; window?: number }>
> = {
  llama: { positions: 2048 },
  mistral: { positions: 131_072, kvHeads: 8, window: 4096 },
  qwen2: { positions: 32_768, kvHeads: 32, window: 4096 },
  qwen3: { positions: 32_768, kvHeads: 32, headDim: 128, window: 4096 },
};

/** The config with all defaults filled in, from which the modules are built. */
export interface ResolvedConfig {
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
  /** Size of a layer's sliding window in tokens; 0: the layer attends to all. */
  window(layer: number): number;
}

export function resolveConfig(config: LlamaConfig): ResolvedConfig {
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
    window: windowsOf(config),
  };
}

/**
 * Returns what gives the window of a layer. Llama has none and Mistral one for all layers, whatever `layer_types` says.
 * @throws GraftError 'input' for layer_types that contradict that
 */
function windowsOf(config: LlamaConfig): (layer: number) => number {
  const { model_type: type, num_hidden_layers: layers, layer_types: layerTypes } = config;
  const qwen = type === 'qwen2' || type === 'qwen3';
  const size = (config.sliding_window === undefined ? defaults[type].window : config.sliding_window) ?? 0;
  const window = type === 'llama' || (qwen && config.use_sliding_window !== true) ? 0 : size;
  if (!layerTypes) return (layer) => (qwen && layer < (config.max_window_layers ?? 28) ? 0 : window);
  const [full, sliding] = ['full_attention', 'sliding_attention'];
  // Where Qwen has a window, layer_types says for each layer whether it counts.
  const possible = window === 0 ? [full] : qwen ? [full, sliding] : [sliding];
  const wrong = layerTypes.find((name) => !possible.includes(name));
  if (wrong !== undefined || layerTypes.length !== layers) {
    const problem = wrong === undefined ? `has ${layerTypes.length} entries for ${layers} layers` : `has '${wrong}'`;
    throw invalid(`layer_types ${problem}; by its other fields this ${type} model has ${possible.join(' or ')}`);
  }
  return (layer) => (layerTypes[layer] === sliding ? window : 0);
}

const invalid = (problem: string) => new GraftError('input', problem);
