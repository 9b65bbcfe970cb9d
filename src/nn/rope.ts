import { GraftError } from '../base/index.ts';
import { type DType, detachFromScopes, ops, Tensor } from '../tensor/index.ts';
import type { BlockInput } from './ports.ts';

/**
 * The rotary position embeddings of a model (arXiv 2104.09864): for each pair of a head's elements the angle by which it is
 * rotated at each position. Some kinds of scaling have other angles for longer rows.
 */
export interface Rope {
  /** Factor of all cosines and sines. */
  readonly attentionFactor: number;
  /** Returns the variant that a row of `length` tokens has: rows of one variant have the same angles. */
  variantOf(length: number): number;
  /** Returns the angle per position of each pair [pairs] of a variant, in float32 as transformers computes it. */
  frequencies(variant: number): Float32Array;
}

type Parameters = Readonly<Record<string, unknown>>;

/** The fields of a `config.json` that decide the rotation. */
export interface RopeFields {
  readonly max_position_embeddings: number;
  readonly original_max_position_embeddings?: unknown;
  readonly rope_theta?: number | null | undefined;
  /** The share of a head's elements that is rotated, from its first. */
  readonly partial_rotary_factor?: number | null | undefined;
  readonly rope_scaling?: Parameters | null | undefined;
  readonly rope_parameters?: Parameters | null | undefined;
}

/** The parameters that each kind of scaling reads, besides those that all have. */
const parametersOf = {
  default: [],
  linear: ['factor'],
  dynamic: ['factor'],
  proportional: ['factor'],
  llama3: ['factor', 'low_freq_factor', 'high_freq_factor'],
  yarn: ['factor', 'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim', 'truncate'],
  longrope: ['factor', 'attention_factor', 'short_factor', 'long_factor'],
} as const;
type RopeType = keyof typeof parametersOf;

/** Read for every kind, or a remark on the model's training (`finetuned`). */
const commonParameters = [
  'rope_type',
  'type',
  'rope_theta',
  'partial_rotary_factor',
  'original_max_position_embeddings',
  'finetuned',
];

/** The name that the first Phi-3 files have for longrope. */
const otherNames: Readonly<Record<string, RopeType>> = { su: 'longrope' };

const defaultTheta = 10_000;

const isEmpty = (parameters: Parameters | null | undefined) => !parameters || Object.keys(parameters).length === 0;

/**
 * Returns the parameters that count: where a config has both, transformers 5 goes by `rope_scaling` alone.
 * @throws GraftError 'input' where theta or the rotated share would so be another than the one that `rope_parameters` names
 */
function parametersIn({ rope_scaling, rope_parameters, ...fields }: RopeFields): Parameters {
  if (isEmpty(rope_scaling)) return rope_parameters ?? {};
  const fallback = { rope_theta: defaultTheta, partial_rotary_factor: 1 };
  for (const key of ['rope_theta', 'partial_rotary_factor'] as const) {
    const value = rope_scaling![key] ?? fields[key] ?? fallback[key];
    const other = rope_parameters?.[key] ?? value;
    if (other === value) continue;
    throw new GraftError(
      'input',
      `rope_scaling takes the place of rope_parameters, and so ${key} is ${String(value)} instead of ${String(other)}`,
      { hint: `Write ${key} into rope_scaling, or put all parameters into rope_parameters and delete rope_scaling` },
    );
  }
  return rope_scaling!;
}

/** Reads the parameters of one kind of scaling. */
class ParameterReader {
  readonly type: RopeType;
  readonly #parameters: Parameters;

  constructor(parameters: Parameters) {
    const name = String(parameters.rope_type ?? parameters.type ?? 'default');
    const type = otherNames[name] ?? name;
    if (!Object.hasOwn(parametersOf, type)) {
      const known = Object.keys(parametersOf).join(', ');
      throw new GraftError('input', `rope scaling of type '${name}' is not supported (${known} are)`);
    }
    this.type = type as RopeType;
    this.#parameters = parameters;
    const read: readonly string[] = [...commonParameters, ...parametersOf[this.type]];
    const unread = Object.keys(parameters).filter((key) => !read.includes(key) && parameters[key] != null);
    if (unread.length === 0) return;
    throw new GraftError('input', `rope scaling of type '${name}' does not read ${unread.join(', ')}`, {
      hint: 'Delete what the type does not have, or correct rope_type',
    });
  }

