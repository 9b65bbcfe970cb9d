import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { golden, numbers, readTensors, relativeError, temporary } from '../../../test/support.ts';
import { startEngine } from '../../engine/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import { decodeImage, imageProcessorOf, imageRecords, readImage } from './image.ts';
import type { Image } from './resample.ts';

before(() => startEngine());

const cases = ['vit-bilinear', 'vit-bicubic-imagenet', 'vit-nearest-plain', 'deit-crop'];

const imageOf = (tensor: Tensor): Image => {
  const [height, width, channels = 1] = tensor.shape as [number, number, number?];
  return { width, height, channels, data: tensor.bytes().slice() };
};

let levelsCompared = 0;

for (const name of cases) {
  test(`${name}: whole levels are Pillow's, the numbers are transformers'`, () => {
    const { tensors: images } = readTensors(golden('images', 'images.safetensors'));
    const { tensors, metadata } = readTensors(golden('images', name, 'golden.safetensors'));
    const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: { pixels: number } };
    const processor = imageProcessorOf(golden('images', name));
    assert.equal(images.size, 7);
    for (const [key, tensor] of images) {
      const image = imageOf(tensor);
      const want = tensors.get(key.replace('image', 'resized'))!;
      const got = processor.levels(image);
      assert.deepEqual([got.height, got.width, got.channels], want.shape, key);
      assert.deepEqual(got.data, want.bytes(), key);
      levelsCompared += got.data.length;
      const error = relativeError(processor.numbers(got), numbers(tensors.get(key.replace('image', 'pixels'))!));
      assert.ok(error <= tolerance.pixels, `${key} differs by ${error}`);
      assert.deepEqual(processor.size, { height: want.shape[0], width: want.shape[1] });
    }
  });
}

test("files have Pillow's levels, every kind of PNG and JPEG and all orientations", async (t) => {
  const { tensors } = readTensors(golden('images', 'files', 'levels.safetensors'));
  using dir = temporary();
  // Without steps but the change to colours.
  writeFileSync(join(dir.path, 'preprocessor_config.json'), JSON.stringify({ do_resize: false }));
  const plain = imageProcessorOf(dir.path);
  assert.equal(plain.size, undefined);
  for (const [key, want] of tensors) {
    const got = plain.levels(await readImage(golden('images', 'files', key.slice('level.'.length))));
    assert.deepEqual([got.height, got.width, 3], want.shape, key);
    assert.deepEqual(got.data, want.bytes(), key);
    levelsCompared += got.data.length;
  }
  assert.equal(tensors.size, readdirSync(golden('images', 'files')).length - 1);
  t.diagnostic(`${tensors.size} files, ${levelsCompared} levels in all`);
});

test('images that cannot be read say why', async () => {
  const good = readFileSync(golden('images', 'files', '420.jpg'));
  const png = readFileSync(golden('images', 'files', 'rgb.png'));
  await assert.rejects(decodeImage(Buffer.from('GIF89a'), 'a.gif'), /a\.gif.*neither a PNG nor a JPEG/);
  await assert.rejects(decodeImage(good.subarray(0, 60), 'cut.jpg'), /cut\.jpg.*damaged/);
  await assert.rejects(decodeImage(png.subarray(0, 60), 'cut.png'), /cut\.png.*damaged/);
  await assert.rejects(readImage('nowhere.png'), /nowhere\.png.*no such image/);
  using dir = temporary();
  assert.throws(() => imageProcessorOf(dir.path), /no preprocessor_config\.json/);
  const asked = (config: object) => {
    writeFileSync(join(dir.path, 'preprocessor_config.json'), JSON.stringify(config));
    return imageProcessorOf(dir.path);
  };
  assert.throws(() => asked({ resample: 7 }), /resample 7 is not one of 0, 1, 2, 3/);
  assert.throws(() => asked({ size: { shortest_edge: 224 } }), /size/);
  const small = { width: 4, height: 4, channels: 3, data: new Uint8Array(48) };
  assert.throws(() => asked({ do_resize: false, do_center_crop: true, crop_size: 9 }).levels(small), /does not fit/);
});

test('folders are labels', () => {
  using dir = temporary();
  assert.throws(() => imageRecords(dir.path), /no folder in it has images/);
  for (const label of ['dog', 'cat']) {
    mkdirSync(join(dir.path, label));
    for (const name of ['2.png', '1.JPG', 'notes.txt']) writeFileSync(join(dir.path, label, name), '');
  }
  const found = imageRecords(dir.path).map(({ value }) => [value.label, value.image]);
  const of = (label: string, name: string) => [label, join(dir.path, label, name)];
  assert.deepEqual(found, [of('cat', '1.JPG'), of('cat', '2.png'), of('dog', '1.JPG'), of('dog', '2.png')]);
});
