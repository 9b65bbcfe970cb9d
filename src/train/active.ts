/** Which parameters train in a step: freezes what a method's layer policy leaves out, and frees what the optimizer keeps for it. */
import { GraftError } from '../base/index.ts';
import { currentEngine } from '../engine/index.ts';
import type { AttachedAdapter } from '../methods/index.ts';
import { type Model, type ModelPart, modelParts, partsByKey } from '../nn/index.ts';
import type { Optimizer } from '../optim/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Sharding } from './sharding.ts';

/** What trains from a step on. */
export interface ActiveParts {
  /** The parts that train, from the inputs to the outputs. */
  readonly parts: readonly ModelPart[];
  /** How many numbers train, those in no part included. */
  readonly parameters: number;
}

/** The layers that train, step by step. */
export interface ActiveLayers {
  /** What should be known before the run. */
  readonly notes: readonly string[];
  /** Whether the parameter of this key trains in no step of the run. */
  neverTrains(key: string): boolean;
  /** Freezes and thaws what the policy says for step number `step` (0-based). Returns what trains now, where that changed. */
  begin(step: number): ActiveParts | undefined;
  /**
   * Gives the policy the loss and the gradients of a step, before they are clipped.
   * @param gradients says their norms, of parameters by key
   */
  observe(step: number, loss: number, gradients: Pick<Sharding, 'gradNorm'>): void;
  /** Returns what happened since the last call and should be known. */
  takeNotes(): readonly string[];
}

/** What is trained, for `activeLayers`. */
export interface ActiveLayersInput {
  /** The model that the methods are attached to. */
  readonly model: Model;
  /** The methods as one adapter, with the policy of one of them. */
  readonly adapter: Pick<AttachedAdapter, 'method' | 'layerPolicy' | 'head'>;
  /** All trained parameters, by the keys of a checkpoint. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** The optimizer of the parameters. */
  readonly optimizer: Optimizer;
  /** Optimizer steps of the whole run. */
  readonly steps: number;
  /** Whether the steps are for different tasks. Default: false. */
  readonly severalTasks?: boolean;
  /** Seed of the run: it decides random choices. */
  readonly seed: number;
}

/**
 * Returns what switches the layers of a run by its method's policy; undefined where it has none.
 * @throws GraftError 'usage' where no trained parameter is in a layer, and as `LayerPolicy.begin` does
 */
export function activeLayers({
  model,
  adapter,
  parameters,
  optimizer,
  steps,
  severalTasks = false,
  seed,
}: ActiveLayersInput): ActiveLayers | undefined {
  const { layerPolicy: policy } = adapter;
  if (!policy) return undefined;
  const partOf = partsByKey(model);
  // Keys of several methods begin with the number of theirs, those of the heads of several tasks with the task.
  const partOfParameter = (key: string) =>
    adapter.head.has(key) || key.startsWith('tasks.') ? undefined : partOf(key.replace(/^\d+\./, ''));
  const byPart = Map.groupBy(parameters.keys(), partOfParameter);
  const others = byPart.get(undefined) ?? [];
  const parts = modelParts(model).filter((part) => byPart.has(part));
  if (!parts.some((part) => typeof part === 'number')) {
    throw new GraftError('usage', `there is no layer to choose: ${adapter.method} trains no parameter in a layer`, {
      place: 'method',
      hint: 'Use a method that trains parameters in the layers, such as full or lora, or leave out the policy of layers',
    });
  }
  const count = (keys: readonly string[]) => keys.reduce((sum, key) => sum + parameters.get(key)!.numel, 0);
  const sizes = new Map([...byPart].map(([part, keys]) => [part, count(keys)]));
  const sizeOf = (active: readonly ModelPart[]) =>
    active.reduce<number>((sum, part) => sum + sizes.get(part)!, sizes.get(undefined) ?? 0);
  const freezeAllBut = (active: readonly ModelPart[]) => {
    for (const part of parts)
      for (const key of byPart.get(part)!) parameters.get(key)!.requiresGrad = active.includes(part);
  };
  let sizeBefore = sizeOf(parts);
  const notes = [...policy.begin({ parts: new Set(parts), trainsMore: others.length > 0, steps, severalTasks, seed })];
  if (others.length > 0) {
    const names = others.slice(0, 3).join(', ') + (others.length > 3 ? ` and ${others.length - 3} more` : '');
    notes.push(`in no layer, and trained in every step: ${names}`);
  }
  return {
    notes,
    neverTrains(key) {
      const part = partOfParameter(key);
      return part !== undefined && policy.neverTrains(part);
    },
    begin(step) {
      const stateOf = policy.at(step);
      const active = parts.filter((part) => stateOf(part).trains);
      freezeAllBut(active);
      const begun = parts.filter((part) => stateOf(part).since === step);
      for (const part of begun) optimizer.release(byPart.get(part)!);
      if (begun.length === 0 && step > 0) return undefined;
      // Where as much is trained as before, the memory of one layer is that of the next.
      const size = sizeOf(active);
      if (size < sizeBefore) currentEngine().native.trim();
      sizeBefore = size;
      return { parts: active, parameters: size };
    },
    observe: (step, loss, gradients) =>
      policy.observe?.(step, loss, (part) => gradients.gradNorm(byPart.get(part) ?? [])),
    takeNotes: () => policy.takeNotes?.() ?? [],
  };
}
