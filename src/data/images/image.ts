/** Images: files of them, and what turns one into the numbers that a model sees. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { extname, join } from 'node:path';
import { decode as decodePng } from 'fast-png';
import { z } from 'zod';
import { GraftError, parseWith } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import type { RawRecord } from '../record.ts';
import { type Image, resamplings, resize } from './resample.ts';

const endings = ['.png', '.jpg', '.jpeg'] as const;

const wrong = (problem: string, place: string, hint?: string) =>
  new GraftError('input', problem, { place, ...(hint && { hint }) });

/** A PNG or JPEG file. @throws GraftError 'input' for what is neither, or of a kind that is not read */
export async function readImage(file: string): Promise<Image> {
  if (!existsSync(file)) throw wrong('there is no such image', file);
  return decodeImage(readFileSync(file), file);
}

/**
 * @param place named by errors
 * @returns the levels as Pillow has them: grey, colours, or colours with opacity
 */
export async function decodeImage(bytes: Uint8Array, place: string): Promise<Image> {
  const png = bytes[0] === 0x89 && bytes[1] === 0x50;
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  if (!png && !jpeg) throw wrong('this is neither a PNG nor a JPEG image', place);
  try {
    return png ? fromPng(bytes, place) : await fromJpeg(bytes, place);
  } catch (cause) {
    if (cause instanceof GraftError) throw cause;
    const reason = cause instanceof Error ? `: ${cause.message}` : '';
    throw wrong(`the image is damaged, or of a kind that is not read${reason}`, place);
  }
}

function fromPng(bytes: Uint8Array, place: string): Image {
  const { width, height, channels, depth, data, palette } = decodePng(bytes);
  const n = width * height;
  if (depth === 16 && channels < 3) {
    throw wrong('it has 16 bits of grey a pixel, which has no place in 8 bits', place, 'Save it with 8 bits');
  }
  // 16-bit colours count by their upper half; below 8 bits, pixels share bytes, each line in bytes of its own.
  const line = Math.ceil((width * channels * depth) / 8);
  const level = (i: number): number => {
    if (depth === 8) return data[i]!;
    if (depth === 16) return data[i]! >> 8;
    const [y, x] = [Math.floor(i / width), i % width];
    const bit = x * depth;
    return (data[y * line + (bit >> 3)]! >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
  };
  if (palette) {
    const colours = Uint8Array.from({ length: 3 * n }, (_, i) => palette[level(Math.floor(i / 3))]![i % 3]!);
    return { width, height, channels: 3, data: colours };
  }
  const full = depth < 8 ? 255 / (2 ** depth - 1) : 1;
  if (channels === 2)
    return { width, height, channels: 1, data: Uint8Array.from({ length: n }, (_, i) => level(2 * i)) };
  return { width, height, channels, data: Uint8Array.from({ length: n * channels }, (_, i) => level(i) * full) };
}

/** What is used of libjpeg-turbo: Pillow's own decoder, so the levels are Pillow's. */
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
    if (channels !== 1 && channels !== 3) throw wrong(`it has ${channels} colours, and 1 or 3 are read`, place);
    const image = { width, height, channels, data: new Uint8Array(decoder.getDecodedBuffer()) };
    return upright(image, orientationOf(Buffer.from(bytes)));
  } finally {
    decoder.delete();
  }
}

/** How a camera was held (EXIF 2.32, tag 0x0112): 1 to 8; 1: upright. */
function orientationOf(file: Buffer): number {
  for (let at = 2; at + 4 < file.length && file[at] === 0xff && file[at + 1] !== 0xda; ) {
    const length = file.readUInt16BE(at + 2);
    const body = file.subarray(at + 4, at + 2 + length);
    at += 2 + length;
    if (file[at - length - 1] !== 0xe1 || body.toString('latin1', 0, 6) !== 'Exif\0\0') continue;
    const tiff = body.subarray(6);
    const little = tiff.toString('latin1', 0, 2) === 'II';
    const short = (i: number) => (little ? tiff.readUInt16LE(i) : tiff.readUInt16BE(i));
    const first = little ? tiff.readUInt32LE(4) : tiff.readUInt32BE(4);
    for (let tag = 0; tag < short(first); tag++) {
      const entry = first + 2 + 12 * tag;
      if (short(entry) === 0x0112) return short(entry + 8);
    }
  }
  return 1;
}

