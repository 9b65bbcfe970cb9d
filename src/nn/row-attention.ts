import { ops, type Tensor } from '../tensor/index.ts';
import { maskOf, outOfPages } from './composite.ts';
import type { Kernels } from './kernels.ts';

/**
 * Attention by LibTorch's fused operator, row by row, for devices without ours: on a GPU flash attention in bfloat16 and
 * memory-efficient attention in float32, so that the scores of a row are never in memory.
 */
export const rowAttention: Kernels['attention'] = (q, pagedK, pagedV, batch, scale, causal, window) => {
  const { qStarts, kStarts, kEnds, pages } = batch;
  const [k, v] = outOfPages(pagedK, pagedV, pages);
  const group = q.size(1) / k.size(1);
  const rows = kStarts.map((kStart, r) => {
    const [qStart, queries, keys] = [qStarts[r]!, qStarts[r + 1]! - qStarts[r]!, kEnds[r]! - kStart];
    const heads = (t: Tensor, from: number, n: number) =>
      ops.unsqueeze(ops.transpose(ops.narrow(t, 0, from, n), 0, 1), 0);
    const repeat = (t: Tensor) => (group === 1 ? t : ops.repeatInterleave(t, group, 1));
    const windowed = window > 0 && window < keys;
    // The operator aligns its own causal mask to the first query, which is right where a row has as many queries as keys.
    const isCausal = causal && !windowed && queries === keys && queries > 1;
    const seesAll = !windowed && (!causal || queries === 1);
    const hidden = isCausal || seesAll ? undefined : maskOf(queries, keys, causal, window);
    const out = ops.scaledDotProductAttention(
      heads(q, qStart, queries),
      repeat(heads(k, kStart, keys)),
      repeat(heads(v, kStart, keys)),
      hidden ? ops.eqScalar(hidden, 0) : null,
      0,
      isCausal,
      { scale },
    );
    return ops.transpose(ops.select(out, 0, 0), 0, 1);
  });
  return ops.cat(rows, 0);
};
