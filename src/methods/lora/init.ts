/**
 * How A and B begin. Besides PEFT's random starts:
 * PiSSA (arXiv 2404.02948): B0A0 is the largest part of rank r of W/s, and W − s·B0A0 is what stays frozen;
 * OLoRA (arXiv 2406.01775): the same with B0, A0 the first r columns and rows of W = QR;
 * LoftQ (arXiv 2310.08659): on a packed base Q(W), B0A0 is the largest part of what packing lost, W − Q(W).
 */
import { GraftError } from '../../base/index.ts';
import type { Linear, Model } from '../../nn/index.ts';
import { quantizedBits } from '../../quant/index.ts';
import { detachFromScopes, Generator, mixSeed, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';
import { type Fold, type LayerWeight, ownLayerWeight, ownWeight } from '../shared/index.ts';
import type { LoraConfig } from './config.ts';
import { alternate, largest, orthogonal, sketched } from './decompose.ts';

/** The update of one layer at its start. */
export interface InitialUpdate {
  readonly a: Tensor;
  readonly b: Tensor;
  /** What the base is changed by while the adapter is on. */
  readonly base?: Residual | Repacked;
}

/** The base without the part that the update begins with. */
export class Residual implements Fold {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly scaling: number;

  constructor(a: Tensor, b: Tensor, scaling: number) {
    this.a = a;
    this.b = b;
    this.scaling = scaling;
  }

  fold({ weight, bias }: LayerWeight, _own: Tensor): LayerWeight {
    return { weight: ops.sub(weight, ops.mulScalar(ops.mm(this.b, this.a), this.scaling)), format: -1, bias };
  }
}

/** The base packed anew: LoftQ after several alternations. */
export class Repacked implements Fold {
  readonly weight: Tensor;
  readonly format: number;

  constructor(weight: Tensor, format: number) {
    this.weight = weight;
    this.format = format;
  }

  fold({ bias }: LayerWeight, _own: Tensor): LayerWeight {
    return { weight: ops.clone(this.weight), format: this.format, bias };
  }
}

export interface UpdateShape {
  readonly path: string;
  readonly rank: number;
  readonly inside: number;
  readonly outside: number;
  readonly table: boolean;
  readonly scaling: number;
}

const startsFrom = (init: LoraConfig['init_lora_weights']) =>
  typeof init === 'string' && init !== 'gaussian' ? init : undefined;

/** @throws GraftError 'usage' where a start from the base's weight cannot be: before anything is changed */
export function requireInit(
  model: Model,
  config: LoraConfig,
  shapes: readonly UpdateShape[],
  layers: readonly Linear[],
): void {
  const start = startsFrom(config.init_lora_weights);
  if (!start) return;
  const place = 'init_lora_weights';
  shapes.forEach(({ path, rank, inside, outside, table }, i) => {
    if (table) return;
    const { format } = ownLayerWeight(layers[i]!);
    if (rank > Math.min(inside, outside))
      throw new GraftError('usage', `'${path}' is ${outside}×${inside}, which has no ${rank} directions`, {
        place,
        hint: `Give r: ${Math.min(inside, outside)} or less, or leave it out of target_modules`,
      });
    if (start !== 'loftq') {
      if (format < 0) return;
      throw new GraftError('usage', `'${path}' is packed, and ${start} takes a part out of its weight`, {
        place,
        hint: 'Load the model with quantize: none, or use init_lora_weights: loftq',
      });
    }
    const bits = quantizedBits(format);
    const wanted = config.loftq_config?.loftq_bits ?? bits;
    if (bits === undefined || wanted !== bits)
      throw new GraftError('usage', `LoftQ makes up for ${wanted ?? 4} bits, and '${path}' is not packed so`, {
        place,
        hint: 'Load the model with quantize: nf4 (4 bits) or int8 (8 bits)',
      });
    if (!model.stored) throw new GraftError('usage', 'the checkpoint of this model cannot be read again', { place });
  });
}

/**
 * The update of every layer, made as `config` says; the tensors outlive every scope, A and B are trainable.
 * @throws GraftError 'usage' where there is nothing to start from; nothing is changed
 */
export function initialUpdates(
  model: Model,
  layers: readonly Linear[],
  config: LoraConfig,
  shapes: readonly UpdateShape[],
  seed: number,
  loading: boolean,
): InitialUpdate[] {
  const starts: InitialUpdate[] = [];
  try {
    shapes.forEach((shape, i) => {
      starts.push(initialUpdate(model, layers[i]!, config, shape, mixSeed(seed, i), loading));
    });
    return starts;
  } catch (cause) {
    for (const start of starts) for (const tensor of [start.a, start.b, ...baseTensors(start)]) tensor.dispose();
    throw cause;
  }
}

/** What a start holds of the base's change. */
export const baseTensors = ({ base }: InitialUpdate): Tensor[] =>
  base === undefined ? [] : base instanceof Residual ? [base.a, base.b] : [base.weight];

function initialUpdate(
  model: Model,
  layer: Linear,
  config: LoraConfig,
  shape: UpdateShape,
  seed: bigint,
  loading: boolean,
): InitialUpdate {
  const { rank, inside, outside, table, scaling } = shape;
  const start = table ? undefined : startsFrom(config.init_lora_weights);
  using s = scope();
  using generator = new Generator(seed);
  const kept = (tensor: Tensor, trained = true): Tensor => {
    detachFromScopes(s.keep(tensor));
    tensor.requiresGrad = trained;
    return tensor;
  };
  const rounds = config.loftq_config?.loftq_iter ?? 1;
  if (start === undefined || (start === 'loftq' && loading && rounds === 1)) {
    const [a, b] = noGrad(() => random(config, rank, inside, outside, table, generator));
    return { a: kept(a), b: kept(b) };
  }
  return noGrad(() => {
    if (start === 'loftq') {
      const { weight, format } = ownLayerWeight(layer);
      const { a, b, held, lost } = alternate(model.stored!(shape.path, layer), weight, format, rank, scaling, rounds);
      if (lost === 0)
        throw new GraftError('usage', `'${shape.path}' lost nothing by packing, so LoftQ has nothing to make up for`, {
          place: 'init_lora_weights',
          hint: 'Use init_lora_weights: true',
        });
      if (held === weight) return { a: kept(a), b: kept(b) };
      return { a: kept(a), b: kept(b), base: new Repacked(kept(held, false), format) };
    }
    const weight = ownWeight(layer);
    const niter = /^pissa_niter_(\d+)$/.exec(start)?.[1];
    const [a, b] =
      start === 'olora'
        ? orthogonal(weight, rank)
        : niter
          ? sketched(weight, rank, scaling, Number(niter), generator)
          : largest(weight, rank, scaling);
    const base = new Residual(kept(ops.clone(a), false), kept(ops.clone(b), false), scaling);
    return { a: kept(a), b: kept(b), base };
  });
}

function random(
  config: LoraConfig,
  rank: number,
  inside: number,
  outside: number,
  table: boolean,
  generator: Generator,
) {
  const normal = (shape: number[], std: number) => ops.mulScalar(ops.randn(shape, { generator }), std);
  const uniform = (shape: number[], bound: number) => ops.uniform_(ops.zeros(shape), -bound, bound, { generator });
  const { init_lora_weights: init } = config;
  const [aShape, bShape] = [
    [rank, inside],
    [outside, rank],
  ];
  // For a table it is A that starts at zero: its columns are picked, not multiplied.
  if (table) return [init === false ? normal(aShape!, 1) : ops.zeros(aShape!), normal(bShape!, 1)] as const;
  const a = init === 'gaussian' ? normal(aShape!, 1 / rank) : uniform(aShape!, inside ** -0.5);
  return [a, init === false ? uniform(bShape!, rank ** -0.5) : ops.zeros(bShape!)] as const;
}
