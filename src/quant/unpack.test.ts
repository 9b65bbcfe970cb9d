import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { startEngine } from '../engine/index.ts';
import { Generator, ops, scope, Tensor } from '../tensor/index.ts';
import { formats } from './formats.ts';
import { unpackable, unpacked } from './unpack.ts';

before(() => startEngine());

/** A weight of random bytes, whose scales are finite. */
function randomBlocks(blockBytes: number, seed: number): Tensor {
  using generator = new Generator(seed);
  const bytes = ops.rand([6, 4 * blockBytes], { generator }).data() as Float32Array;
  return Tensor.from(
    Uint8Array.from(bytes, (u) => Math.floor(u * 256)),
    [6, 4 * blockBytes],
  );
}

test('plain operators unpack every packed format to the bits of the fused one', () => {
  const packed = Object.entries(formats).filter(([, { nativeId }]) => nativeId !== undefined);
  assert.deepEqual(
    packed.map(([, { nativeId }]) => nativeId!).sort((a, b) => a - b),
    [...unpackable].sort((a, b) => a - b),
  );
  assert.equal(packed.length, 18);
  for (const [name, { nativeId, blockBytes, blockElements }] of packed) {
    using _ = scope();
    const weight = randomBlocks(blockBytes, nativeId!);
    const expected = ops.dequantize(weight, nativeId!);
    const found = unpacked(weight, nativeId!);
    assert.deepEqual(found.shape, [6, 4 * blockElements], name);
    // A scale may be infinite or no number: its elements are then no numbers on both sides.
    const [a, b] = [expected.data(), found.data()] as [Float32Array, Float32Array];
    const different = a.findIndex(
      (value, i) => !Object.is(value, b[i]) && !(Number.isNaN(value) && Number.isNaN(b[i])),
    );
    assert.equal(different, -1, `${name}: element ${different} is ${b[different]} and not ${a[different]}`);
    assert.ok(a.filter(Number.isFinite).length > a.length / 2, name);
  }
});

test('plain operators know the shapes of weights without numbers', () => {
  for (const format of unpackable) {
    using _ = scope();
    const row = Object.values(formats).find(({ nativeId }) => nativeId === format)!;
    const weight = Tensor.empty([5, 3 * row.blockBytes], 'uint8', 'meta');
    assert.deepEqual(unpacked(weight, format).shape, [5, 3 * row.blockElements]);
  }
});
