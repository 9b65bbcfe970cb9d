import { currentEngine } from '../engine/index.ts';
import { gradEnabled, withGrad } from './grad.ts';
import * as ops from './ops.gen.ts';
import { detachFromScopes, scope } from './scope.ts';
import { Tensor } from './tensor.ts';

/** What a part of the forward pass runs in, each time: it may fetch before what the part needs, and free it after. */
export interface Gate {
  /**
   * Runs the part forward.
   * @param isRecorded the backward pass reads what this run has read, in the same memory; else it runs the part again
   * @returns its outputs
   */
  forward(run: () => readonly Tensor[], isRecorded: boolean): readonly Tensor[];
  /** Runs the backward pass through the part. */
  backward(run: () => void): void;
}

const open: Gate = { forward: (run) => run(), backward: (run) => run() };

type Part = (...inputs: readonly Tensor[]) => readonly Tensor[];

const idsOf = (tensors: readonly Tensor[]) => tensors.map(({ id }) => id);

/**
 * Returns `forward(...inputs)` and keeps only the inputs for the backward pass, which computes the rest again with the same
 * random numbers (gradient checkpointing: Chen et al., arXiv 1604.06174). Parameters get their gradients as usual. Every
 * other tensor that `forward` reads must be an input: a tensor in its closure may be freed by then, and its own history
 * would get no gradient.
 * @param gate each run of it goes through this
 */
export function checkpoint(forward: Part, inputs: readonly Tensor[], gate: Gate = open): readonly Tensor[] {
  if (!gradEnabled()) return gate.forward(() => forward(...inputs), false);
  const { native } = currentEngine();
  const random = native.randomState();
  using s = scope();
  // The first run is recorded too, though its graph is dropped: only so it shows whether an output depends on a parameter.
  const outputs = gate.forward(() => forward(...inputs), false);
  return s.keep(
    withHistory(inputs, outputs, (leaves, seeds, needsGrad) => {
      const stateBefore = native.randomState(random);
      try {
        gate.backward(() => {
          const again = withGrad(true, () => forward(...leaves)).filter((_, i) => needsGrad[i]);
          backward(again, seeds);
        });
      } finally {
        native.randomState(stateBefore);
      }
    }),
  );
}

/** As `checkpoint`, but nothing is computed again: the backward pass goes through what the forward pass has recorded. */
export function gated(forward: Part, inputs: readonly Tensor[], gate: Gate): readonly Tensor[] {
  if (!gradEnabled()) return gate.forward(() => forward(...inputs), false);
  using s = scope();
  const ownLeaves = inputs.map((input) => {
    const leaf = ops.detach(input);
    if (input.requiresGrad) leaf.requiresGrad = true;
    return leaf;
  });
  const outputs = gate.forward(() => forward(...ownLeaves), true);
  const recorded = outputs.filter(({ requiresGrad }) => requiresGrad);
  const kept = [...ownLeaves.filter(({ requiresGrad }) => requiresGrad), ...recorded];
  const withGradients = withHistory(inputs, outputs, (leaves, seeds) => {
    gate.backward(() => backward(recorded, seeds));
    for (const [i, leaf] of leaves.entries()) if (leaf.requiresGrad) leaf.grad = ownLeaves[i]!.grad;
    for (const tensor of kept) tensor.dispose();
  });
  s.keep(withGradients);
  if (recorded.length > 0) for (const tensor of kept) detachFromScopes(tensor);
  return withGradients;
}

/** The backward pass from these outputs on, of which some have no gradient. */
function backward(outputs: readonly Tensor[], seeds: readonly (Tensor | undefined)[]): void {
  const roots = outputs.filter((_, i) => seeds[i]);
  currentEngine().native.backward(idsOf(roots), idsOf(seeds.filter((seed) => seed !== undefined)));
}

/**
 * Returns outputs of which those that need a gradient have a history of one step from the inputs.
 * @param replay sets the gradients of leaves, which stand for the inputs, from those of the outputs that need one
 */
function withHistory(
  inputs: readonly Tensor[],
  outputs: readonly Tensor[],
  replay: (leaves: readonly Tensor[], seeds: readonly (Tensor | undefined)[], needsGrad: readonly boolean[]) => void,
): readonly Tensor[] {
  const needsGrad = outputs.map(({ requiresGrad }) => requiresGrad);
  if (!needsGrad.includes(true)) return outputs;
  const called = (inputIds: number[], gradientIds: (number | null)[]): void => {
    using _ = scope();
    const leaves = inputIds.map((id) => new Tensor(id));
    const seeds = gradientIds.map((id) => (id === null ? undefined : new Tensor(id)));
    replay(leaves, seeds, needsGrad);
  };
  const recorded = outputs.filter((_, i) => needsGrad[i]);
  const connected = currentEngine()
    .native.checkpoint(idsOf(inputs), idsOf(recorded), called)
    .map((id) => new Tensor(id));
  return outputs.map((tensor, i) => (needsGrad[i] ? connected.shift()! : tensor));
}
