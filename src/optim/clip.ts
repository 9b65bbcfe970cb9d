import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';

const gradientsOf = (parameters: Iterable<Tensor>): Tensor[] =>
  [...parameters].map((parameter) => parameter.grad).filter((grad) => grad !== undefined);

/** Returns the 2-norm of the gradients of these parameters together, as a scalar where they are; undefined where none has one. */
export function normOfGradients(parameters: Iterable<Tensor>): Tensor | undefined {
  return noGrad(() => {
    using s = scope();
    const grads = gradientsOf(parameters);
    return grads.length > 0 ? s.keep(ops.vectorNorm(ops.stack(ops.foreachNorm(grads, 2)), 2)) : undefined;
  });
}

/** Returns the 2-norm of the gradients of these parameters together; undefined where none has one. */
export function gradientNorm(parameters: Iterable<Tensor>): number | undefined {
  using _ = scope();
  return normOfGradients(parameters)?.item();
}

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
  const all = [...parameters];
  const norm = ofAll(gradientNorm(all) ?? 0);
  scaleGradients(all, norm, maxNorm);
  return norm;
}

/** As `clipGradients`, with the norm of all gradients known. */
export function scaleGradients(parameters: Iterable<Tensor>, norm: number, maxNorm: number | undefined): void {
  if (maxNorm === undefined || !Number.isFinite(norm)) return;
  const scale = maxNorm / (norm + 1e-6);
  noGrad(() => {
    using _ = scope();
    const grads = gradientsOf(parameters);
    if (scale < 1 && grads.length > 0) ops.foreachMulScalar_(grads, scale);
  });
}
