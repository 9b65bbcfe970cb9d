import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { startEngine } from '../engine/index.ts';
import { dtypes, ops, scope, Tensor } from '../tensor/index.ts';
import { formatOfGgmlType, formatOfQuantize, formats, type NumberFormat, quantizeModes } from './index.ts';

before(() => startEngine());

const rows: [string, NumberFormat][] = Object.entries(formats);

test('native code has the same blocks under the same numbers', (t) => {
  using _ = scope();
  const packed = rows.filter(([, { nativeId }]) => nativeId !== undefined);
  for (const [name, { nativeId, blockElements, blockBytes }] of packed) {
    const unpacked = (bytes: number) => ops.dequantize(Tensor.from(new Uint8Array(2 * bytes), [2, bytes]), nativeId!);
    assert.deepEqual(unpacked(3 * blockBytes).shape, [2, 3 * blockElements], name);
    // Any other size of a block that divides three of these would have passed so far.
    assert.throws(() => unpacked(blockBytes - 1), new RegExp(`not a whole number of blocks of ${blockBytes}\\b`), name);
  }
  t.diagnostic(`${packed.length} formats`);
  assert.ok(packed.length >= 18);
});

test('numbers are given once, and every element type has a row', () => {
  for (const key of ['nativeId', 'ggmlType'] as const) {
    const numbers = rows.flatMap(([, row]) => row[key] ?? []);
    assert.equal(new Set(numbers).size, numbers.length, key);
  }
  for (const name of Object.keys(dtypes)) assert.ok(name in formats, name);
  for (const [name, { ggmlType }] of rows) if (ggmlType !== undefined) assert.equal(formatOfGgmlType(ggmlType), name);
  assert.deepEqual(quantizeModes.map(formatOfQuantize), [undefined, undefined, 'q8_0', 'nf4']);
});