  /** Returns a positive number; undefined where it is missing or null. */
  optional(key: string): number | undefined {
    const value = this.#parameters[key];
    if (value === undefined || value === null) return undefined;
    if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value;
    throw new GraftError('input', `the rope parameter '${key}' is ${JSON.stringify(value)}, not a positive number`);
  }

  number(key: string): number {
    const value = this.optional(key);
    if (value === undefined) throw new GraftError('input', `the rope parameter '${key}' is missing`);
    return value;
  }

  /** Returns `factor`, or where it is null the ratio of the two context lengths, as DeepSeek's configs mean it. */
  factorOr(ratio: number): number {
    return this.#parameters.factor === null ? ratio : this.number('factor');
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.#parameters[key] ?? fallback;
    if (typeof value === 'boolean') return value;
    throw new GraftError('input', `the rope parameter '${key}' is ${JSON.stringify(value)}, not true or false`);
  }

  /** Returns a list of `count` positive numbers. */
  list(key: string, count: number): readonly number[] {
    const value = this.#parameters[key];
    if (!Array.isArray(value)) throw new GraftError('input', `the rope parameter '${key}' is missing`);
    if (value.length === count && value.every((x) => typeof x === 'number' && x > 0)) return value;
    throw new GraftError('input', `the rope parameter '${key}' is not a list of ${count} positive numbers`);
  }
}

/** The kind of scaling in a `config.json`, with what all kinds have. */
export interface RopeScaling {
  readonly type: RopeType;
  readonly theta: number;
  /** Context length before it was extended. */
  readonly original: number;
  /** Those of the kind, as the config has them. */
  readonly parameters: Parameters;
}

/** Returns the scaling that a `config.json` describes. @throws GraftError 'input' as `ropeOf` does */
export function ropeScalingOf(fields: RopeFields): RopeScaling {
  const parameters = parametersIn(fields);
  const reader = new ParameterReader(parameters);
  const theta = reader.optional('rope_theta') ?? fields.rope_theta ?? defaultTheta;
  const original = Number(
    fields.original_max_position_embeddings ??
      reader.optional('original_max_position_embeddings') ??
      fields.max_position_embeddings,
  );
  return { type: reader.type, theta, original, parameters };
}

const f = Math.fround;

/** θ^(2i/dim) for each pair. */
const periods = (theta: number, dim: number, pairs = dim / 2): Float32Array =>
  Float32Array.from({ length: pairs }, (_, i) => theta ** f((2 * i) / dim));

const fixed = (frequencies: Float32Array, attentionFactor = 1): Rope => ({
  attentionFactor,
  variantOf: () => 0,
  frequencies: () => frequencies,
});

/**
 * Returns the rotation that a `config.json` describes: `rope_parameters` of transformers 5, or `rope_theta` and
 * `rope_scaling`. Source of all kinds: transformers 5.23 `modeling_rope_utils.py`.
 * @param headDim size D of a head
 * @param rotatesPart whether the model can rotate a part of each head
 * @throws GraftError 'input' for an unsupported kind of scaling, and a parameter that is missing or read by nobody
 */
export function ropeOf(fields: RopeFields, headDim: number, rotatesPart = false): Rope {
  const { theta, original, parameters } = ropeScalingOf(fields);
  const reader = new ParameterReader(parameters);
  const share = reader.optional('partial_rotary_factor') ?? fields.partial_rotary_factor ?? 1;
  const dim = Math.trunc(headDim * share);
  if (share !== 1 && !rotatesPart && reader.type !== 'proportional') {
    throw new GraftError('input', `partial_rotary_factor is ${share}, and this model rotates whole heads`);
  }
  if (dim < 2 || dim % 2 !== 0 || dim > headDim) {
    throw new GraftError('input', `partial_rotary_factor ${share} rotates ${dim} of a head's ${headDim} elements`, {
      hint: 'Only an even number of elements can be rotated, because they are rotated in pairs',
    });
  }
  const maxPositions = fields.max_position_embeddings;
  const rope = kinds[reader.type]({ reader, theta, dim, headDim, share, maxPositions, original });
  if (rope.frequencies(rope.variantOf(1)).every(Number.isFinite) && rope.attentionFactor > 0) return rope;
  throw new GraftError('input', `the rope parameters give angles that are not numbers: ${JSON.stringify(parameters)}`);
}

