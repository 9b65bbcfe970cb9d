import assert from 'node:assert/strict';
import test from 'node:test';
import { nearest } from './index.ts';

test('the nearest word: a slip of the pen is, another word is not, nor is another single letter', () => {
  const known = ['lora', 'prefix', 'p-tuning', '0', '4', 'x'];
  const meant = ['lroa', 'prefx', 'P_Tuning', 'X', '5', 'y', 'adapter', ''].map((word) => nearest(word, known));
  assert.deepEqual(meant, ['lora', 'prefix', 'p-tuning', 'x', undefined, undefined, undefined, undefined]);
});
