import { currentEngine } from '../engine/index.ts';
import { gradEnabled, withGrad } from './grad.ts';
import { scope } from './scope.ts';
import { Tensor } from './tensor.ts';

/** What a part of the forward pass runs in, each time: it may fetch before what the part needs, and free it after. */
export interface Gate {
  /** Runs the part forward. @returns its outputs */
  forward(run: () => readonly Tensor[]): readonly Tensor[];
  /** Runs the part again with the backward pass through it. */
  backward(run: () => void): void;
}

const open: Gate = { forward: (run) => run(), backward: (run) => run() };

/**
 * Returns `forward(...inputs)` and keeps only the inputs for the backward pass, which computes the rest again with the same
 * random numbers (gradient checkpointing: Chen et al., arXiv 1604.06174). Parameters get their gradients as usual. Every
 * other tensor that `forward` reads must be an input: a tensor in its closure may be freed by then, and its own history
 * would get no gradient.
 * @param gate each run of it goes through this
 */
export function checkpoint(
  forward: (...inputs: readonly Tensor[]) => readonly Tensor[],
  inputs: readonly Tensor[],
  gate: Gate = open,
): readonly Tensor[] {
  if (!gradEnabled()) return gate.forward(() => forward(...inputs));
  const { native } = currentEngine();
  const random = native.randomState();
  using s = scope();
  // The first run is recorded too, though its graph is dropped: only so it shows whether an output depends on a parameter.
  const firstOutputs = gate.forward(() => forward(...inputs));
  const needsGrad = firstOutputs.map(({ requiresGrad }) => requiresGrad);
  if (!needsGrad.includes(true)) return s.keep(firstOutputs);

  const idsOf = (tensors: readonly Tensor[]) => tensors.map(({ id }) => id);
  const replay = (inputIds: number[], gradientIds: (number | null)[]): void => {
    using _ = scope();
    const leaves = inputIds.map((id) => new Tensor(id));
    const seeds = gradientIds.map((id) => (id === null ? undefined : new Tensor(id)));
    const stateBefore = native.randomState(random);
    try {
      gate.backward(() => {
        const outputs = withGrad(true, () => forward(...leaves)).filter((_, i) => needsGrad[i]);
        const roots = outputs.filter((_, i) => seeds[i]);
        native.backward(idsOf(roots), idsOf(seeds.filter((seed) => seed !== undefined)));
      });
    } finally {
      native.randomState(stateBefore);
    }
  };
  const recorded = firstOutputs.filter((_, i) => needsGrad[i]);
  const outputs = native.checkpoint(idsOf(inputs), idsOf(recorded), replay).map((id) => new Tensor(id));
  return s.keep(firstOutputs.map((tensor, i) => (needsGrad[i] ? outputs.shift()! : tensor)));
}
