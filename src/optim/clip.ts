import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

/**
 * Scales all gradients in place so that their global 2-norm is at most `maxNorm`, as torch.nn.utils.clip_grad_norm_ does.
 * @param maxNorm undefined: only measure
 * @param ofAll returns the norm of all gradients, where these are a part of them. Default: these are all
 * @returns the norm before clipping; 0 where no parameter has a gradient
 */
export function clipGradients(
  parameters: Iterable<Tensor>,
  maxNorm: number | undefined,
  ofAll: (norm: number) => number = (norm) => norm,
): number {
  return noGrad(() => {
    using _ = scope();
    const grads = [...parameters].map((p) => p.grad).filter((g) => g !== undefined);
    const norm = ofAll(grads.length === 0 ? 0 : ops.vectorNorm(ops.stack(ops.foreachNorm(grads, 2)), 2).item());
    if (grads.length > 0 && maxNorm !== undefined && Number.isFinite(norm)) {
      const scale = maxNorm / (norm + 1e-6);
      if (scale < 1) ops.foreachMulScalar_(grads, scale);
    }
    return norm;
  });
}
