import { dequantized, roundedToBlocks } from '../quant/index.ts';
import { inType, noGrad, ops, type Tensor, widened } from '../tensor/index.ts';
import { fakeQuantize } from './fake-quantize.ts';
import type { AttentionRows, Kernels, RunActivation } from './kernels.ts';
import { crossEntropyOfLogits } from './losses.ts';

/** Returns the dense form of a weight, in the element type of `like`. */
function dense(weight: Tensor, format: number, like: Tensor): Tensor {
  if (format < 0) return weight;
  return inType(dequantized(weight, format), like.dtype);
}

const runActivations: Readonly<Record<RunActivation, (x: Tensor) => Tensor>> = {
  relu: ops.relu,
  silu: ops.silu,
  gelu: (x) => ops.gelu(x),
  gelu_tanh: (x) => ops.gelu(x, { approximate: 'tanh' }),
  tanh: ops.tanh,
  sigmoid: ops.sigmoid,
};

/** The kernels as plain ATen operators: differentiated by autograd, in any dtype, on any device. */
export const composite: Kernels = {
  rmsNorm(x, weight, eps) {
    const wide = widened(x);
    const meanSquare = ops.meanDim(ops.mul(wide, wide), [-1], true);
    const normed = ops.mul(ops.mul(wide, ops.rsqrt(ops.addScalar(meanSquare, eps))), weight);
    return wide === x ? normed : ops.toCopy(normed, { dtype: x.dtype });
  },

  addRmsNorm(x, delta, weight, eps) {
    const sum = ops.add(x, delta);
    return [sum, composite.rmsNorm(sum, weight, eps)];
  },

  rope(x, cos, sin) {
    const half = cos.size(1);
    const a = ops.narrow(x, 2, 0, half);
    const b = ops.narrow(x, 2, half, half);
    const [c, s] = [ops.unsqueeze(cos, 1), ops.unsqueeze(sin, 1)];
    const rotated = [ops.sub(ops.mul(a, c), ops.mul(b, s)), ops.add(ops.mul(b, c), ops.mul(a, s))];
    const rest = x.size(2) - 2 * half;
    return ops.cat(rest > 0 ? [...rotated, ops.narrow(x, 2, 2 * half, rest)] : rotated, 2);
  },

  glu(gate, up, act) {
    return ops.mul(act === 'silu' ? ops.silu(gate) : ops.gelu(gate, { approximate: 'tanh' }), up);
  },

  attention(q, pagedK, pagedV, { qStarts, kStarts, kEnds, pages }, scale, causal, window) {
    const [k, v] = outOfPages(pagedK, pagedV, pages);
    const group = q.size(1) / k.size(1);
    const rows = kStarts.map((kStart, r) => {
      const [qStart, queries, keys] = [qStarts[r]!, qStarts[r + 1]! - qStarts[r]!, kEnds[r]! - kStart];
      const heads = (t: Tensor, from: number, n: number) => ops.transpose(ops.narrow(t, 0, from, n), 0, 1);
      const repeat = (t: Tensor) => (group === 1 ? t : ops.repeatInterleave(t, group, 0));
      const scores = ops.mulScalar(
        ops.matmul(heads(q, qStart, queries), ops.transpose(repeat(heads(k, kStart, keys)), 1, 2)),
        scale,
      );
      const mask = maskOf(queries, keys, causal, window);
      const probabilities = ops.softmax(mask ? ops.maskedFill(scores, mask, -Infinity) : scores, -1);
      return ops.transpose(ops.matmul(probabilities, repeat(heads(v, kStart, keys))), 0, 1);
    });
    return ops.cat(rows, 0);
  },

  pooledAttention: (...args) => pooledBy(composite.attention, composite.rope)(...args),

  linears: (x, weights) => weights.map(({ weight, format, bias }) => composite.linear(x, weight, format, bias ?? null)),

  linear(x, weight, format, bias) {
    return ops.linear(x, dense(weight, format, x), bias);
  },

  loraLinear(x, dropped, weight, format, bias, a, b, scaling) {
    const delta = ops.matmul(ops.matmul(dropped ?? x, ops.t(a)), ops.t(b));
    return ops.add(composite.linear(x, weight, format, bias), delta, { alpha: scaling });
  },

  loraGatedLinear(gate, up, act, weight, format, bias, a, b, scaling) {
    return composite.loraLinear(composite.glu(gate, up, act), null, weight, format, bias, a, b, scaling);
  },

  loraWeight: (weight, a, b, scaling) => ops.add(weight, ops.matmul(b, a), { alpha: scaling }),

  addLowRankRuns(y, x, runs) {
    for (const { start, end, a, b, scaling } of runs) {
      const [factorA, factorB] = [inType(a, y.dtype), inType(b, y.dtype)];
      const h = ops.mm(ops.narrow(x, 0, start, end - start), ops.t(factorA));
      ops.add_(ops.narrow(y, 0, start, end - start), ops.mm(h, factorB), { alpha: scaling });
    }
  },

  addBottleneckRuns(y, x, f, runs) {
    for (const { start, end, a, aBias, b, bBias, scaling } of runs) {
      const [weightA, weightB] = [inType(a, y.dtype), inType(b, y.dtype)];
      const h = runActivations[f](ops.linear(ops.narrow(x, 0, start, end - start), weightA, aBias));
      ops.add_(ops.narrow(y, 0, start, end - start), ops.linear(h, ops.t(weightB), bBias), { alpha: scaling });
    }
  },

  scaleRuns(y, runs) {
    for (const { start, end, gain } of runs) ops.mul_(ops.narrow(y, 0, start, end - start), gain);
  },

  roundedLinear(x, weight, update, bias, { quantization, learned }) {
    const sum = update ? composite.loraWeight(weight, update.a, update.b, update.scaling) : weight;
    return ops.linear(x, fakeQuantize(composite, sum, quantization, learned), bias);
  },

  roundedGatedLinear(gate, up, act, weight, update, bias, rounding) {
    return composite.roundedLinear(composite.glu(gate, up, act), weight, update, bias, rounding);
  },

  linearCrossEntropy(h, weight, format, targets) {
    return crossEntropyOfLogits((rows) => composite.linear(rows, weight, format, null), h, targets);
  },

  fakeQuantizeBlocks: roundedToBlocks,

  fakeQuantizeIntegers(x, bits, group, symmetric) {
    const [low, high] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
    const groups = ops.reshape(narrowed(x), [-1, group || x.size(-1)]);
    // In the dtype of x, as torchao computes them; what follows is float32.
    const [scale, zeroPoint] = noGrad(() => {
      const least = ops.clamp(ops.amin(groups, [1], true), null, 0);
      const greatest = ops.clamp(ops.amax(groups, [1], true), 0, null);
      const range = symmetric
        ? ops.divScalar(ops.maximum(ops.neg(least), greatest), (high - low) / 2)
        : ops.divScalar(ops.sub(greatest, least), high - low);
      const scale = ops.clamp(range, smallestNormal, null);
      const offset = ops.addScalar(ops.neg(ops.round(ops.div(least, scale))), low);
      return [scale, symmetric ? null : ops.clamp(offset, low, high)].map((t) => t && float32(t));
    });
    return ops.toCopy(ops.reshape(roundToCodes(groups, scale!, zeroPoint!, low, high), x.shape), { dtype: x.dtype });
  },

  fakeQuantizeLearned(weight, scale, bits) {
    const [low, high] = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1];
    const groups = ops.reshape(narrowed(weight), [-1, weight.size(1) / scale.size(1)]);
    const values = roundToCodes(groups, ops.reshape(narrowed(scale), [-1, 1]), null, low, high);
    return ops.toCopy(ops.reshape(values, weight.shape), { dtype: weight.dtype });
  },
};

