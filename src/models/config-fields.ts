import type { z } from 'zod';
import { GraftError, parseWith } from '../base/index.ts';

/**
 * Fields of `config.json` that change the computation in some architecture, and the values with which they do not change it
 * (null never does). A family reads such a field if it stands in its schema. Names: transformers 5.23 `configuration_*.py`.
 */
const neutralValues: Readonly<Record<string, readonly unknown[]>> = {
  add_cross_attention: [false],
  alibi: [false],
  attention_chunk_size: [],
  attention_multiplier: [],
  attn_logit_softcapping: [],
  clip_qkv: [],
  dim_model_base: [],
  embedding_multiplier: [1],
  final_logit_softcapping: [],
  is_encoder_decoder: [false],
  logit_scale: [1],
  logits_scaling: [1],
  n_routed_experts: [0],
  no_rope_layer_interval: [],
  no_rope_layers: [],
  num_experts: [0, 1],
  num_local_experts: [0, 1],
  parallel_attn: [false],
  partial_rotary_factor: [1],
  per_layer_config: [],
  position_embedding_type: ['absolute', 'rope', 'rotary'],
  qk_layernorm: [false],
  qk_norm: [false],
  query_pre_attn_scalar: [],
  residual_multiplier: [1],
  rope_interleave: [false],
  rotary_pct: [1],
  scale_attn_by_inverse_layer_idx: [false],
  scale_attn_weights: [true],
  scale_depth: [],
  scale_emb: [1],
  use_alibi: [false],
  use_parallel_residual: [false],
  use_qk_norm: [false],
};

/** Whether a list or an object has nothing in it. */
const isEmpty = (value: unknown) => typeof value === 'object' && value !== null && Object.keys(value).length === 0;

/**
 * Reads a `config.json` by a family's schema. Fields that no architecture computes with, such as dropout and token ids, stay in
 * the result unread.
 * @throws GraftError 'input' for values that do not fit, and for a field that changes the computation and that the family does
 *   not read
 */
export function readConfig<Schema extends z.ZodObject>(schema: Schema, raw: Record<string, unknown>): z.infer<Schema> {
  const config = parseWith(schema, raw, '', 'input');
  for (const [field, neutral] of Object.entries(neutralValues)) {
    const value = raw[field];
    if (field in schema.shape || value === undefined || value === null || isEmpty(value)) continue;
    if (neutral.includes(value)) continue;
    throw new GraftError('input', `${field} is ${JSON.stringify(value)}, which changes the computation`, {
      hint: `Graft's ${String(raw.model_type)} models do not have this field: if the model does not need it, delete it`,
    });
  }
  return config;
}
