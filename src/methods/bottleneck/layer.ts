/**
 * One bottleneck at one place of a block: h + s·W_up f(W_down h), with norms, gate and residuals where the config has them.
 * Reference: AdapterHub, methods/modeling.py Adapter and ParallelAdapter. Letters: N packed tokens, C width.
 */
import { activationOf, type RunActivation, type SublayerOutput } from '../../nn/index.ts';
import { dropout, gradEnabled, ops, type Tensor } from '../../tensor/index.ts';
import type { ParameterInit, PlainBottleneck } from '../shared/index.ts';
import { type Projection, phmProjection, type SharedPhm } from './compacter.ts';
import type { Activation, CompleteBottleneck } from './named-configs.ts';

export const activation = (name: string) => (name === 'leakyrelu' ? leakyRelu : activationOf(name, 'non_linearity'));

const leakyRelu = (x: Tensor) => ops.sub(ops.relu(x), ops.mulScalar(ops.relu(ops.neg(x)), 0.01));

/** The activations that have a kernel for runs of rows. */
const runActivations: Partial<Record<Activation, RunActivation>> = {
  relu: 'relu',
  silu: 'silu',
  swish: 'silu',
  gelu: 'gelu',
  gelu_new: 'gelu_tanh',
  gelu_fast: 'gelu_tanh',
  gelu_pytorch_tanh: 'gelu_tanh',
  tanh: 'tanh',
  sigmoid: 'sigmoid',
};

type InitWeight = (init: ParameterInit, shape: readonly [out: number, in_: number]) => Tensor;

/** Initial values of the two projections, by `init_weights`. */
const initWeights: Readonly<Record<CompleteBottleneck['init_weights'], { down: InitWeight; up: InitWeight }>> = {
  bert: { down: (init, shape) => init.normal(shape, 0.02), up: (init, shape) => init.normal(shape, 0.02) },
  mam_adapter: {
    down: (init, shape) => init.uniform(shape, shape[1] ** -0.5),
    up: (init, shape) => init.full(shape, 0),
  },
  houlsby: {
    down: (init, shape) => init.truncatedNormal(shape, 0.01),
    up: (init, shape) => init.truncatedNormal(shape, 0.01),
  },
};

const withBias = (weight: Tensor, bias: Tensor, forward: Projection['forward']): Projection => ({
  parameters: new Map([
    ['weight', weight],
    ['bias', bias],
  ]),
  forward,
});

function linear(init: ParameterInit, inWidth: number, outWidth: number, initWeight: InitWeight): Projection {
  const [weight, bias] = [initWeight(init, [outWidth, inWidth]), init.full([outWidth], 0)];
  return withBias(weight, bias, (x) => ops.linear(x, weight, bias));
}

function layerNorm(init: ParameterInit, width: number): Projection {
  const [weight, bias] = [init.full([width], 1), init.full([width], 0)];
  return withBias(weight, bias, (x) => ops.layerNorm(x, [width], weight, bias, 1e-5));
}

/** The tensors that a bottleneck works on: [N, C] each. */
export interface BottleneckInput {
  /** The input of the lower projection. */
  readonly x: Tensor;
  /** What the bottleneck's output is added to. */
  readonly residual: Tensor;
  /** The query of a fusion. */
  readonly query: Tensor;
}

export class Bottleneck {
  /** By AdapterHub's names: `adapter_down.0.weight`, `adapter_up.bias`, … */
  readonly parameters = new Map<string, Tensor>();
  readonly #c: CompleteBottleneck;
  readonly #activation: (x: Tensor) => Tensor;
  readonly #down: Projection;
  readonly #up: Projection;
  readonly #normBefore: Projection | undefined;
  readonly #normAfter: Projection | undefined;
  readonly #gate: Projection | undefined;
  readonly #scaling: Tensor | undefined;

