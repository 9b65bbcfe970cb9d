/**
 * LoRA (Hu et al., arXiv 2106.09685): W = W0 + s·BA with W0 frozen, A [r, in], B [out, r] and s = α/r (eq. 3), or
 * α/√r under rank stabilisation (arXiv 2312.03732). Fields, defaults and file layout are PEFT's (tuners/lora/config.py);
 * the drop-out acts on the adapter's input only, as there. Variants: dora.ts, lora-init.ts (PiSSA, OLoRA, LoftQ),
 * token-rows.ts.
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
  patternFits,
  type Switch,
  saveModules,
  selectTargets,
  type Table,
  trainBiases,
  type Wrapper,
  wrappedAdapter,
} from '../shared/index.ts';
import { type LoraConfig, loraConfig } from './config.ts';
import { baseTensors, type InitialUpdate, initialUpdates, requireInit, type UpdateShape } from './init.ts';
import { TiedLoraLinear } from './layers.ts';
import { savedLoraConfig, savedLoraTensors, type TiedTables, type UpdatedLayer } from './saved-tensors.ts';
import { tiedHead, tokenTables, trainTokenRows } from './token-rows.ts';
import { wrapperOf } from './wrapper-of.ts';

/** @throws GraftError 'usage' for fields that exclude one another, as in PEFT */
function refuse(message: string, hint: string): never {
  throw new GraftError('usage', message, { place: 'method', hint });
}

function requireFields(config: LoraConfig): void {
  const starts = typeof config.init_lora_weights === 'string' && config.init_lora_weights !== 'gaussian';
  if (config.lora_bias && (config.use_dora || config.bias !== 'none' || typeof config.init_lora_weights !== 'boolean'))
    refuse('lora_bias goes with plain LoRA only', 'Leave out use_dora, bias and init_lora_weights');
  if (config.use_dora && starts)
    refuse(`use_dora and init_lora_weights: ${config.init_lora_weights} exclude one another`, 'Choose one of the two');
}

/** Where head and embeddings share what is trained. */
function tiesOf(model: Model, config: LoraConfig, paths: readonly string[]): TiedTables | undefined {
  const head = config.ensure_weight_tying ? tiedHead(model) : undefined;
  if (head === undefined) return undefined;
  const { embeddings } = model.sites;
  const ends = (path: string) => path === head || path === embeddings;
  const saved = (config.modules_to_save ?? []).some((name) => head.endsWith(name) || embeddings.endsWith(name));
  const lora = paths.some(ends);
  if (lora && config.use_dora)
    refuse('use_dora cannot be had where embeddings and head share an update', 'Leave out ensure_weight_tying');
  return { embeddings, head, lora, saved };
}

