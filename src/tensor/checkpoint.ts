import { currentEngine } from '../engine/index.ts';
import { gradEnabled, withGrad } from './grad.ts';
import { scope } from './scope.ts';
import { Tensor } from './tensor.ts';

/**
 * `forward(...inputs)`, of which only the inputs are kept for the backward pass: that computes the rest again, with the same
 * random numbers (Chen et al., arXiv 1604.06174). Parameters get their gradients as usual. Every other tensor that `forward`
 * reads must be an input: those that it closes over may be freed by then, and what they were made from would get no gradient.
 */
export function checkpoint(
  forward: (...inputs: readonly Tensor[]) => readonly Tensor[],
  inputs: readonly Tensor[],
): readonly Tensor[] {
  if (!gradEnabled()) return forward(...inputs);
  const { native } = currentEngine();
  const random = native.randomState();
  using s = scope();
  // Recorded this time too, though none of it is kept: whether anything below the outputs is trained shows only so.
  const made = forward(...inputs);
  const traced = made.map(({ requiresGrad }) => requiresGrad);
  if (!traced.includes(true)) return s.keep(made);

  const idsOf = (tensors: readonly Tensor[]) => tensors.map(({ id }) => id);
  const replay = (given: number[], gradients: (number | null)[]): void => {
    using _ = scope();
    const leaves = given.map((id) => new Tensor(id));
    const seeds = gradients.map((id) => (id === null ? undefined : new Tensor(id)));
    const now = native.randomState(random);
    try {
      const again = withGrad(true, () => forward(...leaves)).filter((_, i) => traced[i]);
      const roots = again.filter((_, i) => seeds[i]);
      native.backward(idsOf(roots), idsOf(seeds.filter((seed) => seed !== undefined)));
    } finally {
      native.randomState(now);
    }
  };
  const kept = made.filter((_, i) => traced[i]);
  const outputs = native.checkpoint(idsOf(inputs), idsOf(kept), replay).map((id) => new Tensor(id));
  return s.keep(made.map((tensor, i) => (traced[i] ? outputs.shift()! : tensor)));
}
