import { GraftError } from '../base/index.ts';
import { BadRows, decodeImage, type Example, type Image, imageProcessorOf, readImage } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import type { RowTools } from './task.ts';

/** An image given as rows of pixels, each a grey value or a list of channels. */
function imageFromRows(value: unknown, place: string): Image {
  const invalid = () =>
    new GraftError(
      'input',
      'the image must be a path, the bytes of a file, or rows of equal length of pixel values from 0 to 255, or of lists of them',
      { place },
    );
  const rows = value as unknown[][];
  if (!Array.isArray(rows) || !Array.isArray(rows[0]) || rows[0].length === 0) throw invalid();
  const [height, width] = [rows.length, rows[0].length];
  const channels = Array.isArray(rows[0][0]) ? rows[0][0].length : 1;
  const data = rows.flat(2) as number[];
  const isByte = (x: unknown) => typeof x === 'number' && Number.isInteger(x) && x >= 0 && x <= 255;
  if (data.length !== height * width * channels || rows.some((row) => row.length !== width) || !data.every(isByte)) {
    throw invalid();
  }
  if (channels !== 1 && channels !== 3) {
    throw new GraftError('input', `images with ${channels} channels are not supported, only 1 or 3`, { place });
  }
  return { width, height, channels, data: Uint8Array.from(data) };
}

/** The bytes of an image's file, as they are or as the datasets library stores them: `{ bytes, path }`. */
function fileBytes(image: unknown): Uint8Array | undefined {
  const bytes = (image as { bytes?: unknown } | null)?.bytes ?? image;
  return bytes instanceof Uint8Array ? bytes : undefined;
}

/** The image of a row: the path or the bytes of its file, or rows of pixels. */
async function originalOf(image: unknown, place: string): Promise<Image> {
  if (typeof image === 'string') return readImage(image);
  const bytes = fileBytes(image);
  return bytes ? decodeImage(bytes, place) : imageFromRows(image, place);
}

/** The row of an image, without its label. @throws GraftError 'usage' for a model of text */
export function imageRow(example: Example, place: string, { pixels, imageTokens }: RowTools) {
  if (!pixels || !imageTokens)
    throw new GraftError('usage', 'the model does not accept images', { place, hint: 'Use a model of images' });
  return { ids: new Int32Array(imageTokens), labels: new Int32Array(), pixels: () => pixels(example), place };
}

/**
 * Reads and preprocesses the images of examples as the model's preprocessor_config.json describes. They stay in memory in 8 bits.
 * @throws GraftError 'input' for images that cannot be read, the first twenty at once, or one that does not have the model's size after preprocessing
 */
export async function imageTools(
  model: Model,
  modelPath: string,
  examples: readonly { example: Example; place: string }[],
): Promise<Pick<RowTools, 'pixels' | 'imageTokens'>> {
  if (!model.image) return {};
  const { channels, height, width, tokens } = model.image;
  const processor = imageProcessorOf(modelPath, channels as 1 | 3);
  const images = new Map<Example, Image>();
  const bad = new BadRows();
  for (const { example, place } of examples) {
    if (example.kind !== 'image') continue;
    const original = await bad.tryLater(() => originalOf(example.image, place));
    if (!original) continue;
    const image = processor.resizeAndCrop(original);
    if (image.height !== height || image.width !== width) {
      throw new GraftError(
        'input',
        `the preprocessed image has ${image.width} × ${image.height} pixels, and the model takes ${width} × ${height}`,
        { place, hint: 'Set the size in preprocessor_config.json to the image_size of config.json' },
      );
    }
    images.set(example, image);
  }
  bad.refuse();
  return { imageTokens: tokens, pixels: (example) => processor.pixelValues(images.get(example)!) };
}
