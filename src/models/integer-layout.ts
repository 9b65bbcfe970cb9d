/**
 * Weights as integers in a safetensors directory, in the layout `pack-quantized` of compressed-tensors, which vLLM and
 * transformers read too: for a weight [out, in] of b bits
 * - `X.weight_packed` int32 [out, ⌈in·b/32⌉]: codes + 2^(b−1) as a stream of bits, the lowest first, each row from a new word
 * - `X.weight_scale` float32 [out, groups]
 * - `X.weight_zero_point` int32 [⌈out·b/32⌉, groups], only where codes are not symmetric: packed in the same way, along columns
 * - `X.weight_shape` int64 [2]: out, in
 * and the value is (code − zero point) · scale. `quantization_config` of config.json names bits and groups.
 * Source: compressed-tensors 0.20 `compressors/pack_quantized`, `quantization/quant_args.py`.
 */
import { GraftError } from '../base/index.ts';
import type { TensorToWrite, WeightEntry, WeightSource } from '../io/index.ts';
import type { Rounding } from '../nn/index.ts';
import {
  formats,
  type IntegerFormat,
  type IntegerWeight,
  integerFormats,
  integersOf,
  packIntegers,
  type Quantization,
} from '../quant/index.ts';
import { type DType, dtypes, host, ops, scoped, Tensor, useDevice } from '../tensor/index.ts';

const suffixes = { packed: '_packed', scale: '_scale', zeroPoint: '_zero_point', shape: '_shape' } as const;

/** Packs codes of `bits` bits, which begin at −2^(bits−1), as 32-bit words; each row begins with a new word. */
function packCodes(codes: Int8Array, rows: number, bits: number): Uint8Array {
  const width = codes.length / rows;
  const rowBytes = 4 * Math.ceil((width * bits) / 32);
  const bytes = new Uint8Array(rows * rowBytes);
  const offset = 2 ** (bits - 1);
  for (let row = 0; row < rows; row++) {
    let [word, filled, at] = [0, 0, row * rowBytes];
    for (let i = row * width; i < (row + 1) * width; i++) {
      word |= (codes[i]! + offset) << filled;
      for (filled += bits; filled >= 8; filled -= 8) {
        bytes[at++] = word & 255;
        word >>= 8;
      }
    }
    if (filled > 0) bytes[at] = word;
  }
  return bytes;
}

/** The inverse of `packCodes`. */
function unpackCodes(bytes: Uint8Array, rows: number, width: number, bits: number): Int8Array {
  const codes = new Int8Array(rows * width);
  const rowBytes = bytes.length / rows;
  const [offset, mask] = [2 ** (bits - 1), 2 ** bits - 1];
  for (let row = 0; row < rows; row++) {
    let [word, filled, at] = [0, 0, row * rowBytes];
    for (let i = row * width; i < (row + 1) * width; i++) {
      for (; filled < bits; filled += 8) word |= bytes[at++]! << filled;
      codes[i] = (word & mask) - offset;
      word >>= bits;
      filled -= bits;
    }
  }
  return codes;
}

/** [rows, columns] → [columns, rows] */
function transposedCodes(codes: Int8Array, rows: number): Int8Array {
  const columns = codes.length / rows;
  const result = new Int8Array(codes.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) result[column * rows + row] = codes[row * columns + column]!;
  return result;
}

/**
 * Returns the tensors that hold a weight as integers. They are computed when they are written.
 * @param name the weight's key
 * @param quantization with scales, where these are given and not computed
 * @param make returns the weight, float32 [out, in]
 */
