/** Methods at work together on one model, and the task's head, which is trained whatever the method. */

import { GraftError, parseWith } from '../base/index.ts';
import type { Model } from '../nn/index.ts';
import { mixSeed, ops, type Tensor } from '../tensor/index.ts';
import { methods } from './registry.ts';
import {
  type Adapter,
  type AttachContext,
  type Method,
  saveModules,
  type TrainedCopies,
  type Written,
} from './shared/index.ts';

export interface MethodChoice {
  readonly type: keyof typeof methods;
  /** Directory of a saved adapter to begin from; its config counts then, and none of the fields here. */
  readonly adapter?: string;
  /** false: at work and saved with the others, but frozen, as the lower adapters of a stack are. */
  readonly train?: boolean;
  readonly [field: string]: unknown;
}

/** One or several methods as one adapter. */
export interface AttachedAdapter extends Adapter {
  readonly parts: readonly Adapter[];
  /** A whole model where one of the methods writes one. */
  readonly writes: Written;
  /** The head's parameters by key; empty where the task has no head of its own. */
  readonly head: ReadonlyMap<string, Tensor>;
}

/** What a run of these methods leaves. */
export const writtenBy = (choices: readonly Pick<MethodChoice, 'type'>[]): Written =>
  choices.some(({ type }) => (methods[type] as Method<unknown>).writes === 'model') ? 'model' : 'adapter';

/**
 * Puts the methods on the model in their order. The head of a classification is trained beside them, on a copy, as PEFT
 * does with `modules_to_save`; a method that writes a whole model has it among its own parameters.
 * @throws GraftError 'usage' as the methods do; the model is then as before
 */
export function attachMethods(
  model: Model,
  choices: readonly MethodChoice[],
  seed: number,
  tools: AttachContext = {},
): AttachedAdapter {
  const parts: Adapter[] = [];
  try {
    choices.forEach(({ type, adapter, train = true, ...config }, i) => {
      const method = methods[type] as unknown as Method<unknown>;
      const own = i === 0 ? seed : Number(mixSeed(seed, i) >> 12n);
      const part =
        adapter === undefined
          ? method.attach(model, parseWith(method.config, config, 'method'), own, tools)
          : attachSaved(model, method, adapter, tools);
      parts.push(part);
      if (!train) freeze(part);
    });
    const whole = parts.some(({ writes }) => writes === 'model');
    return together(parts, whole ? undefined : trainHead(model, tools.headModules));
  } catch (cause) {
    for (const part of parts.reverse()) part.detach();
    throw cause;
  }
}

/**
 * The head of a model's task as a copy that is trained and at work; undefined where the task has none of its own.
 * @param beside paths of modules that are trained with it
 */
export function trainHead(model: Model, beside: readonly string[] = []): TrainedCopies | undefined {
  const { head } = model.sites;
  return model.task.labels.length > 0 && head !== undefined
    ? saveModules(model, [head, ...beside], { head: true })
    : undefined;
}

function attachSaved(model: Model, method: Method<unknown>, dir: string, tools: AttachContext): Adapter {
  const saved = tools.saved?.(dir);
  if (!saved) throw new GraftError('usage', 'saved adapters cannot be read from here', { place: dir });
  if (saved.method !== method.name) {
    throw new GraftError('mismatch', `the recipe says ${method.name}, and this adapter is ${saved.method}`, {
      place: dir,
    });
  }
  const adapter = method.attach(model, saved.config, 0, { ...tools, loading: true });
  try {
    saved.fill(adapter);
    return adapter;
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
}

function freeze(part: Adapter): void {
  part.frozen = true;
  for (const tensor of part.parameters.values()) tensor.requiresGrad = false;
}

function together(parts: readonly Adapter[], head: TrainedCopies | undefined): AttachedAdapter {
  const [first] = parts as [Adapter, ...Adapter[]];
  const trained = parts.filter((part) => !part.frozen);
  const attached: AttachedAdapter = {
    method: parts.map(({ method }) => method).join(' + '),
    writes: parts.some(({ writes }) => writes === 'model') ? 'model' : 'adapter',
    config: first.config,
    // Made anew: a part that goes on from a file without its encoder has other parameters than before.
    get parameters() {
      const parameters = new Map<string, Tensor>(head?.parameters);
      parts.forEach((part, i) => {
        if (part.frozen) return;
        for (const [key, tensor] of part.parameters) parameters.set(parts.length === 1 ? key : `${i}.${key}`, tensor);
      });
      return parameters;
    },
    parts,
    head: head?.parameters ?? new Map(),
    warnings: parts.flatMap(({ warnings }) => warnings),
    advise: (lr) => parts.flatMap((part) => part.advise?.(lr) ?? []),
    get enabled() {
      return parts.every((part) => part.enabled);
    },
    set enabled(on: boolean) {
      for (const part of parts) part.enabled = on;
      head?.use(on);
    },
    beforeStep(step, steps) {
      for (const part of trained) part.beforeStep?.(step, steps);
    },
    afterStep(step) {
      for (const part of trained) part.afterStep?.(step);
    },
    ...(parts.some((part) => part.learningRate) && {
      learningRate(key: string, lr: number) {
        const [, i, own] = (parts.length > 1 && /^(\d+)\.(.*)$/.exec(key)) || ['', '0', key];
        const part = parts[Number(i)]!;
        return part.parameters.has(own!) ? (part.learningRate?.(own!, lr) ?? lr) : lr;
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
    [Symbol.dispose]: () => attached.detach(),
  };
  const regular = trained.filter((part) => part.regularisation);
  if (regular.length > 0) {
    attached.regularisation = () => regular.map((part) => part.regularisation!()).reduce((a, b) => ops.add(a, b));
  }
  if (parts.every((part) => part.merge)) {
    attached.merge = () => {
      for (const part of parts) part.merge!();
    };
    attached.unmerge = () => {
      for (const part of [...parts].reverse()) part.unmerge!();
    };
  }
  return attached;
}
