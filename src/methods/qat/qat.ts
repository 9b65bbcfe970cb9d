/**
 * Quantisation-aware training (Jacob et al., arXiv 1712.05877): every forward pass computes with weights rounded to a number format
 * and back, and gradients pass the rounding unchanged except where a code was clipped. It has no weights of its own: it stands beside
 * the method that trains, and rounds what that method makes of a layer's weight (`over: merged`) or the frozen base below it
 * (`over: base`). A weight that nothing changes is packed once, and takes less memory.
 */
import { type LinearLayer, type Model, moduleAt, type Rounding } from '../../nn/index.ts';
import { integersOf, isIntegerFormat, type WeightFormat } from '../../quant/index.ts';
import { ops, type Tensor } from '../../tensor/index.ts';
import {
  type Adapter,
  layerUnder,
  type Method,
  ownLayerWeight,
  type Switch,
  type Table,
  trainable,
  type Wrapper,
} from '../shared/index.ts';
import { attached, type Part, roundedLayers } from './attached.ts';
import { inputRoundingOf, type QatConfig, qatConfig, quantizationOf } from './config.ts';
import { chainOf, RoundedInputs, RoundedLinear, RoundedTable, roundingFold } from './layers.ts';
import { formatsByPath, isRounded, refuse, requireFields, requireWidthsOf } from './plan.ts';

/** @throws GraftError 'usage' where the merged weight is not what the chain computes in training */
function requireMergeable(path: string, { bias }: { readonly bias?: Tensor }, chain: readonly Wrapper[]): void {
  if (chain.some((wrapper) => ((wrapper as { dropout?: number }).dropout ?? 0) > 0))
    refuse(
      `a merged weight has no dropout, and the adapter on '${path}' has`,
      'Set lora_dropout: 0, or use over: base',
    );
  if (!bias && chain.some((wrapper) => (wrapper as { lora_bias?: Tensor }).lora_bias))
    refuse(
      `a merged layer has the bias of the base's, and '${path}' has none to which lora_bias is added`,
      'Set lora_bias: false, or use over: base',
    );
}

/**
 * Scales that begin at the range of a layer's weights (LSQ, arXiv 1902.08153); undefined where they are not trained. A table of
 * embeddings has none, nor the head that shares it: both are rounded alike.
 */
function learnedScales(model: Model, layer: ReturnType<typeof layerUnder>, rounding: Rounding, config: QatConfig) {
  const { quantization } = rounding;
  if (!config.learned_range || !('inFeatures' in layer) || !isIntegerFormat(quantization.format)) return undefined;
  const { embeddings } = model.sites;
  if (embeddings && layerUnder(moduleAt(model.root, embeddings)).weight === layer.weight) return undefined;
  return trainable(() => ops.clampMin(integersOf(layer.denseWeight(), quantization).scales, 1e-9));
}

/** Returns how the module at a path is rounded, and what does it. */
function partsAt(
  model: Model,
  config: QatConfig,
  path: string,
  format: WeightFormat,
  state: Switch,
): { rounding: Rounding; parts: Part[] } {
  const module = moduleAt(model.root, path) as LinearLayer | Table;
  const layer = layerUnder(module);
  const chain = chainOf(module);
  const quantization = quantizationOf(config, format);
  const { requiresGrad: isTrained } = layer.weight;
  if (isTrained && config.over === 'base')
    refuse(`over: base rounds a frozen weight, and '${path}' is trained`, 'Leave out over');
  if (config.over === 'base' && ownLayerWeight(layer).weight !== layer.weight && !roundedLayers.has(layer))
    refuse(
      `over: base rounds the base's own weight, and another adapter changes that of '${path}'`,
      'Leave out over, or init_lora_weights: PiSSA, OLoRA and LoftQ change the base that they train on',
    );
  const isSum = isTrained || (config.over === 'merged' && chain.length > 0);
  if (isSum) requireMergeable(path, layer as { bias?: Tensor }, chain);
  if (layer.format >= 0 && (isSum || config.learned_range))
    refuse(
      `the weight of '${path}' is packed, and what is rounded is its sum with an update`,
      'Load the model with quantize: none, or use over: base',
    );
  const rounded = isRounded(layer, path, quantization);
  const scales = learnedScales(model, layer, { quantization }, config);
  const { activation } = config;
  const rounding: Rounding = {
    quantization,
    ...(scales && { learned: scales }),
    ...(activation && { activation }),
    ...(config.over === 'base' && { ofBase: true as const }),
  };
  const roundInputs = inputRoundingOf(config, format);
  if (!isSum && !scales) {
    const change: Part[] = rounded ? [] : [{ path, layer, change: roundingFold(model.kernels, rounding) }];
    const inputs: Part[] =
      roundInputs && 'inFeatures' in layer ? [{ path, wrapper: new RoundedInputs(layer, roundInputs, state) }] : [];
    return { rounding, parts: [...change, ...inputs] };
  }
  const wrapper =
    'inFeatures' in layer
      ? new RoundedLinear(module as LinearLayer, rounding, roundInputs, state)
      : new RoundedTable(module as Table, rounding, model.kernels, state);
  return { rounding, parts: [{ path, wrapper }] };
}

export const qat: Method<QatConfig> = {
  name: 'qat',
  writes: 'settings',
  config: qatConfig,
  trainingOnly: ['start_step'],

  attach(model, config): Adapter {
    requireFields(config);
    const byPath = formatsByPath(model, config);
    requireWidthsOf(model, config, byPath);
    const state: Switch = { enabled: true };
    const roundings = new Map<string, Rounding>();
    const parameters = new Map<string, Tensor>();
    const parts: Part[] = [];
    try {
      for (const [path, format] of byPath) {
        const { rounding, parts: ofPath } = partsAt(model, config, path, format, state);
        roundings.set(path, rounding);
        if (rounding.learned) parameters.set(`${path}.weight_scale`, rounding.learned);
        parts.push(...ofPath);
      }
    } catch (cause) {
      for (const tensor of parameters.values()) tensor.dispose();
      throw cause;
    }
    return attached(model, config, { parts, parameters, roundings, state });
  },
};
