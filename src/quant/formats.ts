/**
 * The table of number formats, one row for each: no other file in src/ repeats sizes or numbers of formats. Native code unpacks
 * and packs them (native/kernels/blocks.h); formats.test.ts compares the rows with it.
 * Sources: ggml's `ggml.h` (`enum ggml_type`) and `ggml-common.h` (block layouts), llama.cpp's `llama.h` (`enum
 * llama_ftype`; of the K formats, those in which all layers have the same) and `llama-quant.cpp` (tensor_type_fallback); NF4: QLoRA, arXiv 2305.14314, appendix E,
 * packed as bitsandbytes does.
 */
import { type DType, dtypes } from '../tensor/index.ts';

/** A row of the table: the layout of a tensor's elements, in blocks along its last axis. */
export interface NumberFormat {
  /** Elements of a block; 1 for plain element types. */
  readonly blockElements: number;
  /** Bytes of a block, with its scales. */
  readonly blockBytes: number;
  /** Bits of an element, without its share of the scales. */
  readonly bits: number;
  /**
   * The number by which native code knows the format. Weights can then stay in it in memory, and kernels unpack them as they
   * compute. Weights in a format without a number are converted to dense tensors, for which kernels take −1.
   */
  readonly nativeId?: number;
  /** The number of the type in ggml and GGUF files; absent where they have no such type. */
  readonly ggmlType?: number;
  /** The number by which GGUF's `general.file_type` says that most weights of a file have the format. */
  readonly ggufFileType?: number;
  /**
   * The blocks of 8 bits to which llama.cpp rounds the inputs of products with such weights (`vec_dot_type` of ggml-cpu.c; Q8_1, for
   * Q4_1 and Q5_1, is Q8_0 with sums).
   */
  readonly inputs?: 'q8_0' | 'q8_k';
  /** What llama.cpp writes instead where the blocks do not divide a row. */
  readonly fallback?: 'q5_0' | 'q5_1' | 'q8_0' | 'float16';
}

/** Returns the row of 32 integers with a float32 scale and an int8 zero point, which several blocks may have in common. */
const integers = <const B extends number>(bits: B) => ({
  blockElements: 32,
  blockBytes: 4 + 1 + 4 * bits,
  bits,
  nativeId: 100 + bits,
});

/** The formats in which the elements of a block share scales. Native code unpacks all of them. */
const blockFormats = {
  q4_0: {
    blockElements: 32,
    blockBytes: 18,
    bits: 4,
    nativeId: 2,
    ggmlType: 2,
    ggufFileType: 2,
    inputs: 'q8_0',
    fallback: 'float16',
  },
  q4_1: {
    blockElements: 32,
    blockBytes: 20,
    bits: 4,
    nativeId: 3,
    ggmlType: 3,
    ggufFileType: 3,
    inputs: 'q8_0',
    fallback: 'float16',
  },
  q5_0: {
    blockElements: 32,
    blockBytes: 22,
    bits: 5,
    nativeId: 6,
    ggmlType: 6,
    ggufFileType: 8,
    inputs: 'q8_0',
    fallback: 'float16',
  },
  q5_1: {
    blockElements: 32,
    blockBytes: 24,
    bits: 5,
    nativeId: 7,
    ggmlType: 7,
    ggufFileType: 9,
    inputs: 'q8_0',
    fallback: 'float16',
  },
  q8_0: {
    blockElements: 32,
    blockBytes: 34,
    bits: 8,
    nativeId: 8,
    ggmlType: 8,
    ggufFileType: 7,
    inputs: 'q8_0',
    fallback: 'float16',
  },
  q4_k: {
    blockElements: 256,
    blockBytes: 144,
    bits: 4,
    nativeId: 12,
    ggmlType: 12,
    ggufFileType: 14,
    inputs: 'q8_k',
    fallback: 'q5_0',
  },
  q5_k: {
    blockElements: 256,
    blockBytes: 176,
    bits: 5,
    nativeId: 13,
    ggmlType: 13,
    ggufFileType: 16,
    inputs: 'q8_k',
    fallback: 'q5_1',
  },
  q6_k: {
    blockElements: 256,
    blockBytes: 210,
    bits: 6,
    nativeId: 14,
    ggmlType: 14,
    ggufFileType: 18,
    inputs: 'q8_k',
    fallback: 'q8_0',
  },
  nf4: { blockElements: 64, blockBytes: 36, bits: 4, nativeId: 100 },
  int2x32: integers(2),
  int3x32: integers(3),
  int4x32: integers(4),
  int5x32: integers(5),
  int6x32: integers(6),
  int7x32: integers(7),
  int8x32: integers(8),
} as const satisfies Readonly<Record<string, NumberFormat>>;

