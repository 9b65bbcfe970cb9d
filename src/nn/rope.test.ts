/** Rotary positions against transformers (tools/golden/make_rope.py). */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test, { before } from 'node:test';
import { golden, numbers } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { scope, Tensor } from '../tensor/index.ts';
import { packTokens, type RopeFields, RopeTable, ropeOf } from './index.ts';

before(() => startEngine());

type Fields = Readonly<Record<string, unknown>>;

interface Golden {
  provenance: { tolerance: { frequencies: number } };
  lengths: number[];
  common: Record<'llama' | 'gpt_neox', Fields>;
  cases: {
    model_type: 'llama' | 'gpt_neox';
    config: Fields;
    lengths: number[];
    frequencies: number[][];
    attention_factor: number;
  }[];
}

const facts = JSON.parse(readFileSync(golden('rope', 'rope.json'), 'utf8')) as Golden;

const rotation = (type: 'llama' | 'gpt_neox', config: Fields) => {
  const neox = {
    rope_theta: config.rotary_emb_base ?? 10_000,
    partial_rotary_factor: config.rotary_pct ?? 0.25,
  };
  const fields = { ...facts.common[type], ...config, ...(type === 'gpt_neox' && neox) } as unknown as RopeFields;
  return ropeOf(fields, type === 'gpt_neox' ? 32 : 16, type === 'gpt_neox');
};

test("every kind and spelling of scaling has transformers' angles and factor, for rows of every length", (t) => {
  let compared = 0;
  for (const { model_type: type, config, lengths, frequencies, attention_factor: factor } of facts.cases) {
    const name = `${type} ${JSON.stringify(config)}`;
    const rope = rotation(type, config);
    assert.ok(Math.abs(rope.attentionFactor / factor - 1) < 1e-12, name);
    lengths.forEach((set, i) => {
      const got = rope.frequencies(rope.variantOf(facts.lengths[i]!));
      const want = frequencies[set]!;
      assert.equal(got.length, want.length, name);
      want.forEach((angle, pair) => {
        const error = angle === 0 ? Math.abs(got[pair]!) : Math.abs(got[pair]! / angle - 1);
        assert.ok(
          error <= facts.provenance.tolerance.frequencies,
          `${name}: length ${facts.lengths[i]}, pair ${pair}: ${error}`,
        );
        compared++;
      });
    });
  }
  t.diagnostic(`${facts.cases.length} configs, ${compared} angles`);
  assert.ok(facts.cases.length >= 50);
});

test('what transformers would ignore or read otherwise is refused', () => {
  const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 16 };
  const longrope = { rope_type: 'longrope', factor: 2 };
  const wrong: readonly [Fields, RegExp][] = [
    [{ rope_scaling: { type: 'mrope' } }, /rope scaling of type 'mrope' is not supported \(default, linear, dynamic/],
    [{ rope_scaling: { type: 'linear' } }, /the rope parameter 'factor' is missing/],
    [{ rope_scaling: { type: 'linear', factor: '4' } }, /'factor' is "4", not a positive number/],
    [{ rope_scaling: { ...yarn, truncate: 1 } }, /'truncate' is 1, not true or false/],
    [{ rope_parameters: { rope_type: 'default', factor: 4 } }, /type 'default' does not read factor/],
    [{ rope_parameters: { full_attention: { rope_type: 'default' } } }, /does not read full_attention/],
    [{ rope_parameters: { rope_theta: 1e6 }, rope_scaling: yarn }, /rope_theta is 10000 instead of 1000000/],
    [{ rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.5 } }, /this model rotates whole heads/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0\.5/],
    [{ rope_scaling: { ...longrope, short_factor: [1, 2], long_factor: [1, 2] } }, /not a list of 8 positive numbers/],
    [{ rope_scaling: longrope }, /'short_factor' is missing/],
    [{ rope_scaling: { type: 'linear', factor: 0 } }, /angles that are not numbers/],
  ];
  for (const [config, why] of wrong) assert.throws(() => rotation('llama', config), why, JSON.stringify(config));
});

/** Rows of these lengths, each with `first` tokens before it. */
function rowsOf(lengths: readonly number[], first = 0) {
  const { rowStarts } = packTokens(lengths.map((length) => new Array(length).fill(1)));
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, i) => BigInt(first + i)));
  return {
    rowStarts,
    positions: Tensor.from(BigInt64Array.from(positions)),
    firstPositions: lengths.map(() => first),
    isContinued: lengths.map(() => false),
  };
}

const dynamic = { rope_scaling: { type: 'dynamic', factor: 2 } };

test('in one pack every row has the angles of its own length; a prefix counts', () => {
  using _ = scope();
  const rope = rotation('llama', dynamic);
  const table = new RopeTable(rope, 'float32');
  const lengths = [3, 70, 64, 5, 66];
  const packed = rowsOf(lengths);
  const [cos, sin] = table.at(packed).map(numbers) as [Float32Array, Float32Array];
  lengths.forEach((length, r) => {
    const angles = rope.frequencies(rope.variantOf(length));
    for (let p = 0; p < length; p++) {
      for (let i = 0; i < 8; i++) {
        const at = (packed.rowStarts[r]! + p) * 8 + i;
        const angle = Math.fround(p * angles[i]!);
        assert.ok(Math.abs(cos[at]! - Math.cos(angle)) < 1e-6 && Math.abs(sin[at]! - Math.sin(angle)) < 1e-6);
      }
    }
  });
  // Two rows of 30 and 40 tokens behind a prefix of 30: the second is longer than 64.
  const behind = rowsOf([30, 40], 30);
  const shifted = numbers(table.at(behind)[0]);
  const [short, long] = [60, 70].map((length) => rope.frequencies(rope.variantOf(length)));
  const pair = 2;
  assert.ok(Math.abs(shifted[29 * 8 + pair]! - Math.cos(59 * short![pair]!)) < 1e-5);
  assert.ok(Math.abs(shifted[69 * 8 + pair]! - Math.cos(69 * long![pair]!)) < 1e-5);
  assert.ok(Math.abs(Math.cos(69 * short![pair]!) - Math.cos(69 * long![pair]!)) > 1e-3, 'the difference shows');
  table.dispose();
});

test('a cached row goes on while its angles stay, and is refused where they change', () => {
  using _ = scope();
  const lists = { short_factor: new Array(8).fill(1), long_factor: new Array(8).fill(2) };
  const longrope = { rope_scaling: { type: 'su', original_max_position_embeddings: 16, ...lists } };
  for (const [config, fits, breaks] of [
    [dynamic, 64, 65],
    [longrope, 16, 17],
  ] as const) {
    const table = new RopeTable(rotation('llama', config), 'float32');
    const step = (length: number) => table.at({ ...rowsOf([1], length - 1), isContinued: [true] });
    assert.equal(step(fits)[0].size(0), 1);
    assert.throws(() => step(breaks), new RegExp(`a row of ${fits} tokens is continued to ${breaks}`));
    assert.equal(table.at(rowsOf([breaks]))[0].size(0), breaks);
    table.dispose();
  }
});
