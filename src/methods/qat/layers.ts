/** The wrappers of quantisation-aware training: around a layer and its adapters (the merged weight), or below them (the inputs). */
import {
  areBlocksGated,
  crossEntropyOfLogits,
  fakeQuantize,
  type GateActivation,
  type Kernels,
  type Linear,
  type LinearLayer,
  type LowRankUpdate,
  type Rounding,
} from '../../nn/index.ts';
import { isIntegerFormat, type PackedWeight, pack } from '../../quant/index.ts';
import { detachFromScopes, gradEnabled, ops, scope, Tensor } from '../../tensor/index.ts';
import {
  type Fold,
  type LayerWeight,
  LinearWrapper,
  layerUnder,
  ownWeight,
  type Switch,
  type Table,
  TableWrapper,
  type Wrapper,
} from '../shared/index.ts';
import type { RoundInputs } from './config.ts';

type Chained = Wrapper & { readonly state: Switch };

/** The enabled wrappers from `outer` down to its layer, the innermost first. */
export function chainOf(outer: LinearLayer | Table): Chained[] {
  const chain: Chained[] = [];
  for (let module = outer as unknown as Chained; module.base_layer !== undefined; module = module.base_layer as Chained)
    if (module.state.enabled) chain.unshift(module);
  return chain;
}

/** The weight and bias that a chain of wrappers computes with, as one dense weight [out, in]: gradients reach every part of it. */
function mergedWeight(outer: LinearLayer): LayerWeight {
  const layer = layerUnder(outer) as Linear;
  const base = ownWeight(layer);
  const start: LayerWeight = { weight: layer.denseWeight(), format: -1, bias: layer.bias };
  return chainOf(outer).reduce((current, wrapper) => wrapper.fold(current, base), start);
}

/** The names of every tensor on which the merged weight depends, with their versions. */
function versionsOf(outer: LinearLayer, scales: Tensor | undefined): string {
  const modules = [...chainOf(outer), layerUnder(outer)];
  const tensors = modules.flatMap((module) => Object.values(module).filter((value) => value instanceof Tensor));
  return [...tensors, ...(scales ? [scales] : [])].map((tensor) => `${tensor.id}:${ops.version(tensor)}`).join();
}

/** Returns a dense weight rounded, in blocks where its groups are whole blocks. */
function rounded(kernels: Kernels, weight: Tensor, { quantization, learned }: Rounding): PackedWeight {
  const { format, groupSize = weight.size(1) } = quantization;
  if (!isIntegerFormat(format) || groupSize % 32 === 0) return pack(weight, quantization, learned);
  return { weight: fakeQuantize(kernels, weight, quantization, learned), format: -1 };
}

/** The change of a frozen weight to its rounded form. */
export const roundingFold = (kernels: Kernels, rounding: Rounding): Fold => ({
  fold: ({ weight, bias }) => ({ ...rounded(kernels, weight, rounding), bias }),
});

/** A linear layer, with the adapters on it, whose merged weight is rounded: y = x · round(W + ΔW)ᵀ + b. */
export class RoundedLinear extends LinearWrapper {
  readonly #rounding: Rounding;
  readonly #roundInputs: RoundInputs | undefined;
  /** Without gradients, the rounded weight of the tensors in these versions: rounding takes longer than a product with few rows. */
  #cached: { readonly versions: string; readonly layer: LayerWeight; readonly owned: readonly Tensor[] } | undefined;

  constructor(base: LinearLayer, rounding: Rounding, roundInputs: RoundInputs | undefined, state: Switch) {
    super(base, state);
    this.#rounding = rounding;
    this.#roundInputs = roundInputs;
  }

