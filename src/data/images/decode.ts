import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { decode as decodePng } from 'fast-png';
import { GraftError } from '../../base/index.ts';
import { imageError } from './error.ts';
import { orientationOf } from './exif.ts';
import type { Image } from './resample.ts';
import { requireLikelySize } from './size.ts';

/** Formats that are read, by their first bytes as Latin-1. */
const formats: readonly (readonly [
  head: RegExp,
  decode: (bytes: Uint8Array, place: string) => Image | Promise<Image>,
])[] = [
  [/^\x89PNG/, fromPng],
  [/^\xff\xd8/, fromJpeg],
  [/^RIFF....WEBP/s, fromWebp],
];

/** Formats that are recognised and not read. */
const otherFormats: readonly (readonly [head: RegExp, name: string])[] = [
  [/^GIF8/, 'a GIF'],
  [/^BM/, 'a BMP'],
  [/^(II\*\0|MM\0\*)/, 'a TIFF'],
  [/^....ftyp(avif|avis)/s, 'an AVIF'],
  [/^....ftyp(heic|heix|mif1|msf1)/s, 'a HEIC'],
  [/^(\xff\x0a|\0\0\0\x0cJXL )/, 'a JPEG XL'],
  [/^\0\0\0\x0cjP/, 'a JPEG 2000'],
  [/^P[1-6]\s/, 'a Netpbm'],
];

/** Reads a PNG, JPEG or WebP file. @throws GraftError 'input' for a file that is not found, damaged or of an unsupported format */
export async function readImage(file: string): Promise<Image> {
  if (!existsSync(file)) throw imageError('the image was not found', file, 'Check the path');
  return decodeImage(readFileSync(file), file);
}

/**
 * Decodes a PNG, JPEG or WebP image, and turns it upright by its EXIF orientation.
 * @param place of the image, for errors
 * @returns the pixel values that Pillow gives: grey, RGB or RGBA
 * @throws GraftError 'input' for an image that is damaged or of an unsupported format
 */
export async function decodeImage(bytes: Uint8Array, place: string): Promise<Image> {
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 32)).toString('latin1');
  const format = formats.find(([pattern]) => pattern.test(head));
  if (!format) {
    const other = otherFormats.find(([pattern]) => pattern.test(head))?.[1];
    const problem = other
      ? `the file is ${other} image, which is not read`
      : 'the file is neither a PNG nor a JPEG nor a WebP image';
    throw imageError(problem, place, other && 'Convert it to PNG');
  }
  try {
    const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    requireLikelySize(file, place);
    const image = await format[1](bytes, place);
    return upright(image, orientationOf(file));
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
    return { width, height, channels, data: new Uint8Array(decoder.getDecodedBuffer()) };
  } finally {
    decoder.delete();
  }
}

type WebpDecoder = typeof import('@jsquash/webp/decode.js');
let webp: Promise<WebpDecoder> | undefined;

/** libwebp, which Pillow decodes with too. */
async function loadWebp(): Promise<WebpDecoder> {
  const decoder = await import('@jsquash/webp/decode.js');
  const file = createRequire(import.meta.url).resolve('@jsquash/webp/codec/dec/webp_dec.wasm');
  await decoder.init({ wasmBinary: readFileSync(file) } as never);
  return decoder;
}

async function fromWebp(bytes: Uint8Array, place: string): Promise<Image> {
  webp ??= loadWebp();
  const { default: decode } = await webp;
  try {
    const { width, height, data } = await decode(bytes as unknown as ArrayBuffer);
    return { width, height, channels: 4, data: new Uint8Array(data.buffer, data.byteOffset, data.length) };
  } catch {
    const animated =
      bytes[20] !== undefined && (bytes[20] & 2) !== 0 && Buffer.from(bytes).toString('latin1', 12, 16) === 'VP8X';
    throw imageError(
      animated ? 'the WebP image is animated, which is not read' : 'the image is damaged or of an unsupported format',
      place,
      animated ? 'Save one of its pictures' : undefined,
    );
  }
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
