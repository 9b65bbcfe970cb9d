/**
 * Blocks that llama.cpp's quantiser makes (tools/golden/make_quant_gguf.py), bit for bit: of numbers as weights have them, and of
 * zeros, ties, outliers, subnormal numbers. The file runs twice: with the instructions of this processor, and with AVX2 only.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import test, { before } from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { formats, ggmlBlockNames } from '../../src/quant/index.ts';
import { ops, scope, Tensor } from '../../src/tensor/index.ts';
import { golden } from '../support.ts';

before(() => startEngine());

interface Case {
  readonly kind: keyof typeof kinds;
  readonly seed: number;
  readonly rows: number;
  readonly width: number;
  readonly input: string;
  readonly [blocks: `blocks.${string}`]: string;
  readonly [first: `first.${string}`]: string | undefined;
}

const { cases } = JSON.parse(readFileSync(golden('quant', 'gguf.json'), 'utf8')) as { cases: Case[] };

// The numbers of the script, by the number of an element in its matrix.
function uniform(seed: number, i: number): number {
  let h = (i + seed * 0x9e3779b9) % 2 ** 32;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return ((h ^ (h >>> 16)) >>> 8) / 2 ** 24;
}

function bell(seed: number, i: number): number {
  let sum = 0;
  for (let k = 0; k < 6; k++) sum += uniform(seed + 101 * k, i);
  return sum * Math.SQRT2 - 4.242640687119286;
}

const { floor, abs } = Math;
const kinds = {
  normal: (s: number, i: number) => bell(s, i) * 0.05,
  spread: (s: number, i: number) => bell(s, i) * 2 ** (floor(uniform(s + 7, i) * 14) - 10),
  ties: (s: number, i: number) => (floor(uniform(s, i) * 65) - 32) / 4,
  few: (s: number, i: number) => floor(uniform(s, i) * 3) - 1,
  flat: (s: number, i: number) => bell(s, floor(i / 32)),
  'flat halves': (s: number, i: number) => bell(s, floor(i / 16)) * 1e-3,
  zeros: (s: number, i: number) => 0 * (uniform(s, i) - 0.5),
  positive: (s: number, i: number) => abs(bell(s, i)) + 0.25,
  negative: (s: number, i: number) => -abs(bell(s, i)) - 0.25,
  outlier: (s: number, i: number) => {
    const block = floor(i / 32);
    return bell(s, i) * 0.02 * (block * 32 + floor(uniform(s + 7, block) * 32) === i ? 1000 : 1);
  },
  sparse: (s: number, i: number) => (uniform(s + 7, i) < 0.97 ? 0 : bell(s, i)),
  'blocks of sizes': (s: number, i: number) => bell(s, i) * 2 ** (floor(uniform(s + 7, floor(i / 16)) * 24) - 20),
  close: (s: number, i: number) => 1 + floor(uniform(s, i) * 5) * 2 ** -23,
  large: (s: number, i: number) => bell(s, i) * 1e4,
  'half subnormal': (s: number, i: number) => bell(s, i) * 2 ** -18,
  tiny: (s: number, i: number) => bell(s, i) * 2e-15,
  'smallest normal': (s: number, i: number) => bell(s, i) * 2 ** -126,
  subnormal: (s: number, i: number) => bell(s, i) * 2 ** -140,
  'last bits': (s: number, i: number) => floor(uniform(s, i) * 5 - 2) * 2 ** -149,
};

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

test('blocks are those of llama.cpp, bit for bit', (t) => {
  let [compared, elements] = [0, 0];
  for (const golden of cases) {
    using _ = scope();
    const { kind, seed, rows, width } = golden;
    const numbers = Float32Array.from({ length: rows * width }, (_, i) => kinds[kind](seed, i));
    assert.ok(sha256(new Uint8Array(numbers.buffer)).startsWith(golden.input), `numbers of ${kind}`);
    const weight = Tensor.from(numbers, [rows, width]);
    for (const name of ggmlBlockNames) {
      const { nativeId, blockBytes } = formats[name.toLowerCase() as 'q8_0'];
      const blocks = ops.quantize(weight, nativeId).data() as Uint8Array;
      const first = golden[`first.${name}`];
      if (first) assert.equal(hex(blocks.subarray(0, blockBytes)), first, `${name}, ${kind}, first block`);
      assert.ok(sha256(blocks).startsWith(golden[`blocks.${name}`]!), `${name}, ${kind} ${seed}`);
      compared++;
      elements += numbers.length;
    }
  }
  t.diagnostic(`${compared} matrices, ${elements} numbers`);
  assert.equal(compared, 8 * cases.length);
  assert.ok(cases.length >= 47);
});

const narrow = process.env.GRAFT_AVX2 === '1';
test('the same with AVX2 only', { skip: narrow && 'this is that run' }, () => {
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const child = spawnSync(process.execPath, [import.meta.filename], {
    env: { ...env, GRAFT_AVX2: '1' },
    encoding: 'utf8',
  });
  assert.equal(child.status, 0, `${child.stdout.slice(-4000)}${child.stderr.slice(-2000)}`);
});
