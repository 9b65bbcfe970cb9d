import type { ModelPart } from '../../nn/index.ts';

/** How a part of the model stands in a step. */
export interface PartState {
  readonly trains: boolean;
  /** The step (0-based) since which it stands so. What an optimizer keeps for the part begins anew there. */
  readonly since: number;
}

/** What a policy learns of the run before its first step. */
export interface PolicyRun {
  /** The parts that have trained parameters. */
  readonly parts: ReadonlySet<ModelPart>;
  /** Whether further parameters train in every step: virtual tokens, the head of a task. */
  readonly trainsMore: boolean;
  /** Optimizer steps of the whole run. */
  readonly steps: number;
  /** Whether its steps are for different tasks, so that their losses and gradients cannot be compared. */
  readonly severalTasks: boolean;
  /** Seed of the run: it decides random choices. */
  readonly seed: number;
}

/** Chooses which parts of a model train in which step. A run calls `begin`, then `at` and `observe` once in every step. */
export interface LayerPolicy {
  /** Returns what should be known before the run. @throws GraftError 'usage' where nothing would train, or a setting has no effect */
  begin(run: PolicyRun): readonly string[];
  /** Returns how the parts stand in step number `step` (0-based). */
  at(step: number): (part: ModelPart) => PartState;
  /** Whether a part trains in no step of the run. */
  neverTrains(part: ModelPart): boolean;
  /**
   * Learns the result of a step, before gradients are clipped.
   * @param gradientNorm returns the 2-norm of a part's gradient; undefined where it has none
   */
  observe?(step: number, loss: number, gradientNorm: (part: ModelPart) => number | undefined): void;
  /** Returns what happened since the last call and should be known. */
  takeNotes?(): readonly string[];
}
