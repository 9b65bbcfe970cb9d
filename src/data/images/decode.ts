import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { decode as decodePng } from 'fast-png';
import { GraftError } from '../../base/index.ts';
import { imageError } from './error.ts';
import type { Image } from './resample.ts';

/** Reads a PNG or JPEG file. @throws GraftError 'input' for a file that is not found, damaged or of an unsupported format */
export async function readImage(file: string): Promise<Image> {
  if (!existsSync(file)) throw imageError('the image was not found', file, 'Check the path');
  return decodeImage(readFileSync(file), file);
}

/**
 * Decodes a PNG or JPEG image.
 * @param place of the image, for errors
 * @returns the pixel values that Pillow gives: grey, RGB or RGBA
 * @throws GraftError 'input' for an image that is damaged or of an unsupported format
 */
export async function decodeImage(bytes: Uint8Array, place: string): Promise<Image> {
  const png = bytes[0] === 0x89 && bytes[1] === 0x50;
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  if (!png && !jpeg) throw imageError('the file is neither a PNG nor a JPEG image', place);
  try {
    return png ? fromPng(bytes, place) : await fromJpeg(bytes, place);
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    const reason = cause instanceof Error ? `: ${cause.message}` : '';
    throw imageError(`the image is damaged or of an unsupported format${reason}`, place);
  }
}

function fromPng(bytes: Uint8Array, place: string): Image {
  const { width, height, channels, depth, data, palette } = decodePng(bytes);
  const n = width * height;
  if (depth === 16 && channels < 3) {
    throw imageError('16-bit greyscale PNG images are not supported', place, 'Save it with 8 bits per channel');
  }
  // Of 16-bit values the upper byte is used; below 8 bits several pixels share a byte, and each line begins a new byte.
  const lineBytes = Math.ceil((width * channels * depth) / 8);
  const valueAt = (i: number): number => {
    if (depth === 8) return data[i]!;
    if (depth === 16) return data[i]! >> 8;
    const [y, x] = [Math.floor(i / width), i % width];
    const bit = x * depth;
    return (data[y * lineBytes + (bit >> 3)]! >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
  };
  if (palette) {
    const colours = Uint8Array.from({ length: 3 * n }, (_, i) => palette[valueAt(Math.floor(i / 3))]![i % 3]!);
    return { width, height, channels: 3, data: colours };
  }
  const scale = depth < 8 ? 255 / (2 ** depth - 1) : 1;
  if (channels === 2)
    return { width, height, channels: 1, data: Uint8Array.from({ length: n }, (_, i) => valueAt(2 * i)) };
  return { width, height, channels, data: Uint8Array.from({ length: n * channels }, (_, i) => valueAt(i) * scale) };
}

/** The parts of libjpeg-turbo that are used. Pillow decodes with it too, so the pixel values are the same. */
interface JpegDecoder {
  getEncodedBuffer(length: number): Uint8Array;
  decode(): void;
  getFrameInfo(): { width: number; height: number; componentCount: number };
  getDecodedBuffer(): Uint8Array;
  delete(): void;
}

let turbo: Promise<{ JPEGDecoder: new () => JpegDecoder }> | undefined;

function loadTurbo() {
  const require = createRequire(import.meta.url);
  const wasmBinary = readFileSync(require.resolve('@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasm'));
  return require('@cornerstonejs/codec-libjpeg-turbo-8bit/decodewasmjs')({ wasmBinary });
}

async function fromJpeg(bytes: Uint8Array, place: string): Promise<Image> {
  turbo ??= loadTurbo();
  const { JPEGDecoder } = await turbo!;
  const decoder = new JPEGDecoder();
  try {
    decoder.getEncodedBuffer(bytes.length).set(bytes);
    decoder.decode();
    const { width, height, componentCount: channels } = decoder.getFrameInfo();
    if (channels !== 1 && channels !== 3) {
      throw imageError(`JPEG images with ${channels} channels are not supported, only 1 or 3`, place);
    }
    const image = { width, height, channels, data: new Uint8Array(decoder.getDecodedBuffer()) };
    return upright(image, orientationOf(Buffer.from(bytes)));
  } finally {
    decoder.delete();
  }
}

/** The EXIF orientation of a JPEG file (EXIF 2.32, tag 0x0112), 1 to 8; 1 (upright) where there is none. */
function orientationOf(file: Buffer): number {
  for (let at = 2; at + 4 < file.length && file[at] === 0xff && file[at + 1] !== 0xda; ) {
    const length = file.readUInt16BE(at + 2);
    const body = file.subarray(at + 4, at + 2 + length);
    at += 2 + length;
    if (file[at - length - 1] !== 0xe1 || body.toString('latin1', 0, 6) !== 'Exif\0\0') continue;
    const tiff = body.subarray(6);
    const littleEndian = tiff.toString('latin1', 0, 2) === 'II';
    const uint16 = (i: number) => (littleEndian ? tiff.readUInt16LE(i) : tiff.readUInt16BE(i));
    const directory = littleEndian ? tiff.readUInt32LE(4) : tiff.readUInt32BE(4);
    for (let tag = 0; tag < uint16(directory); tag++) {
      const entry = directory + 2 + 12 * tag;
      if (uint16(entry) === 0x0112) return uint16(entry + 8);
    }
  }
  return 1;
}

/** The image rotated and mirrored by its EXIF orientation. */
function upright(image: Image, orientation: number): Image {
  if (!(orientation > 1 && orientation <= 8)) return image;
  const { channels } = image;
  const [lastX, lastY] = [image.width - 1, image.height - 1];
  const transposed = orientation > 4;
  const [width, height] = transposed ? [image.height, image.width] : [image.width, image.height];
  const mirrored = [2, 3, 7, 8].includes(orientation);
  const upsideDown = [3, 4, 6, 7].includes(orientation);
  const data = new Uint8Array(image.data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [fromX, fromY] = transposed ? [y, x] : [x, y];
      const from = ((upsideDown ? lastY - fromY : fromY) * image.width + (mirrored ? lastX - fromX : fromX)) * channels;
      data.set(image.data.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return { width, height, channels, data };
}
