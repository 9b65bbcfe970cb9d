/**
 * LoRA (Hu et al., arXiv 2106.09685): W = W0 + s·BA with W0 frozen, A [r, in], B [out, r] and s = α/r (eq. 3), or
 * α/√r with rank stabilisation (arXiv 2312.03732). Fields, defaults and file layout are PEFT's (tuners/lora/config.py);
 * dropout acts on the update's input only, as there. Variants: dora.ts, init.ts (PiSSA, OLoRA, LoftQ), token-rows.ts.
 */
import { GraftError } from '../../base/index.ts';
import { type Linear, type LinearLayer, type Model, moduleAt, replaceModule } from '../../nn/index.ts';
import { mixSeed, type Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  byPattern,
  candidatesOf,
  layerUnder,
  type Method,
  matchesPattern,
  type Switch,
  selectTargets,
  type Table,
  trainedCopies,
  type Wrapper,
  wrappedAdapter,
} from '../shared/index.ts';
import { baseTensors, type InitialUpdate } from './base-changes.ts';
import { type LoraConfig, loraConfig } from './config.ts';
import { initialUpdates, requireInit, type UpdateShape } from './init.ts';
import { TiedLoraLinear } from './layers.ts';
import { savedLoraConfig, savedLoraTensors, type TiedTables, type UpdatedLayer } from './saved-tensors.ts';
import { tiedHead, tokenTables, trainTokenRows } from './token-rows.ts';
import { wrapperOf } from './wrapper-of.ts';

function refuse(message: string, hint: string): never {
  throw new GraftError('usage', message, { place: 'method', hint });
}

/** Checks for fields that exclude one another, as in PEFT. @throws GraftError 'usage' */
function requireFields(config: LoraConfig): void {
  const fromWeight = typeof config.init_lora_weights === 'string' && config.init_lora_weights !== 'gaussian';
  if (config.lora_bias && (config.use_dora || config.bias !== 'none' || typeof config.init_lora_weights !== 'boolean'))
    refuse('lora_bias works with plain LoRA only', 'Leave out use_dora, bias and init_lora_weights');
  if (config.use_dora && fromWeight)
    refuse(`use_dora and init_lora_weights: ${config.init_lora_weights} exclude one another`, 'Choose one of the two');
}

/** Returns what head and embeddings share under `ensure_weight_tying`; undefined where they share no table. */
function tiesOf(model: Model, config: LoraConfig, paths: readonly string[]): TiedTables | undefined {
  const head = config.ensure_weight_tying ? tiedHead(model) : undefined;
  if (head === undefined) return undefined;
  const { embeddings } = model.sites;
  const saved = (config.modules_to_save ?? []).some((name) => head.endsWith(name) || embeddings.endsWith(name));
  const lora = paths.some((path) => path === head || path === embeddings);
  if (lora && config.use_dora)
    refuse('use_dora does not support embeddings and head that share an update', 'Leave out ensure_weight_tying');
  return { embeddings, head, lora, saved };
}

function shapeOf(base: LinearLayer | Table, path: string, config: LoraConfig): UpdateShape {
  const rank = byPattern(config.rank_pattern, path, config.r);
  const alpha = byPattern(config.alpha_pattern, path, config.lora_alpha);
  const scaling = alpha / (config.use_rslora ? Math.sqrt(rank) : rank);
  const table = !('inFeatures' in base);
  if (table && config.lora_bias) refuse(`lora_bias does not support embeddings: '${path}'`, 'Leave it out');
  const [inFeatures, outFeatures] = table ? [base.rows, base.width] : [base.inFeatures, base.outFeatures];
  return { path, rank, inFeatures, outFeatures, table, scaling };
}

/** Returns a warning for each field that has no effect. */
function warningsOf(
  config: LoraConfig,
  paths: readonly string[],
  layers: readonly Linear[],
  ties: TiedTables | undefined,
): string[] {
  const unmatched = (['rank_pattern', 'alpha_pattern'] as const).flatMap((field) =>
    Object.keys(config[field])
      .filter((key) => !paths.some((path) => matchesPattern(key, path)))
      .map((key) => `${field} '${key}' matches no module`),
  );
  if (config.ensure_weight_tying && !ties)
    unmatched.push('ensure_weight_tying has no effect: embeddings and head do not share a table');
  // As in PEFT, the layers know how they are stored, and the field changes nothing.
  if (config.fan_in_fan_out && !layers.some(({ transposed }) => transposed))
    unmatched.push('fan_in_fan_out is ignored: these layers are stored as [out, in]');
  return unmatched;
}

