import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, numbers, readTensors, relativeError, temporary } from '../../../test/support.ts';
import { startEngine } from '../../engine/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { decodeImage, type Image, imageProcessorOf, imageRecords, readImage } from './index.ts';

before(() => startEngine());

const cases = ['vit-bilinear', 'vit-bicubic-imagenet', 'vit-nearest-plain', 'deit-crop'];

const imageOf = (tensor: Tensor): Image => {
  const [height, width, channels = 1] = tensor.shape as [number, number, number?];
  return { width, height, channels, data: tensor.bytes().slice() };
};

let valuesCompared = 0;

for (const name of cases) {
  test(`${name}: resized images are Pillow's, pixel values are transformers'`, () => {
    const { tensors: images } = readTensors(golden('images', 'images.safetensors'));
    const { tensors, metadata } = readTensors(golden('images', name, 'golden.safetensors'));
    const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: { pixels: number } };
    const processor = imageProcessorOf(golden('images', name));
    assert.equal(images.size, 7);
    for (const [key, tensor] of images) {
      const image = imageOf(tensor);
      const want = tensors.get(key.replace('image', 'resized'))!;
      const got = processor.resizeAndCrop(image);
      assert.deepEqual([got.height, got.width, got.channels], want.shape, key);
      assert.deepEqual(got.data, want.bytes(), key);
      valuesCompared += got.data.length;
      const error = relativeError(processor.pixelValues(got), numbers(tensors.get(key.replace('image', 'pixels'))!));
      assert.ok(error <= tolerance.pixels, `${key} differs by ${error}`);
      assert.deepEqual(processor.size, { height: want.shape[0], width: want.shape[1] });
    }
  });
}

test("files of every kind of PNG and JPEG and of all orientations have Pillow's pixel values", async (t) => {
  const { tensors } = readTensors(golden('images', 'files', 'levels.safetensors'));
  using dir = temporary();
  // No step except the conversion to RGB.
  writeFileSync(join(dir.path, 'preprocessor_config.json'), JSON.stringify({ do_resize: false }));
  const plain = imageProcessorOf(dir.path);
  assert.equal(plain.size, undefined);
  for (const [key, want] of tensors) {
    const got = plain.resizeAndCrop(await readImage(golden('images', 'files', key.slice('level.'.length))));
    assert.deepEqual([got.height, got.width, 3], want.shape, key);
    assert.deepEqual(got.data, want.bytes(), key);
    valuesCompared += got.data.length;
  }
  assert.equal(tensors.size, readdirSync(golden('images', 'files')).length - 1);
  t.diagnostic(`${tensors.size} files, ${valuesCompared} pixel values in all`);
});

test('an image that cannot be read is refused with the reason', async () => {
  const good = readFileSync(golden('images', 'files', '420.jpg'));
  const png = readFileSync(golden('images', 'files', 'rgb.png'));
  await assert.rejects(decodeImage(Buffer.from('GIF89a'), 'a.gif'), /a\.gif.*neither a PNG nor a JPEG/);
  await assert.rejects(decodeImage(good.subarray(0, 60), 'cut.jpg'), /cut\.jpg.*damaged/);
  await assert.rejects(decodeImage(png.subarray(0, 60), 'cut.png'), /cut\.png.*damaged/);
  await assert.rejects(readImage('nowhere.png'), /nowhere\.png.*the image was not found/);
  using dir = temporary();
  assert.throws(() => imageProcessorOf(dir.path), /no preprocessor_config\.json/);
  const processorOf = (config: object) => {
    writeFileSync(join(dir.path, 'preprocessor_config.json'), JSON.stringify(config));
    return imageProcessorOf(dir.path);
  };
  assert.throws(() => processorOf({ resample: 7 }), /resample 7 is not one of 0, 1, 2, 3/);
  assert.throws(() => processorOf({ size: { shortest_edge: 224 } }), /size/);
  const small = { width: 4, height: 4, channels: 3, data: new Uint8Array(48) };
  assert.throws(
    () => processorOf({ do_resize: false, do_center_crop: true, crop_size: 9 }).resizeAndCrop(small),
    /does not fit/,
  );
});

test('the names of folders are labels', () => {
  using dir = temporary();
  assert.throws(() => imageRecords(dir.path), /none of its folders contains images/);
  for (const label of ['dog', 'cat']) {
    mkdirSync(join(dir.path, label));
    for (const name of ['2.png', '1.JPG', 'notes.txt']) writeFileSync(join(dir.path, label, name), '');
  }
  const found = imageRecords(dir.path).map(({ value }) => [value.label, value.image]);
  const record = (label: string, name: string) => [label, join(dir.path, label, name)];
  assert.deepEqual(found, [
    record('cat', '1.JPG'),
    record('cat', '2.png'),
    record('dog', '1.JPG'),
    record('dog', '2.png'),
  ]);
});