export const lora: Method<LoraConfig> = {
  name: 'lora',
  peftType: 'LORA',
  config: loraConfig,
  trainingOnly: ['loraplus_lr_ratio', 'loraplus_lr_embedding'],

  attach(model, config, seed, tools): Adapter {
    requireFields(config);
    const candidates = candidatesOf(model);
    const selected = selectTargets(candidates, config, model.sites.defaultTargets).map(({ path }) => path);
    const ties = tiesOf(model, config, selected);
    const untied = ties?.lora ? [...new Set([ties.embeddings, ...selected])].filter((p) => p !== ties.head) : selected;
    const modules = untied.map((path) => moduleAt(model.root, path) as LinearLayer | Table);
    const shapes = modules.map((base, i): UpdateShape => {
      const path = untied[i]!;
      const rank = byPattern(config.rank_pattern, path, config.r);
      const alpha = byPattern(config.alpha_pattern, path, config.lora_alpha);
      const scaling = alpha / (config.use_rslora ? Math.sqrt(rank) : rank);
      const table = !('inFeatures' in base);
      if (table && config.lora_bias) refuse(`lora_bias is not for a table: '${path}'`, 'Leave it out');
      const [inside, outside] = table ? [base.rows, base.width] : [base.inFeatures, base.outFeatures];
      return { path, rank, inside, outside, table, scaling };
    });
    const layers = modules.map((module) => layerUnder(module) as Linear);
    requireInit(model, config, shapes, layers);
    const tables = tokenTables(model, config.trainable_token_indices ?? {});

    const state: Switch = { enabled: true };
    const copies = config.modules_to_save?.length ? [saveModules(model, config.modules_to_save, { ties })] : [];
    if (config.bias !== 'none') {
      const own = (path: string) => untied.includes(path);
      copies.push(trainBiases(model, (path) => config.bias === 'all' || own(path), own));
    }

    let starts: InitialUpdate[];
    try {
      starts = initialUpdates(model, layers, config, shapes, seed, tools?.loading ?? false);
    } catch (cause) {
      for (const copy of copies) copy.dispose();
      throw cause;
    }
    const parameters = new Map<string, Tensor>();
    const updated: UpdatedLayer[] = [];
    const wrappers: { path: string; wrapper: Wrapper }[] = [];
    const wrap = (path: string, wrapper: Wrapper) => {
      replaceModule(model.root, path, wrapper);
      wrappers.push({ path, wrapper });
    };
    shapes.forEach((shape, i) => {
      const { path } = shape;
      const start = starts[i]!;
      updated.push({ path, start, layer: layers[i]! });
      const [wrapper, own] = wrapperOf(modules[i]!, start, shape, config, state, mixSeed(seed, i, 1));
      for (const [key, tensor] of own) parameters.set(`${path}.${key}`, tensor);
      wrap(path, wrapper);
    });
    if (ties?.lora) {
      const { start } = updated.find(({ path }) => path === ties.embeddings)!;
      const { scaling } = shapes.find(({ path }) => path === ties.embeddings)!;
      const head = moduleAt(model.root, ties.head) as LinearLayer;
      wrap(ties.head, new TiedLoraLinear(head, start.b, start.a, scaling, config.lora_dropout, state));
    }
    const rows = trainTokenRows(model, tables, state);
    for (const [key, tensor] of rows.parameters) parameters.set(key, tensor);
    for (const copy of copies) for (const [key, tensor] of copy.parameters) parameters.set(key, tensor);

    const { loraplus_lr_ratio: ratio } = config;
    const bare = untied.find((_, i) => !layers[i]!.bias);
    return wrappedAdapter(model, {
      method: 'lora',
      config,
      parameters,
      wrappers: [...wrappers, ...rows.wrappers],
      switched: state,
      copies,
      rebased: updated.flatMap(({ start, layer }) => (start.base ? [{ layer, by: start.base }] : [])),
      owned: starts.flatMap(baseTensors),
      unmergeable:
        config.lora_bias && bare ? `lora_bias is on '${bare}', whose layer has no bias to add it to` : undefined,
      warnings: [
        ...(['rank_pattern', 'alpha_pattern'] as const).flatMap((field) =>
          Object.keys(config[field])
            .filter((key) => !untied.some((path) => patternFits(key, path)))
            .map((key) => `${field} '${key}' fits no module`),
        ),
        ...(config.ensure_weight_tying && !ties
          ? ['ensure_weight_tying does nothing: embeddings and head share no table']
          : []),
        // As in PEFT: the layers know how they are stored, and the field changes nothing.
        ...(config.fan_in_fan_out && !layers.some(({ transposed }) => transposed)
          ? ['fan_in_fan_out is ignored: these layers are stored [out, in]']
          : []),
      ],
      ...(ratio && {
        learningRate(key: string, lr: number) {
          if (key.includes('.lora_embedding_')) return config.loraplus_lr_embedding ?? 1e-6;
          return key.includes('.lora_B.') || parameters.get(key)!.shape.length === 1 ? ratio * lr : lr;
        },
      }),
      savedConfig: () =>
        savedLoraConfig(
          config,
          updated,
          candidates.map(({ path }) => path),
          ties,
        ),
      savedTensors: () => savedLoraTensors(parameters, updated, ties),
    });
  },
};