/** Returns keys and values [M, K, D] in the order of the slots that rows name. */
export function outOfPages(k: Tensor, v: Tensor, pages: AttentionRows['pages']): readonly [Tensor, Tensor] {
  if (!pages) return [k, v];
  const inPages = ops.add(ops.mulScalar(ops.unsqueeze(pages.table, 1), pages.size), ops.arange(0, pages.size));
  const slots = ops.view(inPages, [-1]);
  return [ops.indexSelect(k, 0, slots), ops.indexSelect(v, 0, slots)];
}

/** Returns `pooledAttention` by an `attention` and a `rope`, computed in the element type of the pool. */
export const pooledBy =
  (attention: Kernels['attention'], rope: Kernels['rope']): Kernels['pooledAttention'] =>
  (q, k, v, rotation, { k: poolK, v: poolV, slots, rows }, scale, causal, window) => {
    const [headDim, { dtype }] = [poolK.size(2), poolK];
    const split = (t: Tensor) => ops.view(t, [t.size(0), t.size(1) / headDim, headDim]);
    const rotated = (t: Tensor) => inType(rotation ? rope(split(t), ...rotation) : split(t), dtype);
    ops.indexCopy_(poolK, 0, slots, rotated(k));
    ops.indexCopy_(poolV, 0, slots, inType(split(v), dtype));
    const out = attention(rotated(q), poolK, poolV, rows, scale, causal, window);
    return inType(ops.view(out, q.shape), q.dtype);
  };

/** The smallest normal number of float32 and of bfloat16: no scale is less. */
const smallestNormal = 2 ** -126;
const float32 = (x: Tensor) => inType(x, 'float32');
/** Rounding is defined on float32 and bfloat16: float64, in which an oracle computes, is narrowed to float32. */
const narrowed = (x: Tensor) => (x.dtype === 'float64' ? float32(x) : x);

/** Returns (code − zero point) · scale of x [groups, n] for scales [groups, 1]; rounding passes the gradient on, the range does not. */
function roundToCodes(x: Tensor, scale: Tensor, zeroPoint: Tensor | null, low: number, high: number): Tensor {
  const scaled = ops.mul(float32(x), ops.reciprocal(scale));
  const round = ops.add(scaled, ops.detach(ops.sub(ops.round(scaled), scaled)));
  const code = ops.clamp(zeroPoint ? ops.add(round, zeroPoint) : ops.addScalar(round, 0), low, high);
  return ops.mul(zeroPoint ? ops.sub(code, zeroPoint) : code, scale);
}

/**
 * Returns the attention mask [queries, keys], true where a query must not attend to a key; undefined where nothing is
 * masked.
 */
export function maskOf(queries: number, keys: number, causal: boolean, window: number): Tensor | undefined {
  if (!causal && window <= 0) return undefined;
  const position = ops.unsqueeze(ops.arange(keys - queries, keys), 1);
  const distance = ops.sub(position, ops.unsqueeze(ops.arange(0, keys), 0));
  const ahead = ops.ltScalar(distance, causal ? 0 : -keys);
  return window > 0 ? ops.logicalOr(ahead, ops.geScalar(distance, window)) : ahead;
}
