/** Rounding that is on a model: switching it, merging under it, taking it off. */
import { type Embedding, type Linear, type Model, moduleAt, type Rounding, replaceModule } from '../../nn/index.ts';
import { isGgufFormat, isIntegerFormat, roundingName } from '../../quant/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  type Fold,
  fold,
  layerUnder,
  ownLayerWeight,
  type Switch,
  unfold,
  unwrap,
  type Wrapper,
} from '../shared/index.ts';
import { type QatConfig, quantizationOf } from './config.ts';
import { RoundedInputs, RoundedLinear } from './layers.ts';
import { refuse } from './plan.ts';

/** How one module is rounded: by a change of its frozen weight, or by a wrapper that does it in every forward pass. */
export type Part =
  | { readonly path: string; readonly layer: Linear | Embedding; readonly change: Fold }
  | { readonly path: string; readonly wrapper: Wrapper };

interface Rounded {
  readonly parts: readonly Part[];
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly roundings: ReadonlyMap<string, Rounding>;
  readonly state: Switch;
}

/** The layers that a qat method rounds: two of them would round one on top of the other. */
export const roundedLayers = new WeakSet<object>();

/** Puts a wrapper around a module: outermost, or directly around the layer where its adapters see the inputs as they are. */
function wrap(model: Model, path: string, wrapper: Wrapper): void {
  const outer = moduleAt(model.root, path) as Wrapper;
  let above = wrapper instanceof RoundedInputs ? outer : undefined;
  if (above?.base_layer === undefined) {
    replaceModule(model.root, path, wrapper);
    return;
  }
  while ((above.base_layer as Wrapper).base_layer !== undefined) above = above.base_layer as Wrapper;
  above.base_layer = wrapper;
}

export function attached(model: Model, config: QatConfig, { parts, parameters, roundings, state }: Rounded): Adapter {
  let [enabled, active, merged] = [true, true, false];
  let [folded, isAttached] = [false, true];
  const change = (on: boolean) => {
    if (on === folded) return;
    folded = on;
    for (const part of parts) if ('change' in part) (on ? fold : unfold)(part.layer, part.change);
  };
  const apply = () => {
    state.enabled = enabled && active && !merged;
    // Merged over a rounded base, the sum is of that base; otherwise what is written is rounded when it is written.
    change(enabled && active && !(merged && config.over === 'merged'));
  };
  const layers = [...roundings.keys()].map((path) => [path, layerUnder(moduleAt(model.root, path))] as const);
  const twice = layers.find(([, layer]) => roundedLayers.has(layer));
  if (twice) {
    for (const tensor of parameters.values()) tensor.dispose();
    refuse(`'${twice[0]}' is rounded by another qat method`, 'Give each its own target_modules');
  }
  for (const [, layer] of layers) roundedLayers.add(layer);
  for (const part of parts) if ('wrapper' in part) wrap(model, part.path, part.wrapper);
  const adapter: Adapter = {
    method: 'qat',
    writes: 'settings',
    config,
    parameters,
    roundings,
    warnings: [...meaningOf(config, parts), ...roundedBefore(parts), ...mixtureOf(config)],
    get enabled() {
      return enabled;
    },
    set enabled(on: boolean) {
      enabled = on;
      apply();
    },
    ...(config.start_step > 0 && {
      beforeStep(step: number, steps: number) {
        if (config.start_step >= steps)
          refuse(`start_step is ${config.start_step}, and the run ends after ${steps} steps`, 'Lower start_step');
        active = step >= config.start_step;
        apply();
      },
      // What is measured between steps is the rounded model, so that the best of a run is not one that was never rounded.
      afterStep() {
        active = true;
        apply();
      },
    }),
    merge() {
      merged = true;
      apply();
    },
    unmerge() {
      merged = false;
      apply();
    },
    detach() {
      if (!isAttached) return;
      isAttached = false;
      for (const [, layer] of layers) roundedLayers.delete(layer);
      enabled = false;
      apply();
      for (const part of parts) {
        if (!('wrapper' in part)) continue;
        unwrap(model.root, part.path, part.wrapper);
        if (part.wrapper instanceof RoundedLinear) part.wrapper.free();
      }
      for (const tensor of parameters.values()) tensor.dispose();
    },
    [Symbol.dispose]: () => adapter.detach(),
  };
  try {
    apply();
  } catch (cause) {
    adapter.detach();
    throw cause;
  }
  return adapter;
}

/** What is rounded, and what the result is for. */
function meaningOf(config: QatConfig, parts: readonly Part[]): string[] {
  const { weight, over, symmetric, learned_range } = config;
  const ofBase = `the adapter stays in float beside it: it is for a base quantised so (${howToQuantize(config)})`;
  if (over === 'base') return [`qat: the frozen base is rounded to ${weight}, ${ofBase}`];
  const sums = parts.flatMap((part) =>
    'wrapper' in part && part.wrapper instanceof RoundedLinear ? part.wrapper : [],
  );
  if (sums.length === 0) return [`qat: the base is rounded to ${weight}, ${ofBase}`];
  const layers = sums.map(layerUnder);
  const command = layers.some((layer) => layer.weight.requiresGrad) ? 'quantize' : 'merge';
  const write =
    weight === 'nf4'
      ? `no file holds nf4: ${command === 'merge' ? 'write it with graft merge, and load' : 'load'} it with quantize: nf4`
      : `write it with graft ${command} --to ${weight}`;
  const meaning = `qat: the merged weight of ${sums.length} layers is rounded to ${weight}: ${write}`;
  const changesBase = layers.some((layer) => ownLayerWeight(layer).weight !== layer.weight);
  if (!changesBase || !isIntegerFormat(weight) || !symmetric || learned_range) return [meaning];
  return [
    meaning,
    `qat: PiSSA, OLoRA and LoftQ are saved for the base as it was, so last bits of the merged weight change, and with them codes of symmetric ${weight}, whose largest weight of a group lies between two codes: choose symmetric: false, learned_range, or a format of GGUF`,
  ];
}

/** How a base is made whose weights are rounded so. */
function howToQuantize(config: QatConfig): string {
  const { format, groupSize, symmetric = true } = quantizationOf(config);
  if (format === 'nf4') return 'quantize: nf4';
  if (!symmetric) return 'which graft quantize does not write: its integers are symmetric';
  return `graft quantize --to ${format}${groupSize === undefined ? '' : ` --group-size ${groupSize}`}`;
}

/** Says it where weights are rounded that a file holds rounded already, in another way or before an update. */
function roundedBefore(parts: readonly Part[]): string[] {
  const layers = parts.flatMap((part) => {
    if ('change' in part) return part.layer;
    return part.wrapper instanceof RoundedInputs ? [] : layerUnder(part.wrapper as RoundedLinear);
  });
  const before = new Set(layers.flatMap(({ roundedAs }) => (roundedAs ? roundingName(roundedAs) : [])));
  if (before.size === 0) return [];
  return [
    `qat: weights of the base were rounded before (${[...before].join(', ')}), and are rounded again from there: a base in float loses less`,
  ];
}

/** Says it where no file holds all formats of a config. */
function mixtureOf({ weight, embedding, head }: QatConfig): string[] {
  const used = [...new Set([weight, embedding ?? weight, head ?? weight])];
  if (used.every(isGgufFormat) || used.every(isIntegerFormat) || used.length === 1) return [];
  return [`qat: no file holds ${used.join(' and ')} together, so the rounded model runs as base and adapter only`];
}
