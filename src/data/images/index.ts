export { decodeImage, readImage } from './decode.ts';
export { imageRecords } from './folders.ts';
export { type ImageProcessor, imageProcessorOf } from './image-processor.ts';
export type { Image } from './resample.ts';
