export type { Quantize } from '../quant/index.ts';
export {
  type ExportChoice,
  type ExportFormat,
  exportChoice,
  exportFormats,
  type FloatFormat,
} from './export-choice.ts';
export { type FormatOf, formatsFor, type WrittenFormat } from './export-formats.ts';
export type { AdapterHubNames, Family, GgufNames } from './family.ts';
export { type GgufBase, ggufBaseFor, ggufBaseOf, ggufNamesOf } from './gguf-base.ts';
export { LaterWeights } from './later-weights.ts';
export { headOf, loadModel, loadModels, openModel, requireRoomFor, vocabSizeOf } from './load.ts';
export type { HeadOptions, LoadOptions } from './loaded-weights.ts';
export { families } from './registry.ts';
export { saveModel } from './save.ts';
export { requireGguf, saveGguf } from './save-gguf.ts';
export { SharedWeights } from './shared-weights.ts';
export { heldBytes } from './weight-memory.ts';
export { readTensor } from './weight-reader.ts';
