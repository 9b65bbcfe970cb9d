import assert from 'node:assert/strict';
import { cpSync, mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import test, { before } from 'node:test';
import { golden, numbers, relativeError, temporary } from '../../test/support.ts';
import { startEngine } from '../engine/index.ts';
import { type Model, outputOf, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope } from '../tensor/index.ts';
import { loadModel } from './index.ts';
import { sentenceSettings } from './sentence.ts';

before(() => startEngine());

/** A directory with these files as JSON. */
function files(dir: string, content: Readonly<Record<string, unknown>>): string {
  for (const [name, value] of Object.entries(content)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    writeFileSync(join(dir, name), JSON.stringify(value));
  }
  return dir;
}

const module = (kind: string, path: string) => ({ type: `sentence_transformers.models.${kind}`, path });
const modes = (...on: string[]) =>
  Object.fromEntries(['mean_tokens', 'cls_token', 'max_tokens'].map((m) => [`pooling_mode_${m}`, on.includes(m)]));

test('pooling and normalisation are those that sentence-transformers would use', () => {
  const list = [module('Transformer', ''), module('Pooling', '1_Pooling')];
  const cases: [Record<string, unknown>, object][] = [
    [{}, {}],
    [{ 'modules.json': list, '1_Pooling/config.json': modes('cls_token') }, { pooling: 'cls' }],
    [{ 'modules.json': list, '1_Pooling/config.json': { pooling_mode: 'lasttoken' } }, { pooling: 'lasttoken' }],
    [
      { 'modules.json': [...list, module('Normalize', '2_Normalize')], '1_Pooling/config.json': modes('mean_tokens') },
      { pooling: 'mean', normalize: true },
    ],
    [
      { '1_Pooling/config.json': modes('max_tokens'), '2_Normalize/x.json': {} },
      { pooling: 'max', normalize: true },
    ],
  ];
  for (const [content, want] of cases) {
    using dir = temporary();
    assert.deepEqual(sentenceSettings(files(dir.path, content)), want);
  }
  const pooled = { 'modules.json': list, '1_Pooling/config.json': modes('cls_token') };
  const prompt = { prompts: { query: 'query: ' }, default_prompt_name: 'query' };
  const refused: [Record<string, unknown>, RegExp][] = [
    [{ ...pooled, '1_Pooling/config.json': { pooling_mode: ['cls', 'attention'] } }, /pooling by attention/],
    [{ ...pooled, '1_Pooling/config.json': { pooling_mode_attention: true } }, /pooling by pooling_mode_attention/],
    [{ ...pooled, 'modules.json': [...list, module('Dense', '2_Dense')] }, /'Dense'/],
    [
      { ...pooled, 'modules.json': [list[0], module('Normalize', ''), list[1]] },
      /Transformer, Normalize, Pooling .* this order/,
    ],
    [{ ...pooled, 'modules.json': [list[0]] }, /the modules Transformer /],
    [{ ...pooled, 'modules.json': [module('Transformer', '0_Transformer'), list[1]] }, /folder '0_Transformer'/],
    [
      { ...pooled, 'sentence_bert_config.json': { processing_kwargs: { text: { padding: 1 } } } },
      /'processing_kwargs'/,
    ],
    [
      { ...pooled, 'config_sentence_transformers.json': { ...prompt, prompts: {}, default_prompt_name: 'no' } },
      /'no' is not one of the prompts/,
    ],
    [
      {
        ...pooled,
        '1_Pooling/config.json': { ...modes('mean_tokens'), include_prompt: false },
        'config_sentence_transformers.json': prompt,
      },
      /include_prompt: false/,
    ],
  ];
  for (const [content, why] of refused) {
    using dir = temporary();
    assert.throws(() => sentenceSettings(files(dir.path, content)), why);
  }
});

test('a sentence has no more tokens than sentence_bert_config.json says', () => {
  using dir = temporary();
  cpSync(golden('families', 'bert'), dir.path, { recursive: true });
  files(dir.path, { 'sentence_bert_config.json': { max_seq_length: 16, do_lower_case: false } });
  using vectors = loadModel(dir.path, { task: 'embedding' });
  using classes = loadModel(dir.path, { task: 'sequence-classification' });
  assert.deepEqual([vectors.contextLength, classes.contextLength > 16], [16, true]);
});

test('each pooling is what its name says, row by row, and vectors have the length 1 where asked', () => {
  using _ = scope();
  const tokens = packTokens([
    [5, 6, 7, 8],
    [9, 30],
  ]);
  const vectors = (settings: Record<string, unknown>) => {
    using dir = temporary();
    cpSync(golden('families', 'bert'), dir.path, { recursive: true });
    using model: Model = loadModel(files(dir.path, settings));
    return noGrad(() => ({
      got: numbers(outputOf(model, tokens)).slice(),
      hidden: numbers(ops.contiguous(model.hidden(tokens))).slice(),
    }));
  };
  const width = 32;
  const rows = [
    [0, 4],
    [4, 6],
  ] as const;
  const sum = (column: readonly number[]) => column.reduce((a, b) => a + b);
  const wanted: Readonly<Record<string, (column: number[]) => number>> = {
    mean_sqrt_len_tokens: (column) => sum(column) / Math.sqrt(column.length),
    weightedmean: (column) => sum(column.map((x, i) => x * (i + 1))) / sum(column.map((_, i) => i + 1)),
    mean: (column) => column.reduce((a, b) => a + b) / column.length,
    cls: (column) => column[0]!,
    max: (column) => Math.max(...column),
    lasttoken: (column) => column.at(-1)!,
  };
  for (const [pooling, of] of Object.entries(wanted)) {
    const { got, hidden } = vectors({ '1_Pooling/config.json': { pooling_mode: pooling } });
    const want = rows.flatMap(([from, to]) =>
      Array.from({ length: width }, (_, c) =>
        of(Array.from({ length: to - from }, (_, i) => hidden[(from + i) * width + c]!)),
      ),
    );
    assert.ok(relativeError(got, want) <= 1e-6, pooling);
    const { got: unit } = vectors({ '1_Pooling/config.json': { pooling_mode: pooling }, '2_Normalize/x.json': {} });
    for (const r of [0, 1]) {
      const row = want.slice(r * width, (r + 1) * width);
      const length = Math.hypot(...row);
      const error = relativeError(
        unit.subarray(r * width, (r + 1) * width),
        row.map((x) => x / length),
      );
      assert.ok(error <= 1e-6, `${pooling}, row ${r}: ${error}`);
    }
  }
});