interface Scaled {
  readonly reader: ParameterReader;
  readonly theta: number;
  /** Elements of a head that are rotated. */
  readonly dim: number;
  readonly headDim: number;
  readonly share: number;
  /** Positions that the model has, and those before its context was extended. */
  readonly maxPositions: number;
  readonly original: number;
}

const kinds: Readonly<Record<RopeType, (scaled: Scaled) => Rope>> = {
  default: ({ theta, dim }) => fixed(periods(theta, dim).map((period) => 1 / period)),

  linear({ reader, theta, dim }) {
    const factor = reader.number('factor');
    return fixed(periods(theta, dim).map((period) => f(1 / period) / factor));
  },

  /** The whole head, whose last pairs are not rotated. */
  proportional({ reader, theta, headDim, share }) {
    const factor = reader.optional('factor') ?? 1;
    const rotated = periods(theta, headDim, Math.floor((share * headDim) / 2)).map((period) => f(1 / period) / factor);
    const frequencies = new Float32Array(headDim / 2);
    frequencies.set(rotated);
    return fixed(frequencies);
  },

  llama3({ reader, theta, dim, original }) {
    const { factor, low, high } = {
      factor: reader.number('factor'),
      low: reader.number('low_freq_factor'),
      high: reader.number('high_freq_factor'),
    };
    return fixed(periods(theta, dim).map((period) => llama3Frequency(1 / period, { factor, low, high, original })));
  },

  /** θ grows with a row that is longer than the model's positions. */
  dynamic({ reader, theta, dim, maxPositions }) {
    const factor = reader.number('factor');
    return {
      attentionFactor: 1,
      variantOf: (length) => Math.max(length, maxPositions),
      frequencies(length) {
        const base = theta * ((factor * length) / maxPositions - (factor - 1)) ** (dim / (dim - 2));
        return periods(base, dim).map((period) => 1 / period);
      },
    };
  },

  yarn({ reader, theta, dim, maxPositions, original }) {
    const factor = reader.factorOr(maxPositions / original);
    // The pair that makes so many rotations over the original context.
    const pairOf = (rotations: number) =>
      (dim * Math.log(original / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
    const truncate = reader.flag('truncate', true);
    const [fast, slow] = [reader.optional('beta_fast') || 32, reader.optional('beta_slow') || 1];
    const low = Math.max(truncate ? Math.floor(pairOf(fast)) : pairOf(fast), 0);
    let high = Math.min(truncate ? Math.ceil(pairOf(slow)) : pairOf(slow), dim - 1);
    if (low === high) high += 0.001;
    const frequencies = periods(theta, dim).map((period, i) => {
      const ramp = f(Math.min(Math.max((i - low) / (high - low), 0), 1));
      return f(f(1 / f(factor * period)) * ramp) + f(f(1 / period) * f(1 - ramp));
    });
    const scale = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1);
    const [mscale, mscaleAll] = [reader.optional('mscale'), reader.optional('mscale_all_dim')];
    const implied = mscale && mscaleAll ? scale(mscale) / scale(mscaleAll) : scale(1);
    return fixed(frequencies, reader.optional('attention_factor') ?? implied);
  },

  /** One divisor for each pair; others for rows that are longer than the original context. */
  longrope({ reader, theta, dim, maxPositions, original }) {
    const factor = reader.optional('factor') ?? maxPositions / original;
    const implied = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original));
    const [short, long] = [reader.list('short_factor', dim / 2), reader.list('long_factor', dim / 2)];
    return {
      attentionFactor: reader.optional('attention_factor') ?? implied,
      variantOf: (length) => (length > original ? 1 : 0),
      frequencies: (isLong) => periods(theta, dim).map((period, i) => 1 / f(f((isLong ? long : short)[i]!) * period)),
    };
  },
};

/** The parameters of Llama 3.1's scaling; `original` is the context length before it. */
export interface Llama3Scaling {
  readonly factor: number;
  readonly low: number;
  readonly high: number;
  readonly original: number;
}

