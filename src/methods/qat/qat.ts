/**
 * Quantisation-aware training (Jacob et al., arXiv 1712.05877): every forward pass computes with weights rounded to a number format
 * and back, and gradients pass the rounding unchanged except where a code was clipped. It has no weights of its own: it stands beside
 * the method that trains, and rounds what that method makes of a layer's weight (`over: merged`) or the frozen base below it
 * (`over: base`). A weight that nothing changes is packed once, and takes less memory.
 */
import { GraftError } from '../../base/index.ts';
import {
  type Embedding,
  type Linear,
  type LinearLayer,
  type Model,
  moduleAt,
  replaceModule,
  unwrapped,
} from '../../nn/index.ts';
import {
  formats,
  integersOf,
  isIntegerFormat,
  type Quantization,
  requireWidths,
  type WeightFormat,
} from '../../quant/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  candidatesOf,
  type Fold,
  fold,
  layerUnder,
  type Method,
  type WeightRounding as Rounding,
  type Switch,
  selectTargets,
  type Table,
  trainable,
  unfold,
  unwrap,
  type Wrapper,
} from '../shared/index.ts';
import { type QatConfig, qatConfig, quantizationOf } from './config.ts';
import { chainOf, RoundedInputs, RoundedLinear, RoundedTable, roundingFold } from './layers.ts';

function refuse(problem: string, hint: string): never {
  throw new GraftError('usage', problem, { place: 'method', hint });
}

/** @throws GraftError 'usage' for fields that exclude one another */
function requireFields(config: QatConfig): void {
  const formatsUsed = [config.weight, config.embedding, config.head].filter((format) => format !== undefined);
  const blocks = formatsUsed.find((format) => !isIntegerFormat(format));
  if (blocks && config.group_size !== undefined && !formatsUsed.some(isIntegerFormat))
    refuse(`${blocks} has blocks of its own size, and group_size is for integers`, 'Leave out group_size');
  if (!isIntegerFormat(config.weight) && !config.symmetric)
    refuse(`symmetric: false is for integers, not for ${config.weight}`, 'Leave out symmetric');
  if (config.learned_range && (!isIntegerFormat(config.weight) || !config.symmetric || config.over === 'base'))
    refuse(
      'learned_range needs symmetric integers over the merged weight',
      'Choose int2 to int8, or leave out learned_range',
    );
}

/** The number format of each module that is rounded, by path. */
function formatsByPath(model: Model, config: QatConfig): Map<string, WeightFormat> {
  const { embeddings, head } = model.sites;
  const isOutput = head !== undefined && model.task.labels.length === 0;
  const targets = { target_modules: config.target_modules ?? 'all-linear', exclude_modules: config.exclude_modules };
  const byPath = new Map<string, WeightFormat>();
  for (const { path, kind } of selectTargets(candidatesOf(model), targets, [])) {
    if (kind === 'embedding')
      refuse(`target_modules selects '${path}', an embedding`, 'Give its format in the field embedding');
    byPath.set(path, config.weight);
  }
  if (config.head && !isOutput) refuse('head is for models with an output projection to a vocabulary', 'Leave it out');
  if (config.head) byPath.set(head!, config.head);
  if (config.embedding) byPath.set(embeddings, config.embedding);
  const [table, output] = [embeddings, head].map((path) => path && unwrapped(moduleAt(model.root, path)));
  const tied = isOutput && (table as Embedding).weight === (output as Linear).weight;
  const [ofTable, ofHead] = [byPath.get(embeddings), byPath.get(head ?? '')];
  if (!tied || (ofTable === undefined && ofHead === undefined)) return byPath;
  if (ofTable && ofHead && ofTable !== ofHead)
    refuse(
      `embeddings and head share one table, which cannot be ${ofTable} and ${ofHead}`,
      'Give embedding and head the same format',
    );
  byPath.set(embeddings, (ofTable ?? ofHead)!).set(head!, (ofTable ?? ofHead)!);
  return byPath;
}

/** Elements of a row of the weight at a path. */
function widthAt(model: Model, path: string): number {
  const layer = layerUnder(moduleAt(model.root, path));
  return 'inFeatures' in layer ? layer.inFeatures : layer.width;
}

/** Whether the weight of a layer is in blocks already. @throws GraftError 'usage' where these are of another format */
function isPacked({ format }: Linear | Embedding, path: string, { format: wanted }: Quantization): boolean {
  if (format < 0) return false;
  const [held] = Object.entries(formats).find(([, { nativeId }]) => nativeId === format)!;
  if (held === wanted) return true;
  refuse(
    `the weight of '${path}' is held as ${held}, and cannot be rounded to ${wanted} on top of that`,
    `Load the model with quantize: none, or round to ${held}`,
  );
}

/** How one module is rounded: by a change of its frozen weight, or by a wrapper that does it in every forward pass. */
type Part =
  | { readonly path: string; readonly layer: Linear | Embedding; readonly change: Fold }
  | { readonly path: string; readonly wrapper: Wrapper };

