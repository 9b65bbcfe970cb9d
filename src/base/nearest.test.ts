import assert from 'node:assert/strict';
import test from 'node:test';
import { nearest } from './index.ts';

test('the nearest word: a typing error is near, another word is not, nor is another single letter', () => {
  const candidates = ['lora', 'prefix', 'p-tuning', '0', '4', 'x'];
  const found = ['lroa', 'prefx', 'P_Tuning', 'X', '5', 'y', 'adapter', ''].map((word) => nearest(word, candidates));
  assert.deepEqual(found, ['lora', 'prefix', 'p-tuning', 'x', undefined, undefined, undefined, undefined]);
});
