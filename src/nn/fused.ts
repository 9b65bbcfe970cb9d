import { formats, integerFormats, isIntegerFormat } from '../quant/index.ts';
import { ops } from '../tensor/index.ts';
import type { Kernels, LowRankUpdate, Rounding, RowRange } from './kernels.ts';

const updateArguments = (update: LowRankUpdate | null) =>
  [update?.a ?? null, update?.b ?? null, update?.scaling ?? 0] as const;

function roundingArguments({ quantization, learned }: Rounding) {
  const { format, groupSize = 0, symmetric = true } = quantization;
  const { nativeId } = formats[isIntegerFormat(format) ? integerFormats[format].packed : format];
  return [nativeId, groupSize, symmetric, learned ?? null] as const;
}

const bounds = (runs: readonly RowRange[]) => [runs.map(({ start }) => start), runs.map(({ end }) => end)] as const;

/** The kernels as fused operators of native/ops/: float32 on the CPU. */
export const fused: Kernels = {
  rmsNorm: ops.rmsNorm,
  addRmsNorm: ops.addRmsNorm,
  rope: ops.rope,
  glu: ops.glu,
  attention: (q, k, v, { qStarts, kStarts, kEnds, pages }, scale, causal, window) =>
    ops.attention(q, k, v, qStarts, kStarts, kEnds, scale, causal, window, pages?.table ?? null, pages?.size ?? 0),
  pooledAttention: (q, k, v, rotation, { k: poolK, v: poolV, slots, rows }, scale, causal, window) => {
    const { qStarts, kStarts, kEnds, pages } = rows;
    const [cos = null, sin = null] = rotation ?? [];
    const where = [poolK, poolV, slots, qStarts, kStarts, kEnds, pages.table, pages.size] as const;
    return ops.pooledAttention(q, k, v, cos, sin, ...where, scale, causal, window);
  },
  linears: (x, weights) =>
    ops.blockLinears(
      x,
      weights.map(({ weight }) => weight),
      weights.map(({ format }) => format),
      weights.flatMap(({ bias }) => bias ?? []),
    ),
  linear: ops.blockLinear,
  loraLinear: ops.loraLinear,
  loraGatedLinear: ops.loraGatedLinear,
  loraWeight: ops.loraWeight,
  addLowRankRuns(y, x, runs) {
    const [starts, ends] = bounds(runs);
    const [a, b] = [runs.map((run) => run.a), runs.map((run) => run.b)];
    ops.addLowRankRuns_(
      y,
      x,
      starts,
      ends,
      a,
      b,
      runs.map(({ scaling }) => scaling),
    );
  },
  addBottleneckRuns(y, x, f, runs) {
    const [starts, ends] = bounds(runs);
    const [a, aBias] = [runs.map((run) => run.a), runs.map((run) => run.aBias)];
    const [b, bBias] = [runs.map((run) => run.b), runs.map((run) => run.bBias)];
    const scalings = runs.map(({ scaling }) => scaling);
    ops.addBottleneckRuns_(y, x, f, starts, ends, a, aBias, b, bBias, scalings);
  },
  scaleRuns: (y, runs) =>
    ops.scaleRuns_(
      y,
      ...bounds(runs),
      runs.map(({ gain }) => gain),
    ),
  roundedLinear: (x, weight, update, bias, rounding) =>
    ops.roundedLinear(x, weight, ...updateArguments(update), bias, ...roundingArguments(rounding)),
  roundedGatedLinear: (gate, up, act, weight, update, bias, rounding) =>
    ops.roundedGatedLinear(gate, up, act, weight, ...updateArguments(update), bias, ...roundingArguments(rounding)),
  linearCrossEntropy: ops.linearCrossEntropy,
  fakeQuantizeBlocks: ops.fakeQuantizeBlocks,
  fakeQuantizeIntegers: ops.fakeQuantizeIntegers,
  fakeQuantizeLearned: ops.fakeQuantizeLearned,
};
