import { ops } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';

/** The kernels as fused operators of native/ops/: float32 on the CPU. */
export const fused: Kernels = {
  rmsNorm: ops.rmsNorm,
  addRmsNorm: ops.addRmsNorm,
  rope: ops.rope,
  glu: ops.glu,
  attention: (q, k, v, { qStarts, kStarts, kEnds }, scale, causal, window) =>
    ops.attention(q, k, v, qStarts, kStarts, kEnds, scale, causal, window),
  linear: ops.blockLinear,
  loraLinear: ops.loraLinear,
  loraGatedLinear: ops.loraGatedLinear,
  linearCrossEntropy: ops.linearCrossEntropy,
  fakeQuantizeBlocks: ops.fakeQuantizeBlocks,
  fakeQuantizeIntegers: ops.fakeQuantizeIntegers,
  fakeQuantizeLearned: ops.fakeQuantizeLearned,
};
