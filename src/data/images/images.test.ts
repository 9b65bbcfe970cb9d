import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { crc32 } from 'node:zlib';
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
  await assert.rejects(
    decodeImage(Buffer.from('GIF89a'), 'a.gif'),
    /a\.gif.*a GIF image, which is not read\. Convert it to PNG/,
  );
  await assert.rejects(decodeImage(good.subarray(0, 60), 'cut.jpg'), /cut\.jpg.*damaged/);
  await assert.rejects(decodeImage(png.subarray(0, 60), 'cut.png'), /cut\.png.*damaged/);
  await assert.rejects(decodeImage(Buffer.from('text'), 'a.png'), /neither a PNG nor a JPEG nor a WebP image/);
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

/** A WebP file of 8 × 8 pixels of one colour, and such a file of libwebp's animation tool, cut after its header. */
const webp = Buffer.from('UklGRh4AAABXRUJQVlA4TBEAAAAvB8ABAAdQjyIXpf+BiOh/AAA=', 'base64');

test("WebP images have Pillow's pixel values", async () => {
  const { levels } = JSON.parse(readFileSync(golden('data', 'webp.json'), 'utf8')) as {
    levels: Record<string, string>;
  };
  for (const [name, hash] of Object.entries(levels)) {
    const { data, channels } = await readImage(golden('data', name));
    const rgb = data.filter((_, i) => i % channels < 3);
    assert.equal(createHash('sha256').update(rgb).digest('hex'), hash, name);
  }
  assert.equal(Object.keys(levels).length, 2);
});

test('a header that states far more pixels than a file can have is refused before anything is decoded', async () => {
  const png = Buffer.from(readFileSync(golden('images', 'files', 'rgb.png')));
  png.writeUInt32BE(100_000, 16);
  await assert.rejects(decodeImage(png, 'a.png'), /a\.png: the header states 100000 × 23 pixels|damaged/);
  png.writeUInt32BE(100_000, 20);
  await assert.rejects(
    decodeImage(png, 'a.png'),
    /the header states 100000 × 100000 pixels, which a file of \d+ bytes/,
  );
  const jpeg = Buffer.from(readFileSync(golden('images', 'files', '420.jpg')));
  const frame = jpeg.indexOf(Buffer.from([0xff, 0xc0]));
  jpeg.writeUInt32BE(0xffff_ffff, frame + 5);
  await assert.rejects(decodeImage(jpeg, 'a.jpg'), /the header states 65535 × 65535 pixels/);
  const photo = Buffer.from(readFileSync(golden('data', 'photo.webp')));
  photo.writeUInt32LE(0x3fff_3fff, 26);
  await assert.rejects(decodeImage(photo, 'a.webp'), /the header states 16383 × 16383 pixels/);
});

test('WebP images are read; an animation is refused as one', async () => {
  const image = await decodeImage(webp, 'a.webp');
  assert.deepEqual([image.width, image.height, image.channels], [8, 8, 4]);
  for (let i = 0; i < 64; i++) assert.deepEqual([...image.data.subarray(4 * i, 4 * i + 4)], [200, 30, 40, 255]);
  await assert.rejects(decodeImage(webp.subarray(0, 24), 'cut.webp'), /cut\.webp: the image is damaged/);
  const header = Buffer.concat([Buffer.from('RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02', 'latin1'), Buffer.alloc(9)]);
  await assert.rejects(decodeImage(header, 'moving.webp'), /moving\.webp: the WebP image is animated/);
});

/** EXIF data whose only entry is the orientation, as a TIFF structure. */
function tiffOf(orientation: number): Buffer {
  const tiff = Buffer.alloc(26);
  tiff.write('II*\0', 'latin1');
  tiff.writeUInt32LE(8, 4);
  tiff.writeUInt16LE(1, 8);
  for (const [at, value] of [
    [10, 0x0112],
    [12, 3],
    [14, 1],
    [18, orientation],
  ] as const)
    tiff.writeUInt16LE(value, at);
  return tiff;
}

/** A JPEG file with a block of EXIF data put behind its first two bytes. */
function withExif(jpeg: Buffer, tiff: Buffer, length = tiff.length + 8): Buffer {
  const head = Buffer.from([0xff, 0xe1, length >> 8, length & 255]);
  return Buffer.concat([jpeg.subarray(0, 2), head, Buffer.from('Exif\0\0', 'latin1'), tiff, jpeg.subarray(2)]);
}

test('EXIF data that are damaged leave an image upright, and those of PNG and WebP turn it', async () => {
  const jpeg = readFileSync(golden('images', 'files', '420.jpg'));
  const upright = await decodeImage(jpeg, 'a.jpg');
  const turned = await decodeImage(withExif(jpeg, tiffOf(6)), 'a.jpg');
  assert.deepEqual([turned.width, turned.height], [upright.height, upright.width]);
  const outside = tiffOf(6);
  outside.writeUInt32LE(60_000, 4);
  const many = tiffOf(6);
  many.writeUInt16LE(0x0113, 10);
  many.writeUInt16LE(900, 8);
  const damaged = [
    withExif(jpeg, outside),
    withExif(jpeg, many),
    withExif(jpeg, Buffer.alloc(0)),
    withExif(jpeg, tiffOf(77)),
  ];
  for (const file of damaged) assert.deepEqual(await decodeImage(file, 'a.jpg'), upright);

  const png = readFileSync(golden('images', 'files', 'rgb.png'));
  const flat = await decodeImage(png, 'a.png');
  const chunk = (type: string, body: Buffer) => {
    const named = Buffer.concat([Buffer.from(type, 'latin1'), body]);
    const [size, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    size.writeUInt32BE(body.length);
    sum.writeUInt32BE(crc32(named));
    return Buffer.concat([size, named, sum]);
  };
  const withChunk = Buffer.concat([png.subarray(0, 33), chunk('eXIf', tiffOf(8)), png.subarray(33)]);
  const standing = await decodeImage(withChunk, 'a.png');
  assert.deepEqual([standing.width, standing.height], [flat.height, flat.width]);
  assert.equal(flat.width === flat.height, false, 'the images are not square, so that a turn shows');
});

test('of a folder of images nothing is passed over in silence', () => {
  using dir = temporary();
  const put = (...path: string[]) => {
    mkdirSync(join(dir.path, ...path.slice(0, -1)), { recursive: true });
    writeFileSync(join(dir.path, ...path), '');
  };
  const notes: string[] = [];
  const read = () => imageRecords(dir.path, (text) => notes.push(text));
  put('cat', '1.png');
  put('dog', '2.webp');
  put('dog', 'notes.txt');
  put('dog', '.DS_Store');
  assert.deepEqual(
    read().map(({ value }) => value.label),
    ['cat', 'dog'],
  );
  assert.deepEqual(notes, [`${dir.path}: not images, and not read: dog/notes.txt`]);
  put('bird', '3.tiff');
  put('bird', '4.heic');
  assert.throws(
    read,
    /images in the formats \.tiff, \.heic are not read: bird\/3\.tiff, bird\/4\.heic\. Convert them to PNG/,
  );
  for (const name of ['3.tiff', '4.heic']) rmSync(join(dir.path, 'bird', name));
  assert.throws(read, /these folders contain no images, and a label would be missing: bird/);
  rmSync(join(dir.path, 'bird'), { recursive: true });
  put('5.png');
  assert.throws(read, /these images are in no folder of a label: 5\.png/);
  put('splits', 'train', 'cat', '1.png');
  assert.throws(() => imageRecords(join(dir.path, 'splits')), /Name the folder of one split: .*splits\/train/);
});