/** The name of a format in blocks. */
export type BlockFormat = keyof typeof blockFormats;
export type FormatName = DType | BlockFormat;

/** Returns the row of a plain element type. */
const dense = (
  dtype: DType,
  numbers: Pick<NumberFormat, 'nativeId' | 'ggmlType' | 'ggufFileType'> = {},
): NumberFormat => {
  const { bytes } = dtypes[dtype];
  return { blockElements: 1, blockBytes: bytes, bits: 8 * bytes, ...numbers };
};

/** All formats by their names in Graft: block formats under ggml's names, and the element types of tensors. */
export const formats: Readonly<
  Record<DType, NumberFormat> & Record<BlockFormat, NumberFormat & { readonly nativeId: number }>
> = {
  ...blockFormats,
  float64: dense('float64', { ggmlType: 28 }),
  float32: dense('float32', { ggmlType: 0, ggufFileType: 0 }),
  float16: dense('float16', { ggmlType: 1, nativeId: 1, ggufFileType: 1 }),
  bfloat16: dense('bfloat16', { ggmlType: 30, nativeId: 30, ggufFileType: 32 }),
  int64: dense('int64', { ggmlType: 27 }),
  int32: dense('int32', { ggmlType: 26 }),
  int16: dense('int16', { ggmlType: 25 }),
  int8: dense('int8', { ggmlType: 24 }),
  uint8: dense('uint8'),
  bool: dense('bool'),
};

const rows = Object.entries(formats) as [FormatName, NumberFormat][];

export const isBlockFormat = (name: FormatName): name is BlockFormat => Object.hasOwn(blockFormats, name);

const inputsByNativeId = new Map(rows.map(([, { nativeId, inputs }]) => [nativeId, inputs]));

/** Returns the blocks to which llama.cpp rounds the inputs of weights in the format of a native number; undefined: to none. */
export const inputFormatOf = (nativeId: number): NumberFormat['inputs'] => inputsByNativeId.get(nativeId);

const byGgmlType = new Map(rows.map(([name, { ggmlType }]) => [ggmlType, name]));

/** Returns the format with the ggml type number `type`; undefined where Graft does not read it. */
export const formatOfGgmlType = (type: number): FormatName | undefined => byGgmlType.get(type);

/** llama.cpp's names of the block formats that Graft reads from GGUF files: Q4_0, Q4_1 … */
export const ggmlBlockNames: readonly string[] = rows
  .filter(([name, { ggmlType }]) => isBlockFormat(name) && ggmlType !== undefined)
  .map(([name]) => name.toUpperCase());

/** The formats in which a GGUF file can be written. */
export const ggufFormats = rows.filter(([, row]) => row.ggufFileType !== undefined).map(([name]) => name);

/** Whether a format is one of a GGUF file. */
export const isGgufFormat = (format: string): boolean => (ggufFormats as readonly string[]).includes(format);

