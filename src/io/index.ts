export { digestOfPath } from './digest.ts';
export { recoverDirectory, requireNew, writeDirectory, writeFile, writeText } from './directory.ts';
export { type GgufMetadata, type GgufSource, openGguf } from './gguf.ts';
export type { GgufField, GgufType } from './gguf-types.ts';
export { type GgufTensor, writeGguf } from './gguf-write.ts';
export { type DownloadProgress, type ResolveOptions, resolveModel } from './hub.ts';
export { isDataset, resolveDataset } from './hub-dataset.ts';
export { parseJson, readJson, readJsonObject } from './jsonfile.ts';
export { requireReadableWeights, undoneQuantization } from './model-config.ts';
export { openModelWeights, openWeights } from './open.ts';
export { readAhead } from './read-ahead.ts';
export { freeDisk, RecordFile } from './record-file.ts';
export { openSafetensors, type TensorToWrite, writeSafetensors } from './safetensors.ts';
export { ScratchFile } from './scratch-file.ts';
export { openTorch } from './torch.ts';
export {
  bytesOf,
  elementsOf,
  type MetadataValue,
  type NumberArray,
  type WeightEntry,
  type WeightSource,
} from './weight-source.ts';