/** Returns the angle per position that Llama 3.1 has in the place of `frequency`. */
export function llama3Frequency(frequency: number, { factor, low, high, original }: Llama3Scaling): number {
  const w = f(frequency);
  const wavelength = (2 * Math.PI) / w;
  if (wavelength < original / high) return w;
  if (wavelength > original / low) return w / factor;
  const smooth = (original / wavelength - low) / (high - low);
  return (1 - smooth) * (w / factor) + smooth * w;
}

/** The rows of a pass, as far as rotation depends on them. */
type RotatedRows = Pick<BlockInput, 'positions' | 'rowStarts' | 'firstPositions' | 'isContinued'>;

/** The cosines and sines of the first positions, [length, pairs]. */
interface Table {
  readonly length: number;
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** Tables that are kept: dynamic scaling has one for each length of long rows. */
const maxTables = 4;

/** The cosines and sines of positions, in tables that grow when a later position is asked for. */
export class RopeTable {
  readonly #rope: Rope;
  readonly #dtype: DType;
  readonly #tables = new Map<number, Table>();

  constructor(rope: Rope, dtype: DType) {
    this.#rope = rope;
    this.#dtype = dtype;
  }

  /**
   * Returns cos and sin [N, pairs] of every token, each row with the angles of its own length.
   * @throws GraftError 'usage' where a row's angles change with its length and the cached keys have those of a shorter row
   */
  at({ positions, rowStarts, firstPositions, isContinued }: RotatedRows) {
    const lengths = firstPositions.map((first, r) => first + rowStarts[r + 1]! - rowStarts[r]!);
    const variants = lengths.map((length) => this.#rope.variantOf(length));
    firstPositions.forEach((first, r) => {
      if (!isContinued[r] || this.#rope.variantOf(first) === variants[r]) return;
      const hint = `Keep prompt and answer within original_max_position_embeddings (max_position_embeddings for dynamic scaling)`;
      const problem = `a row of ${first} tokens is continued to ${lengths[r]}, where this model's rotary positions change (dynamic or longrope scaling)`;
      throw new GraftError('usage', problem, { hint });
    });
    const [first = 0] = variants;
    if (variants.every((variant) => variant === first)) {
      return this.#select(
        first,
        positions,
        lengths.reduce((a, b) => Math.max(a, b), 0),
      );
    }
    const parts = variants.map((variant, r) =>
      this.#select(variant, ops.narrow(positions, 0, rowStarts[r]!, rowStarts[r + 1]! - rowStarts[r]!), lengths[r]!),
    );
    return [ops.cat(parts.map(([cos]) => cos)), ops.cat(parts.map(([, sin]) => sin))] as const;
  }

  #select(variant: number, positions: Tensor, length: number): readonly [Tensor, Tensor] {
    const { cos, sin } = this.#table(variant, length);
    return [ops.indexSelect(cos, 0, positions), ops.indexSelect(sin, 0, positions)];
  }

  #table(variant: number, minLength: number): Table {
    const existing = this.#tables.get(variant);
    if (existing && existing.length >= minLength) return existing;
    this.#free(variant);
    const [oldest] = this.#tables.keys();
    if (this.#tables.size >= maxTables) this.#free(oldest!);
    const table = this.#make(this.#rope.frequencies(variant), Math.max(minLength, 2 * (existing?.length ?? 0), 256));
    this.#tables.set(variant, table);
    return table;
  }

  #make(frequencies: Float32Array, length: number): Table {
    const half = frequencies.length;
    // The product is rounded to float32 before the cosine, as in transformers: at position 8,000 it matters.
    const numbers = (of: (angle: number) => number) => {
      const values = new Float32Array(length * half);
      for (let p = 0; p < length; p++) {
        for (let i = 0; i < half; i++) {
          values[p * half + i] = of(f(p * frequencies[i]!)) * this.#rope.attentionFactor;
        }
      }
      const tensor = Tensor.from(values, [length, half]);
      return detachFromScopes(this.#dtype === 'float32' ? tensor : ops.toCopy(tensor, { dtype: this.#dtype }));
    };
    return { length, cos: numbers(Math.cos), sin: numbers(Math.sin) };
  }

  #free(variant: number): void {
    const table = this.#tables.get(variant);
    table?.cos.dispose();
    table?.sin.dispose();
    this.#tables.delete(variant);
  }

  dispose(): void {
    for (const variant of [...this.#tables.keys()]) this.#free(variant);
  }
}
