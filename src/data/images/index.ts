export { decodeImage, type ImageProcessor, imageProcessorOf, imageRecords, readImage } from './image.ts';
export type { Image } from './resample.ts';