export function integerTensors(
  name: string,
  [out, width]: readonly [number, number],
  { learned, ...quantization }: Rounding['quantization'] & Pick<Rounding, 'learned'>,
  make: () => Tensor,
): TensorToWrite[] {
  const { bits } = integerFormats[quantization.format as IntegerFormat];
  const groups = width / (quantization.groupSize ?? width);
  const bytesOf = (take: (integers: IntegerWeight) => Uint8Array) => () => {
    let bytes = new Uint8Array();
    scoped(() => {
      bytes = new Uint8Array(take(integersOf(make(), quantization, learned)));
      return undefined;
    });
    return bytes;
  };
  const int32 = (suffix: string, shape: number[], bytes: () => Uint8Array): TensorToWrite => ({
    name: name + suffix,
    dtype: 'int32',
    shape,
    bytes,
  });
  const words = (count: number) => Math.ceil((count * bits) / 32);
  const zeroPoints = (integers: IntegerWeight) =>
    packCodes(transposedCodes(integers.zeroPoints.data() as Int8Array, out), groups, bits);
  return [
    int32(
      suffixes.packed,
      [out, words(width)],
      bytesOf(({ codes }) => packCodes(codes.data() as Int8Array, out, bits)),
    ),
    {
      name: name + suffixes.scale,
      dtype: 'float32',
      shape: [out, groups],
      bytes: bytesOf(({ scales }) => scales.bytes()),
    },
    ...(quantization.symmetric === false
      ? [
          int32(
            suffixes.zeroPoint,
            [words(out), groups],
            bytesOf((integers) => columnsOf(zeroPoints(integers), groups)),
          ),
        ]
      : []),
    {
      name: name + suffixes.shape,
      dtype: 'int64',
      shape: [2],
      bytes: new Uint8Array(BigInt64Array.of(BigInt(out), BigInt(width)).buffer),
    },
  ];
}

/** Words [groups, words] as the file has them, [words, groups]. */
function columnsOf(bytes: Uint8Array, groups: number): Uint8Array {
  const words = new Int32Array(bytes.buffer, 0, bytes.length / 4);
  const result = new Int32Array(words.length);
  const count = words.length / groups;
  for (let group = 0; group < groups; group++)
    for (let i = 0; i < count; i++) result[i * groups + group] = words[group * count + i]!;
  return new Uint8Array(result.buffer);
}

interface Scheme {
  readonly num_bits: number;
  readonly type: string;
  readonly symmetric?: boolean;
  readonly strategy?: string;
  readonly group_size?: number | null;
  readonly dynamic?: unknown;
}

/**
 * Returns `quantization_config` of config.json.
 * @param quantized the layers that are written as integers, by path
 * @param linear paths of all linear layers
 */
export function integerConfig(
  quantized: ReadonlyMap<string, Quantization>,
  linear: readonly string[],
): Record<string, unknown> {
  const schemes = new Map<string, string[]>();
  for (const [path, { format, groupSize, symmetric = true }] of quantized) {
    const weights: Scheme = {
      num_bits: integerFormats[format as IntegerFormat].bits,
      type: 'int',
      symmetric,
      ...(groupSize === undefined ? { strategy: 'channel' } : { strategy: 'group', group_size: groupSize }),
      dynamic: false,
    };
    const key = JSON.stringify(weights);
    schemes.set(key, [...(schemes.get(key) ?? []), path]);
  }
  const ignore = linear.filter((path) => !quantized.has(path));
  const isAllLinear = schemes.size === 1 && [...quantized.keys()].every((path) => linear.includes(path));
  const groups = [...schemes].map(([weights, paths], i) => [
    `group_${i}`,
    {
      targets: isAllLinear ? ['Linear'] : paths,
      weights: JSON.parse(weights) as Scheme,
      input_activations: null,
      output_activations: null,
    },
  ]);
  return {
    quant_method: 'compressed-tensors',
    format: 'pack-quantized',
    quantization_status: 'compressed',
    config_groups: Object.fromEntries(groups),
    ignore,
    kv_cache_scheme: null,
  };
}

/** A weight that a file holds as integers, and how it is presented. */
interface Presented {
  readonly entry: WeightEntry;
  readonly format: IntegerFormat;
  readonly groups: number;
}

/**
 * Returns the source with each weight of integers as one tensor: in blocks, where its groups are whole blocks, else as float32;
 * and how these were rounded, by their names.
 * @throws GraftError 'input' for what the layout can say and Graft does not compute
 */