/** ggml's names of the types that Graft does not read, by their numbers. */
export const unsupportedGgmlTypes: Readonly<Record<number, string>> = {
  9: 'Q8_1',
  10: 'Q2_K',
  11: 'Q3_K',
  15: 'Q8_K',
  16: 'IQ2_XXS',
  17: 'IQ2_XS',
  18: 'IQ3_XXS',
  19: 'IQ1_S',
  20: 'IQ4_NL',
  21: 'IQ3_S',
  22: 'IQ2_S',
  23: 'IQ4_XS',
  29: 'IQ1_M',
  34: 'TQ1_0',
  35: 'TQ2_0',
  39: 'MXFP4',
  40: 'NVFP4',
};

/**
 * Integers of 2 to 8 bits, with a scale (and a zero point) for each group of a row or for the row: the bits, and the block
 * format into which they are packed. (`quantize: int8` and the element type int8 are other things: Q8_0, and plain bytes.)
 */
export const integerFormats = {
  int2: { bits: 2, packed: 'int2x32' },
  int3: { bits: 3, packed: 'int3x32' },
  int4: { bits: 4, packed: 'int4x32' },
  int5: { bits: 5, packed: 'int5x32' },
  int6: { bits: 6, packed: 'int6x32' },
  int7: { bits: 7, packed: 'int7x32' },
  int8: { bits: 8, packed: 'int8x32' },
} as const satisfies Readonly<Record<string, { readonly bits: number; readonly packed: BlockFormat }>>;

/** The name of a format of integers. */
export type IntegerFormat = keyof typeof integerFormats;

/** A format to which a weight can be rounded in training: one of GGUF's or nf4 in blocks, or integers in groups. */
export type WeightFormat = IntegerFormat | Exclude<BlockFormat, (typeof integerFormats)[IntegerFormat]['packed']>;

export const isIntegerFormat = (name: WeightFormat): name is IntegerFormat => Object.hasOwn(integerFormats, name);

const packedIntegers: readonly string[] = Object.values(integerFormats).map(({ packed }) => packed);

/** All formats to which a weight can be rounded in training. */
export const weightFormats = [
  ...Object.keys(blockFormats).filter((name) => !packedIntegers.includes(name)),
  ...Object.keys(integerFormats),
] as WeightFormat[];

/** The formats into which the modes of `quantize` pack weights when a model is loaded. */
const quantizeFormats = { int8: 'q8_0', nf4: 'nf4' } as const satisfies Readonly<Record<string, BlockFormat>>;

/** All modes of `quantize`. */
export const quantizeModes = ['none', 'keep', 'int8', 'nf4'] as const;
/** The modes that do not depend on how a file stores weights. */
export const packingModes = ['none', 'int8', 'nf4'] as const satisfies readonly Quantize[];

/**
 * How the weights of linear layers and embeddings are held in memory:
 * - `none`: dense, in the kernels' type (float32 with the fused ones)
 * - `keep`: as the file stores them (GGUF blocks, bfloat16, float16), unpacked where they are used
 * - `int8`: blocks of 32 with one scale (GGUF's Q8_0); `nf4`: blocks of 64 on the NormalFloat grid (arXiv 2305.14314)
 */
export type Quantize = (typeof quantizeModes)[number];

/** All modes of `activation`. */
export const activationModes = ['exact', 'q8'] as const;

/**
 * How layers take their inputs:
 * - `exact`: as they are
 * - `q8`: rounded to blocks of 8 bits, as llama.cpp does where weights are in GGUF's blocks
 */
export type Activation = (typeof activationModes)[number];

/** Returns the format into which `quantize` packs weights; undefined for `none` and `keep`, which do not pack them. */
export const formatOfQuantize = (quantize: Quantize): BlockFormat | undefined =>
  quantize === 'none' || quantize === 'keep' ? undefined : quantizeFormats[quantize];

/** Returns the bits of a weight that `quantize` packed, given its format's native number; undefined for other formats. */
export const quantizedBits = (nativeId: number): number | undefined =>
  Object.values(quantizeFormats)
    .map((name) => formats[name])
    .find((format) => format.nativeId === nativeId)?.bits;
