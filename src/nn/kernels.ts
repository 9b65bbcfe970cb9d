import type { Tensor } from '../tensor/index.ts';

/** Which tokens of a batch form a row, for attention. All arrays count tokens. */
export interface AttentionRows {
  /** R + 1 offsets into the queries. */
  readonly qStarts: readonly number[];
  /** Where each row's keys begin and end: packed like the queries, or slots of a larger cache. */
  readonly kStarts: readonly number[];
  readonly kEnds: readonly number[];
}

export type GateActivation = 'silu' | 'gelu_tanh';

/**
 * What a model computes with, beside plain ATen operators. Two implementations: `fused` (native/ops/, float32 on the
 * CPU) and `composite` (plain ATen: any dtype and device; the oracle that the fused ones are tested against).
 * Letters: N packed tokens, C width, H heads, K kv heads, D head size, R rank, V vocabulary.
 */
export interface Kernels {
  /** x / rms(x) · weight over the last axis (arXiv 1910.07467). */
  rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor;
  /** s = x + delta, and the norm of s: `[s, normed]`. */
  addRmsNorm(x: Tensor, delta: Tensor, weight: Tensor, eps: number): [Tensor, Tensor];
  /** Turns x [N, H, D] by cos, sin [N, D/2], half-split (arXiv 2104.09864). */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor;
  /** act(gate) · up (arXiv 2002.05202). */
  glu(gate: Tensor, up: Tensor, act: GateActivation): Tensor;
  /**
   * softmax(scale · q kᵀ) v row by row: q [N, H, D], k and v [M, K, D] → [N, H, D]. Causal and window count from the
   * end: the last query stands beside the last key.
   */
  attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: AttentionRows,
    scale: number,
    causal: boolean,
    window: number,
  ): Tensor;
  /** x [N, in] · weightᵀ + bias; `format` says how weight is stored (-1: dense [out, in]). */
  linear(x: Tensor, weight: Tensor, format: number, bias: Tensor | null): Tensor;
  /** linear(x) + scaling · dropped(x) Aᵀ Bᵀ with A [R, in], B [out, R] (arXiv 2106.09685, eq. 3). */
  loraLinear(
    x: Tensor,
    dropped: Tensor | null,
    weight: Tensor,
    format: number,
    bias: Tensor | null,
    a: Tensor,
    b: Tensor,
    scaling: number,
  ): Tensor;
  /** loraLinear of glu(gate, up), which is not kept for the backward pass but formed again. */
  loraGatedLinear(
    gate: Tensor,
    up: Tensor,
    act: GateActivation,
    weight: Tensor,
    format: number,
    bias: Tensor | null,
    a: Tensor,
    b: Tensor,
    scaling: number,
  ): Tensor;
  /** Sum over the rows with targets ≥ 0 of the cross-entropy of h [N, C] · weightᵀ [C, V]: a scalar, in nats. */
  linearCrossEntropy(h: Tensor, weight: Tensor, format: number, targets: Tensor): Tensor;
}