/** Turned and mirrored as the orientation says. */
function upright(image: Image, orientation: number): Image {
  if (!(orientation > 1 && orientation <= 8)) return image;
  const { channels } = image;
  const [w, h] = [image.width - 1, image.height - 1];
  const turned = orientation > 4;
  const [width, height] = turned ? [image.height, image.width] : [image.width, image.height];
  const mirrored = [2, 3, 7, 8].includes(orientation);
  const upsideDown = [3, 4, 6, 7].includes(orientation);
  const data = new Uint8Array(image.data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [fromX, fromY] = turned ? [y, x] : [x, y];
      const from = ((upsideDown ? h - fromY : fromY) * image.width + (mirrored ? w - fromX : fromX)) * channels;
      data.set(image.data.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return { width, height, channels, data };
}

/** As Pillow's `convert("RGB")` and `convert("L")`: opacity is dropped, grey repeated, colours weighed by ITU-R 601-2. */
function withChannels(image: Image, channels: 1 | 3): Image {
  if (image.channels === channels) return image;
  const { width, height, data } = image;
  const from = image.channels;
  const grey = (i: number) => (data[i]! * 19595 + data[i + 1]! * 38470 + data[i + 2]! * 7471 + 0x8000) >> 16;
  const value = (pixel: number, c: number) =>
    channels === 1 ? grey(pixel * from) : data[pixel * from + (from === 1 ? 0 : c)]!;
  const levels = Uint8Array.from({ length: width * height * channels }, (_, i) =>
    value(Math.floor(i / channels), i % channels),
  );
  return { width, height, channels, data: levels };
}

const size = z.union([z.int().positive(), z.looseObject({ height: z.int().positive(), width: z.int().positive() })]);

/** The fields of `preprocessor_config.json` that are read, under transformers' names and with ViT's defaults. */
const configSchema = z.looseObject({
  do_resize: z.boolean().default(true),
  size: size.default(224),
  resample: z.int().default(2),
  do_center_crop: z.boolean().default(false),
  crop_size: size.optional(),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: z.array(z.number()).min(1).default([0.5, 0.5, 0.5]),
  image_std: z.array(z.number().positive()).min(1).default([0.5, 0.5, 0.5]),
});

const sides = (given: z.infer<typeof size>) => (typeof given === 'number' ? { height: given, width: given } : given);

/** Turns images into what a model sees. */
export interface ImageProcessor {
  readonly channels: 1 | 3;
  /** Of every result; undefined where images are left as large as they are. */
  readonly size: { readonly height: number; readonly width: number } | undefined;
  /** Converted, resized and cut, still in whole levels. */
  levels(image: Image): Image;
  /** Numbers [channels, height, width] of levels that are prepared. */
  numbers(levels: Image): Float32Array;
}

/**
 * The preprocessing that `preprocessor_config.json` of the directory asks for, as transformers' Pillow-backed processors do it.
 * @param channels those of the model: 3, or 1 for grey
 * @throws GraftError 'input' when the file is missing or asks for what Graft does not have
 */
export function imageProcessorOf(dir: string, channels: 1 | 3 = 3): ImageProcessor {
  const place = join(dir, 'preprocessor_config.json');
  if (!existsSync(place)) {
    throw wrong('there is no preprocessor_config.json, which says how images are prepared', dir, 'Copy it there');
  }
  const config = parseWith(configSchema, readJsonObject(place), place, 'input');
  if (!resamplings.includes(config.resample)) {
    throw wrong(`resample ${config.resample} is not one of ${resamplings.join(', ')}`, place);
  }
  const resized = config.do_resize ? sides(config.size) : undefined;
  const crop = config.do_center_crop ? sides(config.crop_size ?? config.size) : undefined;
  const rescale = config.do_rescale ? config.rescale_factor : 1;
  const mean = config.do_normalize ? config.image_mean : [0];
  const std = config.do_normalize ? config.image_std : [1];

  const levels = (given: Image): Image => {
    const image = withChannels(given, channels);
    const scaled = resized ? resize(image, resized.width, resized.height, config.resample) : image;
    return crop ? cut(scaled, crop.width, crop.height) : scaled;
  };
  return {
    channels,
    size: crop ?? resized,
    levels,
    numbers({ width, height, data }) {
      const [n, numbers] = [width * height, new Float32Array(data.length)];
      for (let c = 0; c < channels; c++) {
        const [m, s] = [mean[c] ?? mean[0]!, std[c] ?? std[0]!];
        for (let i = 0; i < n; i++) numbers[c * n + i] = (data[i * channels + c]! * rescale - m) / s;
      }
      return numbers;
    },
  };
}

/** The middle of an image. */
function cut({ channels, ...image }: Image, width: number, height: number): Image {
  if (width > image.width || height > image.height) {
    const problem = `a crop of ${width} × ${height} does not fit into ${image.width} × ${image.height}`;
    throw new GraftError('input', problem, { place: 'preprocessor_config.json' });
  }
  const [left, top] = [(image.width - width) >> 1, (image.height - height) >> 1];
  const data = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { width, height, channels, data };
}

/**
 * Images in folders, one folder a label: a record `{ image: path, label }` for each, labels and files by name.
 * @throws GraftError 'input' for a directory without such folders
 */
export function imageRecords(dir: string): RawRecord[] {
  const folders = readdirSync(dir).filter((name) => statSync(join(dir, name)).isDirectory());
  const records = folders.sort().flatMap((label) =>
    readdirSync(join(dir, label))
      .filter((name) => endings.some((ending) => extname(name).toLowerCase() === ending))
      .sort()
      .map((name) => ({ value: { image: join(dir, label, name), label }, place: join(dir, label, name) })),
  );
  if (records.length > 0) return records;
  throw wrong(`no folder in it has images (${endings.join(', ')})`, dir, 'Put the images of each label in a folder');
}
