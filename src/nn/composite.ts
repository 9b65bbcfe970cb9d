import { ops, type Tensor } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';

/** Returns the dense form of a weight, in the element type of `like`. */
function dense(weight: Tensor, format: number, like: Tensor): Tensor {
  if (format < 0) return weight;
  const unpacked = ops.dequantize(weight, format);
  return unpacked.dtype === like.dtype ? unpacked : ops.toCopy(unpacked, { dtype: like.dtype });
}

/** The kernels as plain ATen operators: differentiated by autograd, in any dtype, on any device. */
export const composite: Kernels = {
  rmsNorm(x, weight, eps) {
    const meanSquare = ops.meanDim(ops.mul(x, x), [-1], true);
    return ops.mul(ops.mul(x, ops.rsqrt(ops.addScalar(meanSquare, eps))), weight);
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

  attention(q, k, v, { qStarts, kStarts, kEnds }, scale, causal, window) {
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

  linearCrossEntropy(h, weight, format, targets) {
    const logProbabilities = ops.logSoftmax(composite.linear(h, weight, format, null), -1);
    const ignored = ops.ltScalar(targets, 0);
    const picked = ops.gather(logProbabilities, 1, ops.unsqueeze(ops.maskedFill(targets, ignored, 0), 1));
    return ops.neg(ops.sum(ops.maskedFill(picked, ops.unsqueeze(ignored, 1), 0)));
  },
};

/**
 * Returns the attention mask [queries, keys], true where a query must not attend to a key; undefined where nothing is
 * masked.
 */
function maskOf(queries: number, keys: number, causal: boolean, window: number): Tensor | undefined {
  if (!causal && window <= 0) return undefined;
  const position = ops.unsqueeze(ops.arange(keys - queries, keys), 1);
  const distance = ops.sub(position, ops.unsqueeze(ops.arange(0, keys), 0));
  const ahead = ops.ltScalar(distance, causal ? 0 : -keys);
  return window > 0 ? ops.logicalOr(ahead, ops.geScalar(distance, window)) : ahead;
}
