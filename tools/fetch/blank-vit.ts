/**
 * Writes a small ViT with random weights as a Hugging Face directory: images of 16 × 16 in 16 patches, 6 layers, width 96.
 *   node tools/run.cjs tools/fetch/blank-vit.ts FOLDER
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomStream } from '../../src/data/index.ts';
import { type TensorToWrite, writeSafetensors } from '../../src/io/index.ts';

const [width, inner, layers, image, patch] = [96, 192, 6, 16, 4];

const config = {
  architectures: ['ViTModel'],
  model_type: 'vit',
  hidden_size: width,
  intermediate_size: inner,
  num_hidden_layers: layers,
  num_attention_heads: 4,
  image_size: image,
  patch_size: patch,
  num_channels: 3,
};

const preprocessing = {
  image_processor_type: 'ViTImageProcessor',
  do_resize: true,
  size: { height: image, width: image },
  resample: 3,
  do_rescale: true,
  do_normalize: true,
  image_mean: [0.5, 0.5, 0.5],
  image_std: [0.5, 0.5, 0.5],
};

const random = randomStream(0);

/** Returns a tensor of uniform random numbers around 0, scaled so that a matrix keeps the variance; ones for a norm, zeros for a bias. */
function tensor(name: string, ...shape: number[]): TensorToWrite {
  const count = shape.reduce((a, b) => a * b);
  const bound = name.endsWith('embeddings') || name.endsWith('token') ? 0.035 : Math.sqrt((3 * shape[0]!) / count);
  const value = shape.length > 1 ? () => (2 * random() - 1) * bound : () => Number(name.endsWith('weight'));
  const numbers = Float32Array.from({ length: count }, value);
  return { name, dtype: 'float32', shape, bytes: new Uint8Array(numbers.buffer) };
}

/** Returns `name.weight` and `name.bias`. */
const part = (name: string, ...shape: number[]) => [
  tensor(`${name}.weight`, ...shape),
  tensor(`${name}.bias`, shape[0]!),
];

const [folder] = process.argv.slice(2);
if (!folder) {
  console.error('usage: node tools/run.cjs tools/fetch/blank-vit.ts FOLDER');
  process.exit(2);
}
mkdirSync(folder, { recursive: true });
const tensors = [
  tensor('embeddings.cls_token', 1, 1, width),
  tensor('embeddings.position_embeddings', 1, (image / patch) ** 2 + 1, width),
  ...part('embeddings.patch_embeddings.projection', width, 3, patch, patch),
  ...Array.from({ length: layers }, (_, i) => `encoder.layer.${i}`).flatMap((at) => [
    ...part(`${at}.layernorm_before`, width),
    ...['query', 'key', 'value'].flatMap((name) => part(`${at}.attention.attention.${name}`, width, width)),
    ...part(`${at}.attention.output.dense`, width, width),
    ...part(`${at}.layernorm_after`, width),
    ...part(`${at}.intermediate.dense`, inner, width),
    ...part(`${at}.output.dense`, width, inner),
  ]),
  ...part('layernorm', width),
];
writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' });
writeFileSync(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
writeFileSync(join(folder, 'preprocessor_config.json'), `${JSON.stringify(preprocessing, null, 2)}\n`);
const parameters = tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0);
console.log(`${folder}: a ViT with ${parameters.toLocaleString('en')} random parameters`);
