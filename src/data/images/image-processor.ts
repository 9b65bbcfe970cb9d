import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { parseWith } from '../../base/index.ts';
import { readJsonObject } from '../../io/index.ts';
import { imageError } from './error.ts';
import { type Image, resamplings, resize } from './resample.ts';

/** Converts as Pillow's `convert("RGB")` and `convert("L")`: alpha is dropped, grey repeated, colours weighted by ITU-R 601-2. */
function withChannels(image: Image, channels: 1 | 3): Image {
  if (image.channels === channels) return image;
  const { width, height, data } = image;
  const sourceChannels = image.channels;
  const grey = (i: number) => (data[i]! * 19595 + data[i + 1]! * 38470 + data[i + 2]! * 7471 + 0x8000) >> 16;
  const value = (pixel: number, c: number) =>
    channels === 1 ? grey(pixel * sourceChannels) : data[pixel * sourceChannels + (sourceChannels === 1 ? 0 : c)]!;
  const converted = Uint8Array.from({ length: width * height * channels }, (_, i) =>
    value(Math.floor(i / channels), i % channels),
  );
  return { width, height, channels, data: converted };
}

const sizeSchema = z.union([
  z.int().positive(),
  z.looseObject({ height: z.int().positive(), width: z.int().positive() }),
]);

/** The fields of `preprocessor_config.json` that are used, with the defaults of transformers' ViT processor. */
const configSchema = z.looseObject({
  do_resize: z.boolean().default(true),
  size: sizeSchema.default(224),
  resample: z.int().default(2),
  do_center_crop: z.boolean().default(false),
  crop_size: sizeSchema.optional(),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: z.array(z.number()).min(1).default([0.5, 0.5, 0.5]),
  image_std: z.array(z.number().positive()).min(1).default([0.5, 0.5, 0.5]),
});

const heightAndWidth = (size: z.infer<typeof sizeSchema>) =>
  typeof size === 'number' ? { height: size, width: size } : size;

/** Converts images to the input of a model. */
export interface ImageProcessor {
  readonly channels: 1 | 3;
  /** The size of every result; undefined where images keep theirs. */
  readonly size: { readonly height: number; readonly width: number } | undefined;
  /** The image with the model's channels, resized and cropped, still in 8 bits. */
  resizeAndCrop(image: Image): Image;
  /** The input of the model [channels, height, width], from the result of `resizeAndCrop`: rescaled and normalised. */
  pixelValues(image: Image): Float32Array;
}

/**
 * The image processor that `preprocessor_config.json` of a directory describes; it gives what transformers' Pillow-backed
 * processors give.
 * @param channels of the model: 3, or 1 for grey
 * @throws GraftError 'input' when the file is missing, invalid, or uses a resampling that is not supported
 */
export function imageProcessorOf(dir: string, channels: 1 | 3 = 3): ImageProcessor {
  const place = join(dir, 'preprocessor_config.json');
  if (!existsSync(place)) {
    throw imageError(
      'the directory has no preprocessor_config.json, which describes how images are preprocessed',
      dir,
      'Copy it from the base model',
    );
  }
  const config = parseWith(configSchema, readJsonObject(place), place, 'input');
  if (!resamplings.includes(config.resample)) {
    throw imageError(`resample ${config.resample} is not one of ${resamplings.join(', ')}`, place);
  }
  const size = config.do_resize ? heightAndWidth(config.size) : undefined;
  const crop = config.do_center_crop ? heightAndWidth(config.crop_size ?? config.size) : undefined;
  const rescale = config.do_rescale ? config.rescale_factor : 1;
  const mean = config.do_normalize ? config.image_mean : [0];
  const std = config.do_normalize ? config.image_std : [1];

  return {
    channels,
    size: crop ?? size,
    resizeAndCrop(image) {
      const converted = withChannels(image, channels);
      const resized = size ? resize(converted, size.width, size.height, config.resample) : converted;
      return crop ? centerCrop(resized, crop.width, crop.height) : resized;
    },
    pixelValues({ width, height, data }) {
      const [n, values] = [width * height, new Float32Array(data.length)];
      for (let c = 0; c < channels; c++) {
        const [m, s] = [mean[c] ?? mean[0]!, std[c] ?? std[0]!];
        for (let i = 0; i < n; i++) values[c * n + i] = (data[i * channels + c]! * rescale - m) / s;
      }
      return values;
    },
  };
}

/** The centre of an image. @throws GraftError 'input' for an image that is smaller than the crop */
function centerCrop({ channels, ...image }: Image, width: number, height: number): Image {
  if (width > image.width || height > image.height) {
    throw imageError(
      `a crop of ${width} × ${height} does not fit into an image of ${image.width} × ${image.height}`,
      'preprocessor_config.json',
    );
  }
  const [left, top] = [(image.width - width) >> 1, (image.height - height) >> 1];
  const data = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * image.width + left) * channels;
    data.set(image.data.subarray(from, from + width * channels), y * width * channels);
  }
  return { width, height, channels, data };
}
