import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

/**
 * Scales all gradients in place so that their global 2-norm is at most `maxNorm`, as torch.nn.utils.clip_grad_norm_ does.
 * @param maxNorm undefined: only measure
 * @returns the norm before clipping; 0 where no parameter has a gradient
 */
export function clipGradients(parameters: Iterable<Tensor>, maxNorm: number | undefined): number {
  return noGrad(() => {
    using _ = scope();
    const grads = [...parameters].map((p) => p.grad).filter((g) => g !== undefined);
    if (grads.length === 0) return 0;
    const norm = ops.vectorNorm(ops.stack(ops.foreachNorm(grads, 2)), 2).item();
    if (maxNorm !== undefined && Number.isFinite(norm)) {
      const scale = maxNorm / (norm + 1e-6);
      if (scale < 1) ops.foreachMulScalar_(grads, scale);
    }
    return norm;
  });
}