export const lora: Method<LoraConfig> = {
  name: 'lora',
  peftType: 'LORA',
  config: loraConfig,
  trainingOnly: ['loraplus_lr_ratio', 'loraplus_lr_embedding'],

  attach(model, config, seed, context): Adapter {
    requireFields(config);
    const candidates = candidatesOf(model);
    const selected = selectTargets(candidates, config, model.sites.defaultTargets).map(({ path }) => path);
    const ties = tiesOf(model, config, selected);
    // A tied head has no update of its own.
    const paths = ties?.lora ? [...new Set([ties.embeddings, ...selected])].filter((p) => p !== ties.head) : selected;
    const modules = paths.map((path) => moduleAt(model.root, path) as LinearLayer | Table);
    const shapes = modules.map((base, i) => shapeOf(base, paths[i]!, config));
    const layers = modules.map((module) => layerUnder(module) as Linear);
    requireInit(model, config, shapes, layers);
    const tokenRowTables = tokenTables(model, config.trainable_token_indices ?? {});
    const savedTable = tokenRowTables.find(({ path }) => config.modules_to_save?.some((name) => path.endsWith(name)));
    if (savedTable) {
      throw new GraftError(
        'usage',
        `modules_to_save trains all rows of '${savedTable.path}', those of single tokens too`,
        {
          place: 'trainable_token_indices',
          hint: 'Name the table in one of the two fields',
        },
      );
    }

    const toggle: Switch = { enabled: true };
    const copies = trainedCopies(model, config, paths, ties);
    let initial: InitialUpdate[];
    try {
      initial = initialUpdates(model, layers, config, shapes, seed, context);
    } catch (cause) {
      for (const copy of copies) copy.dispose();
      throw cause;
    }
    const updated = paths.map((path, i): UpdatedLayer => ({ path, initial: initial[i]!, layer: layers[i]! }));
    const parameters = new Map<string, Tensor>();
    const wrappers: { path: string; wrapper: Wrapper }[] = [];
    const wrap = (path: string, wrapper: Wrapper) => {
      replaceModule(model.root, path, wrapper);
      wrappers.push({ path, wrapper });
    };
    shapes.forEach((shape, i) => {
      const { path } = shape;
      const [wrapper, named] = wrapperOf(
        modules[i]!,
        initial[i]!,
        shape,
        config,
        toggle,
        mixSeed(seed, i, 1),
        context?.loading,
      );
      for (const [name, tensor] of named) parameters.set(`${path}.${name}`, tensor);
      wrap(path, wrapper);
    });
    if (ties?.lora) {
      const i = paths.indexOf(ties.embeddings);
      const { a, b } = initial[i]!;
      const head = moduleAt(model.root, ties.head) as LinearLayer;
      wrap(ties.head, new TiedLoraLinear(head, b, a, shapes[i]!.scaling, config.lora_dropout, toggle));
    }
    const tokenRows = trainTokenRows(model, tokenRowTables, toggle);

    const { loraplus_lr_ratio: ratio } = config;
    const withoutBias = paths.find((_, i) => !layers[i]!.bias);
    const adapter = wrappedAdapter(model, {
      method: 'lora',
      config,
      parameters: new Map([...parameters, ...tokenRows.parameters]),
      wrappers: [...wrappers, ...tokenRows.wrappers],
      replaces: tokenRows.replaces,
      toggle,
      copies,
      baseChanges: updated.flatMap(({ path, initial: { baseChange: change }, layer }) =>
        change ? [{ path, layer, change }] : [],
      ),
      owned: initial.flatMap(baseTensors),
      unmergeable:
        config.lora_bias && withoutBias
          ? `lora_bias is set for '${withoutBias}', whose layer has no bias to add it to`
          : undefined,
      warnings: warningsOf(config, paths, layers, ties),
      // LoRA+: a magnitude, a bias and B have the higher rate.
      ...(ratio && {
        learningRate(key: string, lr: number) {
          if (key.includes('.lora_embedding_')) return config.loraplus_lr_embedding ?? 1e-6;
          return key.includes('.lora_B.') || adapter.parameters.get(key)!.shape.length === 1 ? ratio * lr : lr;
        },
      }),
      savedConfig: () => {
        const allPaths = candidates.map(({ path }) => path);
        return savedLoraConfig(config, updated, allPaths, ties);
      },
      savedTensors: () => savedLoraTensors(adapter.parameters, updated, ties),
    });
    return adapter;
  },
};
