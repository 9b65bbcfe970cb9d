/**
 * One bottleneck at one place of a block: h + s·W_up f(W_down h), with norms, gate and residuals where the config has
 * them. Reference: AdapterHub, methods/modeling.py Adapter and ParallelAdapter. Letters: N packed tokens, C width.
 */
import { activationOf, type SublayerOutput } from '../../nn/index.ts';
import { gradEnabled, ops, Tensor } from '../../tensor/index.ts';
import type { ParameterInit } from '../shared/index.ts';
import { type Projection, phmProjection, type SharedPhm } from './compacter.ts';
import type { CompleteBottleneck } from './named-configs.ts';

export const activation = (name: string) => (name === 'leakyrelu' ? leakyRelu : activationOf(name, 'non_linearity'));

const leakyRelu = (x: Tensor) => ops.sub(ops.relu(x), ops.mulScalar(ops.relu(ops.neg(x)), 0.01));

type DrawWeight = (draws: ParameterInit, shape: readonly [number, number]) => Tensor;

const initial: Readonly<Record<CompleteBottleneck['init_weights'], { down: DrawWeight; up: DrawWeight }>> = {
  bert: { down: (d, s) => d.normal(s, 0.02), up: (d, s) => d.normal(s, 0.02) },
  mam_adapter: { down: (d, s) => d.uniform(s, s[1] ** -0.5), up: (d, s) => d.full(s, 0) },
  houlsby: { down: (d, s) => d.truncatedNormal(s, 0.01), up: (d, s) => d.truncatedNormal(s, 0.01) },
};

function linear(draws: ParameterInit, from: number, to: number, draw: DrawWeight): Projection {
  const [weight, bias] = [draw(draws, [to, from]), draws.full([to], 0)];
  const parameters = new Map([
    ['weight', weight],
    ['bias', bias],
  ]);
  return { parameters, forward: (x) => ops.linear(x, weight, bias) };
}

function norm(draws: ParameterInit, width: number): Projection {
  const [weight, bias] = [draws.full([width], 1), draws.full([width], 0)];
  const parameters = new Map([
    ['weight', weight],
    ['bias', bias],
  ]);
  return { parameters, forward: (x) => ops.layerNorm(x, [width], weight, bias, 1e-5) };
}

/** What a bottleneck reads, what its output is added to, and what a fusion asks with: [N, C] each. */
export interface Reading {
  readonly x: Tensor;
  readonly around: Tensor;
  readonly query: Tensor;
}

export class Bottleneck {
  /** By AdapterHub's names: `adapter_down.0.weight`, `adapter_up.bias`, … */
  readonly parameters = new Map<string, Tensor>();
  readonly #c: CompleteBottleneck;
  readonly #act: (x: Tensor) => Tensor;
  readonly #down: Projection;
  readonly #up: Projection;
  readonly #before: Projection | undefined;
  readonly #after: Projection | undefined;
  readonly #gate: Projection | undefined;
  readonly #scaling: Tensor | undefined;

  constructor(
    c: CompleteBottleneck,
    draws: ParameterInit,
    width: number,
    inner: number,
    shared: SharedPhm | undefined,
  ) {
    this.#c = c;
    this.#act = activation(c.non_linearity);
    const add = (name: string, part: Projection) => {
      for (const [key, tensor] of part.parameters) this.parameters.set(`${name}.${key}`, tensor);
      return part;
    };
    if (c.ln_before) this.#before = add('adapter_norm_before', norm(draws, width));
    const { down, up } = initial[c.init_weights];
    const project = (from: number, to: number, direction: 'down' | 'up', draw: DrawWeight) =>
      shared ? phmProjection(c, draws, shared, from, to, direction) : linear(draws, from, to, draw);
    this.#down = add(c.ln_before ? 'adapter_down.1' : 'adapter_down.0', project(width, inner, 'down', down));
    this.#up = add('adapter_up', project(inner, width, 'up', up));
    if (c.ln_after) this.#after = add('adapter_norm_after', norm(draws, width));
    if (c.use_gating)
      this.#gate = add(
        'gate',
        linear(draws, width, 1, (d, s) => d.normal(s, 0.02)),
      );
    if (typeof c.scaling === 'string') {
      this.#scaling = draws.full([c.scaling === 'learned' ? 1 : width], 1);
      this.parameters.set('scaling', this.#scaling);
    }
  }

  /** What goes in, given what a half of a block gives. */
  read({ delta, residual, norm }: SublayerOutput): Reading {
    const c = this.#c;
    if (c.is_parallel) return { x: residual, around: residual, query: residual };
    const sum = c.original_ln_before ? ops.add(delta, residual) : delta;
    const x = c.original_ln_before && norm ? norm(sum) : sum;
    const around = { true: delta, post_add: sum, false: x }[`${c.residual_before_ln}`];
    return { x, around, query: x };
  }

  /** The scaled output of the upper projection: [N, C] → [N, C]. */
  up(x: Tensor, rowStarts: readonly number[]): Tensor {
    const c = this.#c;
    const h = this.#before ? this.#before.forward(x) : x;
    let y = this.#up.forward(this.#act(this.#down.forward(h)));
    if (c.stochastic_depth > 0 && gradEnabled()) y = ops.mul(y, rowsKept(rowStarts, c.stochastic_depth));
    if (this.#scaling) return ops.mul(y, this.#scaling);
    return c.scaling === 1 ? y : ops.mulScalar(y, c.scaling as number);
  }

  /** The bottleneck with its residual, for what `read` gave: [N, C]. */
  forward({ x, around }: Reading, rowStarts: readonly number[]): Tensor {
    const c = this.#c;
    let y = this.up(x, rowStarts);
    if (c.dropout > 0 && gradEnabled()) y = ops.dropout(y, c.dropout, true);
    if (this.#gate) y = ops.mul(y, overRows(ops.sigmoid(this.#gate.forward(x)), rowStarts));
    const first = !c.is_parallel && c.adapter_residual_before_ln;
    if (first) y = ops.add(y, around);
    if (this.#after) y = this.#after.forward(y);
    return c.is_parallel || first ? y : ops.add(y, around);
  }

  /** What the half is to add to the stream, given what `forward` (or a fusion) gave. */
  leave(y: Tensor, { delta, residual }: SublayerOutput): Tensor {
    const c = this.#c;
    const out = c.is_parallel ? ops.add(y, delta) : y;
    return c.original_ln_after ? out : ops.sub(out, residual);
  }
}

/** [N, 1] → [N, 1]: each row's mean in all its places. */
function overRows(x: Tensor, rowStarts: readonly number[]): Tensor {
  const rows = rowStarts.slice(1).map((end, r) => {
    const length = end - rowStarts[r]!;
    return ops.expand(ops.meanDim(ops.narrow(x, 0, rowStarts[r]!, length), [0], true), [length, 1]);
  });
  return rows.length === 1 ? rows[0]! : ops.cat(rows);
}

/** [N, 1]: 0 for a share p of the rows, 1/(1 − p) for the others. */
function rowsKept(rowStarts: readonly number[], p: number): Tensor {
  const kept = ops.bernoulli_(ops.zeros([rowStarts.length - 1]), 1 - p).data() as Float32Array;
  const mask = new Float32Array(rowStarts.at(-1)!);
  rowStarts.slice(1).forEach((end, r) => {
    mask.fill(kept[r]! / (1 - p), rowStarts[r]!, end);
  });
  return Tensor.from(mask, [mask.length, 1]);
}
