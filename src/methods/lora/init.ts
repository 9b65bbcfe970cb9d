/**
 * Initial values of A and B, and what they change in the base. Besides PEFT's random values:
 * PiSSA (arXiv 2404.02948): s·BA is the best approximation of rank r of W, and the frozen weight is W − s·BA;
 * OLoRA (arXiv 2406.01775): the same with B, A the first r columns and rows of W = QR;
 * LoftQ (arXiv 2310.08659): on a quantised base Q(W), s·BA is the best approximation of the error W − Q(W).
 */
import { GraftError } from '../../base/index.ts';
import type { Linear, Model } from '../../nn/index.ts';
import { quantizedBits } from '../../quant/index.ts';
import { detachFromScopes, Generator, mixSeed, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import { type AttachContext, ownLayerWeight, ownWeight } from '../shared/index.ts';
import { baseTensors, type InitialUpdate, Requantized, Residual } from './base-changes.ts';
import type { LoraConfig } from './config.ts';
import { loftq, randomizedSvd, truncatedQr, truncatedSvd } from './decompose.ts';

/** The update of one layer: of a linear layer [outFeatures, inFeatures], or of an embedding of `inFeatures` rows. */
export interface UpdateShape {
  readonly path: string;
  readonly rank: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** True for an embedding. */
  readonly table: boolean;
  readonly scaling: number;
}

/** Returns the initialisation that is computed from the base's weight; undefined for random values. */
const fromWeight = (init: LoraConfig['init_lora_weights']) =>
  typeof init === 'string' && init !== 'gaussian' ? init : undefined;

/** Checks that A and B can be computed from the base's weights, before anything is changed. @throws GraftError 'usage' */
export function requireInit(
  model: Model,
  config: LoraConfig,
  shapes: readonly UpdateShape[],
  layers: readonly Linear[],
): void {
  const init = fromWeight(config.init_lora_weights);
  if (!init) return;
  const place = 'init_lora_weights';
  shapes.forEach(({ path, rank, inFeatures, outFeatures, table }, i) => {
    if (table) return;
    const { format } = ownLayerWeight(layers[i]!);
    const maxRank = Math.min(inFeatures, outFeatures);
    if (rank > maxRank) {
      throw new GraftError('usage', `r is ${rank}, and '${path}' [${outFeatures}, ${inFeatures}] has rank ${maxRank}`, {
        place,
        hint: `Set r to ${maxRank} or less, or leave the module out of target_modules`,
      });
    }
    if (init !== 'loftq') {
      if (format < 0) return;
      throw new GraftError('usage', `'${path}' is quantised, and ${init} needs dense weights`, {
        place,
        hint: 'Load the model with quantize: none, or use init_lora_weights: loftq',
      });
    }
    const bits = quantizedBits(format);
    const loftqBits = config.loftq_config?.loftq_bits ?? bits;
    if (bits === undefined || loftqBits !== bits)
      throw new GraftError('usage', `LoftQ needs a base of ${loftqBits ?? 4} bits, and '${path}' is not quantised so`, {
        place,
        hint: 'Load the model with quantize: nf4 (4 bits) or int8 (8 bits)',
      });
    if (!model.stored) {
      throw new GraftError('usage', 'LoftQ needs the checkpoint of this model, which cannot be read again', { place });
    }
  });
}

/**
 * Returns the initial update of every layer. The tensors outlive every scope; A and B are trainable.
 * @throws GraftError 'usage' where LoftQ has no quantisation error to correct; nothing is changed
 */
export function initialUpdates(
  model: Model,
  layers: readonly Linear[],
  config: LoraConfig,
  shapes: readonly UpdateShape[],
  seed: number,
  context: AttachContext = {},
): InitialUpdate[] {
  const updates: InitialUpdate[] = [];
  try {
    shapes.forEach((shape, i) => {
      updates.push(initialUpdate(model, layers[i]!, config, shape, mixSeed(seed, i), context));
    });
    return updates;
  } catch (cause) {
    for (const update of updates) {
      for (const tensor of [update.a, update.b, ...baseTensors(update)]) tensor.dispose();
    }
    throw cause;
  }
}

function initialUpdate(
  model: Model,
  layer: Linear,
  config: LoraConfig,
  shape: UpdateShape,
  seed: bigint,
  { loading, shapesOnly }: AttachContext,
): InitialUpdate {
  const { path, rank, table, scaling } = shape;
  const init = table ? undefined : fromWeight(config.init_lora_weights);
  using s = scope();
  const keep = (tensor: Tensor, trained = true): Tensor => {
    detachFromScopes(s.keep(tensor));
    tensor.requiresGrad = trained;
    return tensor;
  };
  const iterations = config.loftq_config?.loftq_iter ?? 1;
  if (loading && (init === undefined || (init === 'loftq' && iterations === 1))) {
    const { rank, inFeatures, outFeatures } = shape;
    // A sketch of the model computes with them, so there they are numbers; to write zeros takes a third of the time of loading.
    const unread = shapesOnly ? ops.zeros : ops.empty;
    return { a: keep(unread([rank, inFeatures])), b: keep(unread([outFeatures, rank])) };
  }
  using generator = new Generator(seed);
  if (init === undefined) {
    const [a, b] = noGrad(() => randomUpdate(config, shape, generator));
    return { a: keep(a), b: keep(b) };
  }
  return noGrad(() => {
    if (init === 'loftq') {
      const { weight, format } = ownLayerWeight(layer);
      if (shapesOnly) {
        const [a, b] = randomUpdate(config, shape, generator);
        return { a: keep(a), b: keep(b), baseChange: new Requantized(keep(ops.clone(weight), false), format) };
      }
      const { a, b, quantized, error } = loftq(model.stored!(path, layer), weight, format, rank, scaling, iterations);
      if (error === 0)
        throw new GraftError('usage', `'${path}' has no quantisation error, so LoftQ has nothing to correct`, {
          place: 'init_lora_weights',
          hint: 'Use init_lora_weights: true',
        });
      if (quantized === weight) return { a: keep(a), b: keep(b) };
      return { a: keep(a), b: keep(b), baseChange: new Requantized(keep(quantized, false), format) };
    }
    const powerIterations = /^pissa_niter_(\d+)$/.exec(init)?.[1];
    const [a, b] = shapesOnly
      ? randomUpdate(config, shape, generator)
      : init === 'olora'
        ? truncatedQr(ownWeight(layer), rank)
        : powerIterations
          ? randomizedSvd(ownWeight(layer), rank, scaling, Number(powerIterations), generator)
          : truncatedSvd(ownWeight(layer), rank, scaling);
    const baseChange = new Residual(keep(ops.clone(a), false), keep(ops.clone(b), false), scaling);
    return { a: keep(a), b: keep(b), baseChange };
  });
}

/** Returns PEFT's random A [R, in] and B [out, R]: one of the two is zero, unless `init_lora_weights` is false. */
function randomUpdate(
  { init_lora_weights: init }: LoraConfig,
  { rank, inFeatures, outFeatures, table }: UpdateShape,
  generator: Generator,
): readonly [a: Tensor, b: Tensor] {
  const normal = (shape: number[], std: number) => ops.mulScalar(ops.randn(shape, { generator }), std);
  const uniform = (shape: number[], bound: number) => ops.uniform_(ops.zeros(shape), -bound, bound, { generator });
  const [aShape, bShape] = [
    [rank, inFeatures],
    [outFeatures, rank],
  ] as [number[], number[]];
  // Of an embedding, A is the zero one: its columns are looked up, not multiplied.
  if (table) return [init === false ? normal(aShape, 1) : ops.zeros(aShape), normal(bShape, 1)];
  const a = init === 'gaussian' ? normal(aShape, 1 / rank) : uniform(aShape, inFeatures ** -0.5);
  return [a, init === false ? uniform(bShape, rank ** -0.5) : ops.zeros(bShape)];
}
