import type { Quantization } from '../quant/index.ts';
import type { Tensor } from '../tensor/index.ts';

/** The rows of a batch, for attention. All numbers are offsets in tokens. */
export interface AttentionRows {
  /** R + 1 offsets into the queries. */
  readonly qStarts: readonly number[];
  /** Offsets where each row's keys begin and end: packed like the queries, or slots of pages. */
  readonly kStarts: readonly number[];
  readonly kEnds: readonly number[];
  /** Where keys are in pages of a larger memory: slot s is at `table[s / size] · size + s % size`. Without gradients. */
  readonly pages?: {
    /** int64 */
    readonly table: Tensor;
    /** Slots of a page: a power of two. */
    readonly size: number;
  };
}

export type GateActivation = 'silu' | 'gelu_tanh';

/** The update of a weight [out, in] that LoRA trains, scaling · B A. */
export interface LowRankUpdate {
  /** A [R, in] */
  readonly a: Tensor;
  /** B [out, R] */
  readonly b: Tensor;
  readonly scaling: number;
}

/** Rows start to end − 1 of a batch. */
export interface RowRange {
  readonly start: number;
  readonly end: number;
}

/** Rows of a batch and the update of low rank that they get, scaling · (x Aᵀ) B. The factors are float32, float16 or bfloat16. */
export interface LowRankRun extends RowRange {
  /** A [R, in] */
  readonly a: Tensor;
  /** B [R, out]: the transpose of LoRA's. */
  readonly b: Tensor;
  readonly scaling: number;
}

/** Rows of a batch and the bottleneck that they go through, scaling · (f(x Aᵀ + aBias) B + bBias); A and B as in LowRankRun. */
export interface BottleneckRun extends LowRankRun {
  /** float32 [R] */
  readonly aBias: Tensor;
  /** float32 [out] */
  readonly bBias: Tensor;
}

/** The activations f of bottlenecks that have a kernel. */
export type RunActivation = 'relu' | 'silu' | 'gelu' | 'gelu_tanh' | 'tanh' | 'sigmoid';

/** Rows of a batch and what they are multiplied by. */
export interface ScaledRun extends RowRange {
  /** [out] */
  readonly gain: Tensor;
}

/** A frozen weight of a linear layer. */
export interface FrozenWeight {
  readonly weight: Tensor;
  /** Native number of its format; −1: dense [out, in]. */
  readonly format: number;
  readonly bias?: Tensor;
}

/** Where the keys and values of one layer are kept, and where those of a pass's tokens go. */
export interface PooledLayer {
  /** [slots, K, D] */
  readonly k: Tensor;
  readonly v: Tensor;
  /** The slot of each token, int64 [N]. */
  readonly slots: Tensor;
  readonly rows: AttentionRows & Required<Pick<AttentionRows, 'pages'>>;
}

/** How a layer rounds its weight in training. */
export interface Rounding {
  readonly quantization: Quantization;
  /** Scales of symmetric integers, float32 [out, groups], which are learned: they get a gradient. */
  readonly learned?: Tensor | undefined;
  /** The layer's inputs are rounded too: q8 as llama.cpp does, int8 for each token as torchao does. Kernels of weights do not read it. */
  readonly activation?: 'q8' | 'int8';
  /** What is rounded is the base's weight, and adapters stay in float beside it. Kernels do not read it. */
  readonly ofBase?: true;
}

/**
 * The operators that a model computes with, besides those of ATen. There are two implementations: `fused` (native/ops/,
 * float32 on the CPU) and `composite` (plain ATen: any dtype and device; the oracle that the fused ones are tested
 * against). Letters: N packed tokens, C width, H heads, K kv heads, D head size, R rank, V vocabulary.
 */