  #inputs(x: Tensor): Tensor {
    return this.#roundInputs?.(this.kernels, x) ?? x;
  }

  /** The weight that is rounded with its low-rank update, where it has one and nothing else changes it; else the sum, dense. */
  #parts(): { readonly weight: Tensor; readonly update: LowRankUpdate | null; readonly bias: Tensor | null } {
    const layer = layerUnder(this) as Linear;
    const [only, ...others] = chainOf(this.base_layer);
    const update = others.length === 0 ? (only as LinearWrapper | undefined)?.lowRank() : undefined;
    if (update) return { weight: layer.weight, update, bias: layer.bias ?? null };
    const { weight, bias } = mergedWeight(this.base_layer);
    return { weight, update: null, bias: bias ?? null };
  }

  #withoutGradients(): LayerWeight {
    if (areBlocksGated()) {
      const { weight, bias } = mergedWeight(this.base_layer);
      return { ...rounded(this.kernels, weight, this.#rounding), bias };
    }
    const versions = versionsOf(this.base_layer, this.#rounding.learned);
    if (this.#cached?.versions !== versions) {
      this.free();
      using s = scope();
      const { weight, bias } = mergedWeight(this.base_layer);
      const layer = { ...rounded(this.kernels, weight, this.#rounding), bias };
      const isOwn = (tensor: Tensor | undefined) =>
        tensor !== undefined && tensor !== (layerUnder(this) as Linear).bias;
      const owned = [layer.weight, layer.bias].filter(isOwn) as Tensor[];
      for (const tensor of owned) detachFromScopes(s.keep(tensor));
      this.#cached = { versions, layer, owned };
    }
    return this.#cached!.layer;
  }

  protected adapted(x: Tensor): Tensor {
    const inputs = this.#inputs(x);
    if (!gradEnabled()) {
      const { weight, format, bias } = this.#withoutGradients();
      return this.kernels.linear(inputs, weight, format, bias ?? null);
    }
    this.free();
    const { weight, update, bias } = this.#parts();
    return this.kernels.roundedLinear(inputs, weight, update, bias, this.#rounding);
  }

  override forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    if (!this.state.enabled || !gradEnabled() || this.#roundInputs) return super.forwardGated(gate, up, act);
    this.free();
    const { weight, update, bias } = this.#parts();
    return this.kernels.roundedGatedLinear(gate, up, act, weight, update, bias, this.#rounding);
  }

  override crossEntropy(h: Tensor, targets: Tensor): Tensor {
    if (!this.state.enabled) return this.base_layer.crossEntropy(h, targets);
    if (!gradEnabled()) {
      const { weight, format, bias } = this.#withoutGradients();
      if (!bias) return this.kernels.linearCrossEntropy(this.#inputs(h), weight, format, targets);
      return crossEntropyOfLogits((rows) => this.adapted(rows), h, targets);
    }
    this.free();
    const { weight, bias } = mergedWeight(this.base_layer);
    if (bias) return crossEntropyOfLogits((rows) => this.adapted(rows), h, targets);
    const { quantization, learned } = this.#rounding;
    const table = fakeQuantize(this.kernels, weight, quantization, learned);
    return this.kernels.linearCrossEntropy(this.#inputs(h), table, -1, targets);
  }

  /** The weight as it is: what is written in blocks is rounded by writing it. */
  fold(current: LayerWeight): LayerWeight {
    return current;
  }

  /** Frees the weight that is kept between passes without gradients. */
  free(): void {
    for (const tensor of this.#cached?.owned ?? []) tensor.dispose();
    this.#cached = undefined;
  }
}

/** A linear layer whose inputs are rounded; adapters on it see them as they are. */
export class RoundedInputs extends LinearWrapper {
  readonly #roundInputs: RoundInputs;

  constructor(base: LinearLayer, roundInputs: RoundInputs, state: Switch) {
    super(base, state);
    this.#roundInputs = roundInputs;
  }

  protected adapted(x: Tensor): Tensor {
    return this.base_layer.forward(this.#roundInputs(this.kernels, x));
  }

  override crossEntropy(h: Tensor, targets: Tensor): Tensor {
    return this.base_layer.crossEntropy(this.state.enabled ? this.#roundInputs(this.kernels, h) : h, targets);
  }

  fold(current: LayerWeight): LayerWeight {
    return current;
  }
}

/** An embedding, with the adapters on it, whose vectors are rounded: the same numbers as looking them up in the rounded table. */
export class RoundedTable extends TableWrapper {
  readonly #rounding: Rounding;
  readonly #kernels: Kernels;

  constructor(base: Table, rounding: Rounding, kernels: Kernels, state: Switch) {
    super(base, state);
    this.#rounding = rounding;
    this.#kernels = kernels;
  }

  override adapted(vectors: Tensor): Tensor {
    return fakeQuantize(this.#kernels, vectors, this.#rounding.quantization);
  }

  fold(current: LayerWeight): LayerWeight {
    return current;
  }
}
