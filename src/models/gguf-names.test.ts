/** What a GGUF file's metadata becomes, where no file of test/golden/gguf has it. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { ggufLlamaConfig } from './gguf-names.ts';

const config = (scaling: Readonly<Record<string, unknown>>) => {
  const sizes = { 'attention.head_count': 4, embedding_length: 32, feed_forward_length: 64, block_count: 2 };
  const rest = { 'attention.layer_norm_rms_epsilon': 1e-5, context_length: 128, vocab_size: 96 };
  const fields = Object.entries({ ...sizes, ...rest, ...scaling }).map(([key, value]) => [`qwen3.${key}`, value]);
  return ggufLlamaConfig(new Map([['general.architecture', 'qwen3'], ...(fields as [string, never][])]), () => false);
};

test('positions scaled linearly or not at all are read; another scaling is refused rather than ignored', () => {
  const plain = { rope_theta: 10_000, rope_type: 'default' };
  assert.deepEqual(config({}).rope_parameters, plain);
  assert.deepEqual(config({ 'rope.scaling.type': 'none' }).rope_parameters, plain);
  const linear = config({ 'rope.scaling.type': 'linear', 'rope.scaling.factor': 2 });
  assert.deepEqual(linear.rope_parameters, { rope_theta: 10_000, rope_type: 'linear', factor: 2 });
  assert.throws(() => config({ 'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4 }), /rope scaling of type 'yarn'/);
});