export interface Kernels {
  /** Root-mean-square norm: x / rms(x) · weight over the last axis (arXiv 1910.07467). */
  rmsNorm(x: Tensor, weight: Tensor, eps: number): Tensor;
  /** Returns s = x + delta and its norm: `[s, rmsNorm(s)]`. */
  addRmsNorm(x: Tensor, delta: Tensor, weight: Tensor, eps: number): [Tensor, Tensor];
  /** Rotary position embedding of x [N, H, D] by cos, sin [N, D/2], pairing element i with i + D/2 (arXiv 2104.09864). */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor;
  /** Gated linear unit: act(gate) · up (arXiv 2002.05202). */
  glu(gate: Tensor, up: Tensor, act: GateActivation): Tensor;
  /**
   * Attention within each row, softmax(scale · q kᵀ) v: q [N, H, D], k and v [M, K, D] → [N, H, D]. The last query of a row
   * has the position of its last key: the causal mask and the sliding window (0: none) are aligned there.
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
  /**
   * Attention over a pool, without gradients: rotates q [N, H·D] and k [N, K·D] where there is a rotation, writes k and v [N, K·D] to
   * their slots, and attends as `attention` does: [N, H·D].
   */
  pooledAttention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: readonly [cos: Tensor, sin: Tensor] | undefined,
    pool: PooledLayer,
    scale: number,
    causal: boolean,
    window: number,
  ): Tensor;
  /** `linear` of the same x with several frozen weights, of which all have a bias or none; without gradients. */
  linears(x: Tensor, weights: readonly FrozenWeight[]): Tensor[];
  /** x [N, in] · weightᵀ + bias; `format` is the weight's number format, native number (−1: dense [out, in]). */
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
  /** loraLinear of glu(gate, up), which is computed again in the backward pass instead of being kept. */
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
  /**
   * Returns weight + scaling · B A [out, in]: what a merge writes and roundedLinear rounds. Each element is computed on its own
   * in a fixed order, so the fused operator gives the same bits on every processor and with any number of threads.
   */
  loraWeight(weight: Tensor, a: Tensor, b: Tensor, scaling: number): Tensor;
  /**
   * Adds its update to y [N, out] in the rows of each run, for x [N, in]: in place, without gradients. Ranks and element types may
   * differ between runs, and neighbours in the list may be about the same rows.
   */
  addLowRankRuns(y: Tensor, x: Tensor, runs: readonly LowRankRun[]): void;
  /** The same for bottlenecks with the activation f. */
  addBottleneckRuns(y: Tensor, x: Tensor, f: RunActivation, runs: readonly BottleneckRun[]): void;
  /** Multiplies y [N, out] by a gain in the rows of each run: in place, without gradients. */
  scaleRuns(y: Tensor, runs: readonly ScaledRun[]): void;
  /**
   * x [N, in] · ŵᵀ + bias, with ŵ what fakeQuantize gives of a dense weight [out, in] or of its loraWeight. The graph keeps x, not
   * ŵ, which is made again for the backward pass. Gradients as of fakeQuantize, to everything that requires one.
   * @throws where a row of the weight holds a number that the format cannot
   */
  roundedLinear(
    x: Tensor,
    weight: Tensor,
    update: LowRankUpdate | null,
    bias: Tensor | null,
    rounding: Rounding,
  ): Tensor;
  /** roundedLinear of glu(gate, up), which is computed again in the backward pass instead of being kept. */
  roundedGatedLinear(
    gate: Tensor,
    up: Tensor,
    act: GateActivation,
    weight: Tensor,
    update: LowRankUpdate | null,
    bias: Tensor | null,
    rounding: Rounding,
  ): Tensor;
  /** Sum over the rows with targets ≥ 0 of the cross-entropy of h [N, C] · weightᵀ [C, V]: a scalar, in nats. */
  linearCrossEntropy(h: Tensor, weight: Tensor, format: number, targets: Tensor): Tensor;
  /**
   * Returns weight [.., C] rounded to blocks of `format` (a native number) and unpacked again, as llama.cpp quantises. The
   * gradient passes where no code was brought into its range. float32 or bfloat16.
   * @throws where a number is not finite, or too large for a half-precision scale
   */
  fakeQuantizeBlocks(weight: Tensor, format: number): Tensor;
  /**
   * Returns x [.., C] rounded to integers of 2 to 8 bits and back, with a scale for each `group` elements of a row (0: for
   * the row, as for activations), as torchao 0.18 rounds: symmetric, or with a zero point. The gradient passes where no
   * code was brought into its range; scales are constants. float32 or bfloat16.
   */
  fakeQuantizeIntegers(x: Tensor, bits: number, group: number, symmetric: boolean): Tensor;
  /**
   * The same for a weight [out, in], symmetric, with given scales [out, groups] that get a gradient too: learned ranges
   * (LSQ, arXiv 1902.08153, without its scaling of the gradient), as torchao's `range_learning`.
   */
  fakeQuantizeLearned(weight: Tensor, scale: Tensor, bits: number): Tensor;
}