/** @throws GraftError 'usage' where the merged weight is not what the chain computes in training */
function requireMergeable(path: string, chain: readonly Wrapper[]): void {
  const dropout = chain.find((wrapper) => ((wrapper as { dropout?: number }).dropout ?? 0) > 0);
  if (dropout)
    refuse(
      `a merged weight has no dropout, and the adapter on '${path}' has`,
      'Set lora_dropout: 0, or use over: base',
    );
  if (chain.some((wrapper) => wrapper instanceof RoundedLinear || wrapper instanceof RoundedTable))
    refuse(`'${path}' is rounded by another qat method`, 'Give each its own target_modules');
}

export const qat: Method<QatConfig> = {
  name: 'qat',
  writes: 'settings',
  config: qatConfig,

  attach(model, config): Adapter {
    requireFields(config);
    const byPath = formatsByPath(model, config);
    const roundings = new Map<string, Rounding>();
    const parameters = new Map<string, Tensor>();
    const state: Switch = { enabled: true };
    const parts: Part[] = [];
    for (const format of new Set(byPath.values())) {
      const widths = [...byPath]
        .filter(([, each]) => each === format)
        .map(([path]) => [path, widthAt(model, path)] as const);
      requireWidths(quantizationOf(config, format), new Map(widths));
    }
    for (const [path, format] of byPath) {
      const module = moduleAt(model.root, path) as LinearLayer | Table;
      const layer = layerUnder(module);
      const chain = chainOf(module);
      const quantization = quantizationOf(config, format);
      const trained = layer.weight.requiresGrad;
      if (trained && config.over === 'base')
        refuse(`over: base rounds a frozen weight, and '${path}' is trained`, 'Leave out over');
      const linear = 'inFeatures' in layer;
      let rounding: Rounding = { quantization };
      if (config.learned_range && linear && isIntegerFormat(format)) {
        const scales = trainable(() => ops.clampMin(integersOf(layer.denseWeight(), quantization).scales, 1e-9));
        parameters.set(`${path}.weight_scale`, scales);
        rounding = { quantization, scales };
      }
      roundings.set(path, rounding);
      const dynamic = trained || rounding.scales !== undefined || (config.over === 'merged' && chain.length > 0);
      if (dynamic) {
        requireMergeable(path, chain);
        if (isPacked(layer, path, quantization))
          refuse(
            `the weight of '${path}' is packed, and over: merged rounds the sum`,
            'Load the model with quantize: none, or use over: base',
          );
        const wrapper = linear
          ? new RoundedLinear(module as LinearLayer, rounding, config.activation !== undefined, state)
          : new RoundedTable(module as Table, rounding, model.kernels, state);
        parts.push({ path, wrapper });
        continue;
      }
      if (!isPacked(layer, path, quantization))
        parts.push({ path, layer, change: roundingFold(model.kernels, rounding) });
      if (config.activation && linear) parts.push({ path, wrapper: new RoundedInputs(layer, state) });
    }
    return adapterOf(model, config, { parts, parameters, roundings, state });
  },
};

interface Attached {
  readonly parts: readonly Part[];
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly roundings: ReadonlyMap<string, Rounding>;
  readonly state: Switch;
}

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

function adapterOf(model: Model, config: QatConfig, { parts, parameters, roundings, state }: Attached): Adapter {
  let [enabled, active, merged] = [true, true, false];
  let folded = false;
  const change = (on: boolean) => {
    if (on !== folded) for (const part of parts) if ('change' in part) (on ? fold : unfold)(part.layer, part.change);
    folded = on;
  };
  const apply = () => {
    state.enabled = enabled && active && !merged;
    // Merged over a rounded base, the sum is of that base; otherwise what is written is rounded when it is written.
    change(enabled && active && !(merged && config.over === 'merged'));
  };
  for (const part of parts) if ('wrapper' in part) wrap(model, part.path, part.wrapper);
  apply();
  const adapter: Adapter = {
    method: 'qat',
    writes: 'settings',
    config,
    parameters,
    roundings,
    warnings: meaningOf(config, parts),
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
  return adapter;
}

/** What is rounded, and what the result is for. */
function meaningOf({ weight, over }: QatConfig, parts: readonly Part[]): string[] {
  const sums = parts.filter((part) => 'wrapper' in part && part.wrapper instanceof RoundedLinear).length;
  if (over === 'base')
    return [
      `qat: the frozen base is rounded to ${weight}, the adapter stays in float: it is for a base quantised so (graft quantize --to ${weight})`,
    ];
  return sums > 0
    ? [`qat: the merged weight of ${sums} layers is rounded to ${weight}: write it with graft merge --to ${weight}`]
    : [`qat: the base is rounded to ${weight}, the adapter stays in float beside it (graft quantize --to ${weight})`];
}
