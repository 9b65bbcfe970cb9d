import { GraftError } from '../base/index.ts';
import { type Example, type Image, imageProcessorOf, readImage } from '../data/index.ts';
import type { Model } from '../nn/index.ts';
import type { RowTools } from './task.ts';

/** An image given as levels: rows of pixels, each a grey level or a list of colours. */
function fromLevels(value: unknown, place: string): Image {
  const wrong = () =>
    new GraftError('input', 'the image is neither a path nor rows of levels from 0 to 255, all of one length', {
      place,
    });
  const rows = value as unknown[][];
  if (!Array.isArray(rows) || !Array.isArray(rows[0]) || rows[0].length === 0) throw wrong();
  const [height, width] = [rows.length, rows[0].length];
  const channels = Array.isArray(rows[0][0]) ? rows[0][0].length : 1;
  const data = rows.flat(2) as number[];
  const level = (x: unknown) => typeof x === 'number' && Number.isInteger(x) && x >= 0 && x <= 255;
  if (data.length !== height * width * channels || rows.some((row) => row.length !== width) || !data.every(level)) {
    throw wrong();
  }
  if (channels !== 1 && channels !== 3) {
    throw new GraftError('input', `the image has ${channels} colours, and 1 or 3 are read`, { place });
  }
  return { width, height, channels, data: Uint8Array.from(data) };
}

/** The row of an image, without what is to be said of it. @throws GraftError 'usage' for a model that reads text */
export function imageRow(example: Example, place: string, { pixels, imageTokens }: RowTools) {
  if (!pixels || !imageTokens) throw new GraftError('usage', 'this model does not see images', { place });
  return { ids: new Int32Array(imageTokens), labels: new Int32Array(), pixels: () => pixels(example), place };
}

/**
 * Reads the images of examples and prepares them as the model's preprocessor_config.json says; what stays in memory is a byte a
 * level.
 * @throws GraftError 'input' for an image that cannot be read, or that comes out in another size than the model sees
 */
export async function imageTools(
  model: Model,
  modelPath: string,
  examples: readonly { example: Example; place: string }[],
): Promise<Pick<RowTools, 'pixels' | 'imageTokens'>> {
  if (!model.image) return {};
  const { channels, height, width, tokens } = model.image;
  const processor = imageProcessorOf(modelPath, channels as 1 | 3);
  const levels = new Map<Example, Image>();
  for (const { example, place } of examples) {
    if (example.kind !== 'image') continue;
    const given = typeof example.image === 'string' ? await readImage(example.image) : fromLevels(example.image, place);
    const made = processor.resizeAndCrop(given);
    if (made.height !== height || made.width !== width) {
      throw new GraftError(
        'input',
        `the image comes to ${made.width} × ${made.height} pixels, and the model sees ${width} × ${height}`,
        { place, hint: 'Let preprocessor_config.json resize images to what config.json says (image_size)' },
      );
    }
    levels.set(example, made);
  }
  return { imageTokens: tokens, pixels: (example) => processor.pixelValues(levels.get(example)!) };
}