export function withIntegers(
  source: WeightSource,
  config: Readonly<Record<string, unknown>>,
): { source: WeightSource; integers: ReadonlyMap<string, Quantization> } {
  const names = [...source.entries.keys()].filter((name) => name.endsWith(`weight${suffixes.packed}`));
  if (names.length === 0) return { source, integers: new Map() };
  const schemeOf = schemesIn(config.quantization_config);
  const presented = new Map<string, Presented>();
  const integers = new Map<string, Quantization>();
  const entries = new Map(source.entries);
  for (const packedName of names) {
    const name = packedName.slice(0, -suffixes.packed.length);
    const { num_bits: bits, strategy } = schemeOf(name.slice(0, -'.weight'.length));
    const format = `int${bits}` as IntegerFormat;
    const scale = source.entries.get(name + suffixes.scale);
    const shape = shapeOf(source, name);
    if (scale?.shape.length !== 2 || scale.shape[0] !== shape[0] || shape[1] % scale.shape[1]! !== 0)
      throw new GraftError('input', `${name}${suffixes.scale} is missing, or does not fit ${packedName}`);
    const expected = [shape[0], Math.ceil((shape[1] * bits) / 32)];
    const stored = source.entries.get(packedName)!;
    if (stored.format !== 'int32' || stored.shape.join() !== expected.join())
      throw new GraftError(
        'input',
        `${packedName} is ${stored.format} [${stored.shape.join(', ')}], and ${bits} bits of [${shape.join(', ')}] take int32 [${expected.join(', ')}]`,
      );
    const groups = scale.shape[1]!;
    const { packed } = integerFormats[format];
    const { blockElements, blockBytes } = formats[packed];
    const isBlocks = (shape[1] / groups) % blockElements === 0;
    const bytes = isBlocks ? ((shape[0] * shape[1]) / blockElements) * blockBytes : 4 * shape[0] * shape[1];
    const entry: WeightEntry = { name, shape, format: isBlocks ? packed : 'float32', bytes };
    for (const suffix of Object.values(suffixes)) entries.delete(name + suffix);
    entries.set(name, entry);
    presented.set(name, { entry, format, groups });
    const groupSize = strategy === 'channel' ? undefined : shape[1] / groups;
    integers.set(name, { format, groupSize, symmetric: !source.entries.has(name + suffixes.zeroPoint) });
  }
  const joined: WeightSource = {
    path: source.path,
    metadata: source.metadata,
    entries,
    read(name, into, from) {
      const weight = presented.get(name);
      if (weight) readRows(source, weight, into, from ?? 0);
      else source.read(name, into, from);
    },
    map: (name, shape, dtype) => (presented.has(name) ? undefined : source.map?.(name, shape, dtype)),
    [Symbol.dispose]: () => source[Symbol.dispose](),
  };
  return { source: joined, integers };
}

/** Returns what gives the scheme of a layer. */
function schemesIn(raw: unknown): (path: string) => Scheme {
  const refuse = (problem: string) =>
    new GraftError('input', `quantization_config ${problem}`, {
      hint: 'Graft reads integers of 2 to 8 bits in the layout pack-quantized of compressed-tensors (docs/quantize.md)',
    });
  const config = (raw ?? {}) as Record<string, unknown>;
  if (config.quant_method !== 'compressed-tensors' || config.format !== 'pack-quantized')
    throw refuse(`has the method ${String(config.quant_method)} and the format ${String(config.format)}`);
  if (config.kv_cache_scheme) throw refuse('quantises keys and values (kv_cache_scheme)');
  const groups = Object.values((config.config_groups ?? {}) as Record<string, Record<string, unknown>>);
  for (const group of groups) {
    const weights = group.weights as Scheme | null;
    if (group.input_activations || group.output_activations) throw refuse('quantises activations');
    if (weights?.type !== 'int' || !(weights.num_bits >= 2 && weights.num_bits <= 8))
      throw refuse(`has weights of the type ${weights?.type} with ${weights?.num_bits} bits`);
  }
  const matches = (target: string, path: string) =>
    target === path || (target.startsWith('re:') && new RegExp(`^(?:${target.slice(3)})`).test(path));
  return (path) => {
    const targetsOf = (group: Record<string, unknown>) => group.targets as string[];
    const group =
      groups.find((candidate) => targetsOf(candidate).some((target) => matches(target, path))) ??
      groups.find((candidate) => targetsOf(candidate).includes('Linear'));
    if (!group) throw refuse(`names no group for ${path}`);
    return group.weights as Scheme;
  };
}

