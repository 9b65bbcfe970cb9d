/** The wrappers of LoRA around linear layers and embeddings. */
import type { GateActivation, LinearLayer, LowRankUpdate } from '../../nn/index.ts';
import { dropout, gradEnabled, ops, type Tensor } from '../../tensor/index.ts';
import {
  type LayerWeight,
  LinearWrapper,
  type RowUpdate,
  type Switch,
  type Table,
  TableWrapper,
} from '../shared/index.ts';

/** A linear layer with an update: y = W x + b + s·(B A x + b_B). */
export class LoraLinear extends LinearWrapper {
  /** [R, in] */
  readonly lora_A: Tensor;
  /** [out, R] */
  readonly lora_B: Tensor;
  /** b_B [out], with `lora_bias` only. */
  readonly lora_bias?: Tensor;
  readonly scaling: number;
  /** Dropout probability of the update's input, in training. */
  readonly dropout: number;

  constructor(base: LinearLayer, a: Tensor, b: Tensor, scaling: number, dropout: number, state: Switch, bias?: Tensor) {
    super(base, state);
    this.lora_A = a;
    this.lora_B = b;
    if (bias) this.lora_bias = bias;
    this.scaling = scaling;
    this.dropout = dropout;
  }

  /** A [R, in] and B [out, R] of the update. */
  protected matrices(): readonly [Tensor, Tensor] {
    return [this.lora_A, this.lora_B];
  }

  /** The sum of the layer's bias and the scaled bias of the update; null where neither exists. */
  #fullBias(layerBias: Tensor | undefined): Tensor | null {
    if (!this.lora_bias) return layerBias ?? null;
    const update = ops.mulScalar(this.lora_bias, this.scaling);
    return layerBias ? ops.add(layerBias, update) : update;
  }

  /** x after dropout; null where dropout is off. */
  protected dropped(x: Tensor): Tensor | null {
    return this.dropout > 0 && gradEnabled() ? dropout(x, this.dropout) : null;
  }

  protected adapted(x: Tensor): Tensor {
    const dropped = this.dropped(x);
    const [a, b] = this.matrices();
    const base = this.base_layer.plain();
    if (base) {
      const { weight, format, bias, kernels } = base;
      return kernels.loraLinear(x, dropped, weight, format, this.#fullBias(bias), a, b, this.scaling);
    }
    // On top of another enabled adapter: add to its output.
    const product = ops.mm(ops.mm(dropped ?? x, ops.t(a)), ops.t(b));
    const update = this.lora_bias ? ops.add(product, this.lora_bias) : product;
    return ops.add(this.base_layer.forward(x), update, { alpha: this.scaling });
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    const base = this.base_layer.plain();
    if (!this.state.enabled || !base || (this.dropout > 0 && gradEnabled())) return super.forwardGated(gate, up, act);
    const { weight, format, bias, kernels } = base;
    const [a, b] = this.matrices();
    return kernels.loraGatedLinear(gate, up, act, weight, format, this.#fullBias(bias), a, b, this.scaling);
  }

  override lowRank(): LowRankUpdate | undefined {
    const [a, b] = this.matrices();
    return this.lora_bias ? undefined : { a, b, scaling: this.scaling };
  }

  override rowUpdate(): RowUpdate | undefined {
    const [a, b] = this.matrices();
    return {
      lowRank: [{ a, b, scaling: this.scaling }],
      ...(this.lora_bias && { shift: ops.mulScalar(this.lora_bias, this.scaling) }),
    };
  }

  /** s·BA [out, in] */
  protected delta(): Tensor {
    const [a, b] = this.matrices();
    return ops.mulScalar(ops.mm(b, a), this.scaling);
  }

  fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    const [a, b] = this.matrices();
    const merged = this.kernels.loraWeight(weight, a, b, this.scaling);
    return { weight: merged, format: -1, bias: this.#fullBias(bias) ?? undefined };
  }
}

/**
 * An output projection that shares its table with an embedding, and the transpose of the embedding's update with it: A [R, C] is
 * the embedding's Bᵀ, and B [V, R] its Aᵀ (PEFT's `ensure_weight_tying`).
 */
export class TiedLoraLinear extends LoraLinear {
  protected override matrices(): readonly [Tensor, Tensor] {
    return [ops.contiguous(ops.t(this.lora_A)), ops.contiguous(ops.t(this.lora_B))];
  }
}

/** An embedding with an update: row i of the table [V, C] becomes W[i] + s·(B A[:, i])ᵀ. */
export class LoraEmbedding extends TableWrapper {
  /** [R, V] */
  readonly lora_embedding_A: Tensor;
  /** [C, R] */
  readonly lora_embedding_B: Tensor;
  readonly scaling: number;

  constructor(base: Table, a: Tensor, b: Tensor, scaling: number, state: Switch) {
    super(base, state);
    this.lora_embedding_A = a;
    this.lora_embedding_B = b;
    this.scaling = scaling;
  }

  adapted(vectors: Tensor, ids: Tensor): Tensor {
    const h = ops.embedding(ops.t(this.lora_embedding_A), ids);
    return ops.add(vectors, ops.mm(h, ops.t(this.lora_embedding_B)), { alpha: this.scaling });
  }

  /** s·(BA)ᵀ [V, C] */
  protected delta(): Tensor {
    return ops.mulScalar(ops.t(ops.mm(this.lora_embedding_B, this.lora_embedding_A)), this.scaling);
  }

  fold({ weight, bias }: LayerWeight, _base: Tensor): LayerWeight {
    return { weight: ops.add(weight, this.delta()), format: -1, bias };
  }
}
