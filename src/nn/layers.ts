import { dequantized, type Quantization } from '../quant/index.ts';
import { gradEnabled, ops, type Tensor } from '../tensor/index.ts';
import { embedding } from './device-kernels.ts';
import type { GateActivation, Kernels } from './kernels.ts';
import { Module } from './module.ts';

/** Returns a weight as dense numbers: the layer's own tensor, or a new one unpacked from blocks. */
const denseForm = ({ weight, format }: { weight: Tensor; format: number }) =>
  format < 0 ? weight : dequantized(weight, format);

/** A linear layer, or a wrapper that a method put in its place. */
export interface LinearLayer extends Module {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly kernels: Kernels;
  /** [N, in] → [N, out] */
  forward(x: Tensor): Tensor;
  /** Returns forward(act(gate) · up), for gate and up [N, in]. */
  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor;
  /**
   * Returns the sum of the cross-entropies of forward(h) against targets int64 [N] (negative: ignored), in nats: a scalar.
   */
  crossEntropy(h: Tensor, targets: Tensor): Tensor;
  /** Returns the linear layer itself, where no enabled wrapper changes its output; a wrapper may then fuse with it. */
  plain(): Linear | undefined;
  /** Returns the weight as dense numbers [out, in]: the layer's own tensor, or a new one unpacked from blocks. */
  denseWeight(): Tensor;
}

/** Returns what each of several layers gives for the same x [N, in]. Without gradients, products with plain layers are one operator. */
export function forwardAll(x: Tensor, layers: readonly LinearLayer[]): Tensor[] {
  const plain = gradEnabled() ? [] : layers.flatMap((layer) => layer.plain() ?? []);
  const biases = plain.filter(({ bias }) => bias).length;
  if (plain.length < layers.length || (biases > 0 && biases < plain.length))
    return layers.map((layer) => layer.forward(x));
  return layers[0]!.kernels.linears(x, plain);
}

/**
 * A linear layer, y = x Wᵀ + b. The weight is dense [out, in], or frozen and packed: uint8 [out, bytes of a row] in the
 * number format `format`.
 */
export class Linear extends Module implements LinearLayer {
  weight: Tensor;
  bias?: Tensor;
  /** Native number of the weight's number format; −1: dense. */
  format: number;
  /** How its numbers were rounded before they were stored; absent: they were not, or are held in another format. */
  roundedAs?: Quantization;
  /** The checkpoint stores the weight [in, out]. */
  transposed = false;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly kernels: Kernels;

  constructor(kernels: Kernels, weight: Tensor, format: number, inFeatures: number, bias?: Tensor) {
    super();
    this.kernels = kernels;
    this.weight = weight;
    this.format = format;
    this.inFeatures = inFeatures;
    this.outFeatures = weight.size(0);
    if (bias) this.bias = bias;
  }

  forward(x: Tensor): Tensor {
    return this.kernels.linear(x, this.weight, this.format, this.bias ?? null);
  }

  forwardGated(gate: Tensor, up: Tensor, act: GateActivation): Tensor {
    return this.forward(this.kernels.glu(gate, up, act));
  }

  crossEntropy(h: Tensor, targets: Tensor): Tensor {
    return this.kernels.linearCrossEntropy(h, this.weight, this.format, targets);
  }

  plain(): Linear {
    return this;
  }

  denseWeight(): Tensor {
    return denseForm(this);
  }
}

/** A table of vectors by token id: dense [V, C], or packed in the number format `format`. */
export class Embedding extends Module {
  weight: Tensor;
  format: number;
  /** As of `Linear`. */
  roundedAs?: Quantization;
  readonly width: number;
  readonly rows: number;

  constructor(weight: Tensor, format: number, width: number) {
    super();
    this.weight = weight;
    this.format = format;
    this.width = width;
    this.rows = weight.size(0);
  }

  /** ids int64 [N] → [N, C] */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, this.format, ids);
  }

  plain(): Embedding {
    return this;
  }

  /** Returns the table as dense numbers [V, C]: its own tensor, or a new one unpacked from blocks. */
  denseWeight(): Tensor {
    return denseForm(this);
  }
}

/**
 * A convolution whose stride is the size of its kernel: every patch of an image times one matrix. P patches of h × w
 * pixels.
 */
export class PatchProjection extends Module {
  /** [C, channels, h, w] */
  weight: Tensor;
  bias: Tensor;

  constructor(weight: Tensor, bias: Tensor) {
    super();
    this.weight = weight;
    this.bias = bias;
  }

  /** [R, channels, height, width], both multiples of the patch's → [R, P, C] */
  forward(pixels: Tensor): Tensor {
    const [images, channels, height, width] = pixels.shape as [number, number, number, number];
    const [patchHeight, patchWidth] = [this.weight.size(2), this.weight.size(3)];
    const [down, across] = [height / patchHeight, width / patchWidth];
    const split = ops.view(pixels, [images, channels, down, patchHeight, across, patchWidth]);
    const patches = ops.reshape(ops.permute(split, [0, 2, 4, 1, 3, 5]), [images, down * across, -1]);
    return ops.linear(patches, ops.view(this.weight, [this.weight.size(0), -1]), this.bias);
  }
}

/** Root-mean-square norm (arXiv 1910.07467). */
export class RmsNorm extends Module {
  weight: Tensor;
  readonly eps: number;
  readonly kernels: Kernels;

  constructor(kernels: Kernels, weight: Tensor, eps: number) {
    super();
    this.kernels = kernels;
    this.weight = weight;
    this.eps = eps;
  }

  /** [..., C] → [..., C] */
  forward(x: Tensor): Tensor {
    return this.kernels.rmsNorm(x, this.weight, this.eps);
  }

  /** Returns x + delta and its norm. */
  forwardAdded(x: Tensor, delta: Tensor): [Tensor, Tensor] {
    return this.kernels.addRmsNorm(x, delta, this.weight, this.eps);
  }
}

/** Layer norm (arXiv 1607.06450). */
export class LayerNorm extends Module {
  weight: Tensor;
  bias: Tensor;
  readonly eps: number;

  constructor(weight: Tensor, bias: Tensor, eps: number) {
    super();
    this.weight = weight;
    this.bias = bias;
    this.eps = eps;
  }

  /** [..., C] → [..., C] */
  forward(x: Tensor): Tensor {
    return ops.layerNorm(x, [this.weight.size(0)], this.weight, this.bias, this.eps);
  }
}