  constructor(
    c: CompleteBottleneck,
    init: ParameterInit,
    width: number,
    innerWidth: number,
    shared: SharedPhm | undefined,
  ) {
    this.#c = c;
    this.#activation = activation(c.non_linearity);
    const add = (name: string, layer: Projection) => {
      for (const [key, tensor] of layer.parameters) this.parameters.set(`${name}.${key}`, tensor);
      return layer;
    };
    if (c.ln_before) this.#normBefore = add('adapter_norm_before', layerNorm(init, width));
    const { down, up } = initWeights[c.init_weights];
    const projection = (inWidth: number, outWidth: number, direction: 'down' | 'up', initWeight: InitWeight) =>
      shared
        ? phmProjection(c, init, shared, inWidth, outWidth, direction)
        : linear(init, inWidth, outWidth, initWeight);
    this.#down = add(c.ln_before ? 'adapter_down.1' : 'adapter_down.0', projection(width, innerWidth, 'down', down));
    this.#up = add('adapter_up', projection(innerWidth, width, 'up', up));
    if (c.ln_after) this.#normAfter = add('adapter_norm_after', layerNorm(init, width));
    if (c.use_gating) this.#gate = add('gate', linear(init, width, 1, initWeights.bert.up));
    if (typeof c.scaling === 'string') {
      this.#scaling = init.full([c.scaling === 'learned' ? 1 : width], 1);
      this.parameters.set('scaling', this.#scaling);
    }
  }

  /** Returns the bottleneck's input for what attention or MLP computed. */
  inputOf({ delta, residual, norm }: SublayerOutput): BottleneckInput {
    const c = this.#c;
    if (c.is_parallel) return { x: residual, residual, query: residual };
    const sum = c.original_ln_before ? ops.add(delta, residual) : delta;
    const x = c.original_ln_before && norm ? norm(sum) : sum;
    const added = { true: delta, post_add: sum, false: x }[`${c.residual_before_ln}`];
    return { x, residual: added, query: x };
  }

  /** What it computes as numbers, where it is two linear layers whose output is added to the sublayer's. */
  plain(hasNormAfter: boolean): PlainBottleneck | undefined {
    const c = this.#c;
    const f = runActivations[c.non_linearity];
    const addsToDelta = c.original_ln_after && (c.is_parallel || c.residual_before_ln === true);
    if (!addsToDelta || !f || c.phm_layer || c.scaling === 'channel') return undefined;
    if (this.#normBefore || this.#normAfter || this.#gate) return undefined;
    const pair = (name: string) => [`${name}.weight`, `${name}.bias`].map((key) => this.parameters.get(key)!);
    return {
      input: c.is_parallel ? 'residual' : !c.original_ln_before ? 'delta' : hasNormAfter ? 'norm' : 'sum',
      down: pair('adapter_down.0') as [Tensor, Tensor],
      up: pair('adapter_up') as [Tensor, Tensor],
      f,
      scaling: this.#scaling ? this.#scaling.item() : (c.scaling as number),
    };
  }

  /** The scaled output of the upper projection, without residual: [N, C] → [N, C]. */
  up(x: Tensor, rowStarts: readonly number[]): Tensor {
    const c = this.#c;
    const h = this.#normBefore ? this.#normBefore.forward(x) : x;
    let y = this.#up.forward(this.#activation(this.#down.forward(h)));
    if (c.stochastic_depth > 0 && gradEnabled()) y = ops.mul(y, rowMask(rowStarts, c.stochastic_depth));
    if (this.#scaling) return ops.mul(y, this.#scaling);
    return c.scaling === 1 ? y : ops.mulScalar(y, c.scaling as number);
  }

  /** The bottleneck with its residual, for what `inputOf` returned: [N, C]. */
  forward({ x, residual }: BottleneckInput, rowStarts: readonly number[]): Tensor {
    const c = this.#c;
    let y = this.up(x, rowStarts);
    if (c.dropout > 0 && gradEnabled()) y = dropout(y, c.dropout);
    if (this.#gate) y = ops.mul(y, rowMeans(ops.sigmoid(this.#gate.forward(x)), rowStarts));
    const addFirst = !c.is_parallel && c.adapter_residual_before_ln;
    if (addFirst) y = ops.add(y, residual);
    if (this.#normAfter) y = this.#normAfter.forward(y);
    return c.is_parallel || addFirst ? y : ops.add(y, residual);
  }

  /** Returns what the sublayer adds to the residual stream, for the output of `forward` or of a fusion: [N, C]. */
  deltaOf(y: Tensor, { delta, residual }: SublayerOutput): Tensor {
    const c = this.#c;
    const output = c.is_parallel ? ops.add(y, delta) : y;
    return c.original_ln_after ? output : ops.sub(output, residual);
  }
}

/** Returns the mean of each row's tokens at all of its tokens: [N, 1] → [N, 1]. */
function rowMeans(x: Tensor, rowStarts: readonly number[]): Tensor {
  const rows = rowStarts.slice(1).map((end, row) => {
    const length = end - rowStarts[row]!;
    return ops.expand(ops.meanDim(ops.narrow(x, 0, rowStarts[row]!, length), [0], true), [length, 1]);
  });
  return rows.length === 1 ? rows[0]! : ops.cat(rows);
}

/** Returns stochastic depth's mask of rows [N, 1]: 0 with probability `p`, else 1/(1 − p). */
function rowMask(rowStarts: readonly number[], p: number): Tensor {
  const kept = ops.divScalar_(ops.bernoulli_(ops.zeros([rowStarts.length - 1, 1]), 1 - p), 1 - p);
  return ops.cat(
    rowStarts.slice(1).map((end, row) => ops.expand(ops.narrow(kept, 0, row, 1), [end - rowStarts[row]!, 1])),
  );
}