function shapeOf(source: WeightSource, name: string): readonly [number, number] {
  const entry = source.entries.get(name + suffixes.shape);
  if (entry?.format !== 'int64' || entry.bytes !== 16)
    throw new GraftError('input', `${name}${suffixes.shape} is missing, or is not two int64 numbers`);
  const shape = new BigInt64Array(2);
  source.read(entry.name, new Uint8Array(shape.buffer));
  const [out, width] = [Number(shape[0]), Number(shape[1])];
  if (out > 0 && width > 0 && Number.isSafeInteger(out * width)) return [out, width];
  throw new GraftError('input', `${name}${suffixes.shape} is [${shape.join(', ')}]`);
}

/** Fills `into` with whole rows of a weight, in the form in which it is presented. */
function readRows(source: WeightSource, { entry, format, groups }: Presented, into: Uint8Array, from: number): void {
  const { name, shape, bytes } = entry;
  const [out, width] = shape as [number, number];
  const rowBytes = bytes / out;
  const [first, count] = [from / rowBytes, into.length / rowBytes];
  const { bits } = integerFormats[format];
  const rowsOf = (suffix: string): Uint8Array => {
    const stored = source.entries.get(name + suffix)!;
    const rows = new Uint8Array((stored.bytes / out) * count);
    source.read(name + suffix, rows, (stored.bytes / out) * first);
    return rows;
  };
  using _ = useDevice(host);
  scoped(() => {
    const codes = Tensor.from(unpackCodes(rowsOf(suffixes.packed), count, width, bits), [count, width]);
    const scaleType = source.entries.get(name + suffixes.scale)!.format as DType;
    const stored = Tensor.empty([count, groups], scaleType);
    stored.memory().set(rowsOf(suffixes.scale));
    const scales = dtypes[scaleType] === dtypes.float32 ? stored : ops.toCopy(stored, { dtype: 'float32' });
    const zeroPoints = Tensor.from(zeroPointsOf(source, name, bits, out, groups, first, count), [count, groups]);
    if (entry.format !== 'float32') {
      into.set(packIntegers({ codes, scales, zeroPoints }, format).weight.bytes());
      return undefined;
    }
    const grouped = ops.view(ops.toCopy(codes, { dtype: 'float32' }), [count, groups, width / groups]);
    const zero = ops.unsqueeze(ops.toCopy(zeroPoints, { dtype: 'float32' }), 2);
    into.set(ops.mul(ops.sub(grouped, zero), ops.unsqueeze(scales, 2)).bytes());
    return undefined;
  });
}

/** Zero points of some rows [count, groups]; zeros where the codes are symmetric. */
function zeroPointsOf(
  source: WeightSource,
  name: string,
  bits: number,
  out: number,
  groups: number,
  first: number,
  count: number,
): Int8Array {
  const entry = source.entries.get(name + suffixes.zeroPoint);
  if (!entry) return new Int8Array(count * groups);
  const words = new Uint8Array(entry.bytes);
  source.read(entry.name, words);
  // The inverse of `columnsOf` is `columnsOf` with the other count.
  const byGroup = columnsOf(words, entry.bytes / 4 / groups);
  const codes = transposedCodes(unpackCodes(byGroup, groups, out, bits), groups);
  return codes.slice(first * groups, (first + count) * groups);
}
