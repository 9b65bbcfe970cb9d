import assert from 'node:assert/strict';
import test from 'node:test';
import { GraftError } from '../../base/index.ts';
import { selectTargets } from './index.ts';
import { fullMatch } from './python-regex.ts';

const paths = [
  'model.layers.0.q_proj',
  'model.layers.11.q_proj',
  'model.layers.3.self_attn.v_proj',
  'h.0.attn',
  'qproj',
  'q_proj',
  'a]b.x',
  'qqq_proj',
  'layers.{,2}',
  'aab.aab',
  'model.layers.111.q_proj',
];

/** Patterns, with the numbers of the paths that they match whole; by Python 3.11.7's re.fullmatch. */
const matched: readonly (readonly [pattern: string, paths: readonly number[]])[] = [
  ['.*layers\\.\\d{,2}\\.q_proj', [0, 1]],
  ['q{,3}_proj', [5, 7]],
  ['.*\\.[^]a]*_proj', [0, 1, 2, 10]],
  ['a[]x]b\\.x', [6]],
  ['(?P<n>aa?b)\\.(?P=n)', [9]],
  ['(?i).*Q_PROJ', [0, 1, 5, 7, 10]],
  ['\\Amodel\\..*v_proj\\Z', [2]],
  ['.*(?#comment)q_proj', [0, 1, 5, 7, 10]],
  ['q{,}_?proj', [4, 5, 7]],
  ['.*\\{,2\\}', [8]],
  ['[{,2}]*x', []],
  ['(?s:.*)attn', [3]],
];

test("patterns have Python's meaning", () => {
  for (const [pattern, numbers] of matched) {
    const found = [...paths.keys()].filter((i) => fullMatch(pattern, 'target_modules').test(paths[i]!));
    assert.deepEqual(found, numbers, pattern);
  }
  assert.equal(matched.length, 12);
  assert.throws(
    () => fullMatch('(a', 'exclude_modules'),
    (error) => error instanceof GraftError && error.place === 'exclude_modules',
  );
});

test('`{,n}` counts in target_modules and in exclude_modules', () => {
  const candidates = [9, 10, 123].map((n) => ({ path: `model.layers.${n}.q_proj`, kind: 'linear' as const }));
  const selected = (config: object) => selectTargets(candidates, config, []).map(({ path }) => path.split('.')[2]);
  assert.deepEqual(selected({ target_modules: '.*layers\\.\\d{,2}\\.q_proj' }), ['9', '10']);
  assert.deepEqual(selected({ target_modules: ['q_proj'], exclude_modules: '.*layers\\.\\d{,2}\\.q_proj' }), ['123']);
});
