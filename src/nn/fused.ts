import { ops } from '../tensor/index.ts';
import type { Kernels } from './kernels.ts';

/** native/ops/: float32 on the CPU. */
export const fused: Kernels = {
  rmsNorm: ops.rmsNorm,
  addRmsNorm: ops.addRmsNorm,
  rope: ops.rope,
  glu: ops.glu,
  attention: (q, k, v, { qStarts, kStarts, kEnds }, scale, causal, window) =>
    ops.attention(q, k, v, qStarts, kStarts, kEnds, scale, causal, window),
  linear: (x, weight, format, bias) =>
    // A dense weight that is trained needs ATen's own gradient; a frozen one none at all.
    format < 0 && weight.requiresGrad ? ops.linear(x, weight, bias) : ops.blockLinear(x, weight, format, bias),
  loraLinear: ops.loraLinear,
  loraGatedLinear: ops.loraGatedLinear,
  linearCrossEntropy: ops.linearCrossEntropy,
};
