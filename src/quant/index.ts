export {
  type BlockFormat,
  type FormatName,
  formatOfGgmlType,
  formatOfQuantize,
  formats,
  ggmlBlockNames,
  isBlockFormat,
  type NumberFormat,
  type Quantize,
  quantizedBits,
  quantizeModes,
  unsupportedGgmlTypes,
} from './formats.ts';
