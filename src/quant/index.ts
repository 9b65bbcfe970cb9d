export {
  type BlockFormat,
  type FormatName,
  formatOfGgmlType,
  formatOfQuantize,
  formats,
  ggmlBlockNames,
  ggufFormats,
  type IntegerFormat,
  integerFormats,
  isBlockFormat,
  isIntegerFormat,
  type NumberFormat,
  packingModes,
  type Quantize,
  quantizedBits,
  quantizeModes,
  unsupportedGgmlTypes,
  type WeightFormat,
  weightFormats,
} from './formats.ts';
export { roundedToBlocks } from './plain.ts';
export {
  type IntegerWeight,
  integersOf,
  type PackedWeight,
  pack,
  packIntegers,
  type Quantization,
  requireWidths,
} from './quantization.ts';
export { dequantized, quantized, unpackable, unpacked } from './unpack.ts';
