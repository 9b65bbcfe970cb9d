/** Several methods on one model as one adapter, with the task's head, which is trained under every method. */

import { parseWith } from '../base/index.ts';
import { headsOf, type Model } from '../nn/index.ts';
import { mixSeed, ops, type Tensor } from '../tensor/index.ts';
import { attachOrder, type MethodChoice, requireDisjoint, requireSavable } from './choice.ts';
import { methods } from './registry.ts';
import { attachSaved } from './saved-part.ts';
import {
  type Adapter,
  type AdapterPlacement,
  type AttachContext,
  candidatesOf,
  type Method,
  placed,
  placementOf,
  saveModules,
  type TargetConfig,
  type TrainedCopies,
  unmatchedTargets,
} from './shared/index.ts';

/** One or several methods as one adapter. */
export interface AttachedAdapter extends Adapter {
  /** The adapter of each method, in the order in which they were attached. */
  readonly parts: readonly Adapter[];
  /** A model where one of the methods writes one, else an adapter. */
  readonly writes: 'model' | 'adapter';
  /** The parameters of the task's head by key; empty where the task has no head. */
  readonly head: ReadonlyMap<string, Tensor>;
}

/** As `attachMethods`, of one method or several, with 0 as the default seed. */
export const attach = (
  model: Model,
  methods: Pick<MethodChoice, 'type'> | readonly Pick<MethodChoice, 'type'>[],
  { seed = 0, ...context }: AttachContext & { readonly seed?: number } = {},
): AttachedAdapter => attachMethods(model, [methods].flat() as MethodChoice[], seed, context);

/**
 * Attaches the methods to the model, in their order. The task's head is trained with them on a copy, as PEFT does with
 * `modules_to_save`; a method that writes a whole model trains the head in place.
 * @throws GraftError 'usage' as the methods do; the model is then as before
 */
export function attachMethods(
  model: Model,
  choices: readonly MethodChoice[],
  seed: number,
  context: AttachContext = {},
): AttachedAdapter {
  requireSavable(choices);
  const parts: Adapter[] = [];
  const warnings: string[] = [];
  let head: TrainedCopies | undefined;
  try {
    attachOrder(choices).forEach((choice, i) => {
      const { type, adapter, train = true, ...config } = choice;
      const method = methods[type] as unknown as Method<unknown>;
      const partSeed = i === 0 ? seed : Number(mixSeed(seed, i) >> 12n);
      const attachNew = () => {
        const fields = parseWith(method.config, config, 'method');
        if (!context.loading) warnings.push(...unmatchedTargets(candidatesOf(model), fields as TargetConfig));
        return method.attach(model, fields, partSeed, context);
      };
      const part = adapter === undefined ? attachNew() : attachSaved(model, method, adapter, config, warnings, context);
      parts.push(part);
      if (!train) freeze(part);
    });
    const trainsHead = parts.some(({ writes }) => writes === 'model');
    head = trainsHead ? undefined : trainHead(model, context.headModules);
    if (!context.loading) requireDisjoint(parts, head);
    return combined(parts, head, warnings);
  } catch (cause) {
    head?.dispose();
    for (const part of parts.reverse()) part.detach();
    throw cause;
  }
}

/**
 * Returns a trained copy of the head of a model's task, in use; undefined where the task has no head.
 * @param furtherModules paths of modules that are copied and trained with it
 */
export function trainHead(model: Model, furtherModules: readonly string[] = []): TrainedCopies | undefined {
  const heads = headsOf(model.sites);
  return model.task.labels.length > 0 && heads.length > 0
    ? saveModules(model, [...heads, ...furtherModules], { head: true })
    : undefined;
}

/** Returns what all parts and the head have put on the model; undefined where a part did not say it. */
function joinedPlacement(parts: readonly Adapter[], head: TrainedCopies | undefined): AdapterPlacement | undefined {
  const placements = parts.flatMap((part) => placementOf(part) ?? []);
  if (placements.length < parts.length) return undefined;
  return {
    wrappers: placements.flatMap(({ wrappers }) => wrappers),
    copies: [...placements.flatMap(({ copies }) => copies), ...(head ? [head] : [])],
    baseChanges: placements.flatMap(({ baseChanges }) => baseChanges),
    ports: placements.flatMap(({ ports }) => ports),
    withdraw() {
      head?.use(false);
      for (const { withdraw } of placements.toReversed()) withdraw();
    },
  };
}

function freeze(part: Adapter): void {
  part.frozen = true;
  for (const tensor of part.parameters.values()) tensor.requiresGrad = false;
}

/** Returns the adapters and the head's copies as one adapter. Keys of several adapters begin with the number of theirs. */
function combined(
  parts: readonly Adapter[],
  head: TrainedCopies | undefined,
  warnings: readonly string[],
): AttachedAdapter {
  const [first] = parts as [Adapter, ...Adapter[]];
  const trained = parts.filter((part) => !part.frozen);
  const adapter: AttachedAdapter = {
    method: parts.map(({ method }) => method).join(' + '),
    writes: parts.some(({ writes }) => writes === 'model') ? 'model' : 'adapter',
    config: first.config,
    // Not cached: an adapter whose file has no encoder gets other parameters when it is filled (`derived.adopt`).
    get parameters() {
      const parameters = new Map<string, Tensor>(head?.parameters);
      parts.forEach((part, i) => {
        if (part.frozen) return;
        for (const [key, tensor] of part.parameters) parameters.set(parts.length === 1 ? key : `${i}.${key}`, tensor);
      });
      return parameters;
    },
    parts,
    roundings: new Map(parts.flatMap((part) => [...(part.roundings ?? [])])),
    head: head?.parameters ?? new Map(),
    warnings: [...warnings, ...parts.flatMap((part) => part.warnings)],
    advise: (lr) => parts.flatMap((part) => part.advise?.(lr) ?? []),
    get enabled() {
      return parts.every((part) => part.enabled);
    },
    set enabled(on: boolean) {
      for (const part of parts) part.enabled = on;
      head?.use(on);
    },
    ...(trained.some((part) => part.beforeStep) && {
      beforeStep(step: number, steps: number) {
        for (const part of trained) part.beforeStep?.(step, steps);
      },
    }),
    layerPolicy: parts.find((part) => part.layerPolicy)?.layerPolicy,
    afterStep(step) {
      for (const part of trained) part.afterStep?.(step);
    },
    readsGradients: trained.some((part) => part.readsGradients),
    ...(parts.some((part) => part.learningRate) && {
      learningRate(key: string, lr: number) {
        const [, i, partKey] = (parts.length > 1 && /^(\d+)\.(.*)$/.exec(key)) || ['', '0', key];
        const part = parts[Number(i)]!;
        return part.parameters.has(partKey!) ? (part.learningRate?.(partKey!, lr) ?? lr) : lr;
      },
    }),
    get state() {
      return new Map(
        parts.flatMap((part, i) => [...(part.state ?? [])].map(([key, t]) => [`${i}.${key}`, t] as const)),
      );
    },
    detach() {
      head?.dispose();
      for (const part of [...parts].reverse()) part.detach();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  const regularised = trained.filter((part) => part.regularisation);
  if (regularised.length > 0) {
    adapter.regularisation = () => regularised.map((part) => part.regularisation!()).reduce((a, b) => ops.add(a, b));
  }
  if (parts.every((part) => part.merge)) {
    adapter.merge = () => {
      for (const part of parts) part.merge!();
    };
    adapter.unmerge = () => {
      for (const part of [...parts].reverse()) part.unmerge!();
    };
  }
  const placement = joinedPlacement(parts, head);
  return placement ? placed(adapter, placement) : adapter;
}
