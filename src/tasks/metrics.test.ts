/** Metrics against seqeval, SQuAD's evaluation, scikit-learn and SciPy (tools/golden/make_metrics.py). */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { golden } from '../../test/support.ts';
import { entitiesOf, entityMetrics } from './entities.ts';
import { taskOf } from './index.ts';
import { bootstrap, confusionOf, macroF1, pearson, spearman, wilson } from './metrics.ts';
import { squadScores } from './squad.ts';

type Case =
  | { kind: 'chunks'; tags: string[]; chunks: [string, number, number][] }
  | { kind: 'entities'; wanted: string[][]; said: string[][]; f1: number; precision: number; recall: number }
  | { kind: 'answers'; said: string; wanted: string[]; exact: number; f1: number }
  | { kind: 'classes'; classes: number; wanted: number[]; said: number[]; macro: number; confusion: number[][] }
  | { kind: 'several'; wanted: number[][]; said: number[][]; micro: number; macro: number }
  | { kind: 'numbers'; x: number[]; y: number[]; pearson: number; spearman: number };

const { cases } = JSON.parse(readFileSync(golden('metrics', 'metrics.json'), 'utf8')) as { cases: Case[] };
const of = <K extends Case['kind']>(kind: K) => cases.filter((c): c is Extract<Case, { kind: K }> => c.kind === kind);
const close = (got: number, want: number) => assert.ok(Math.abs(got - want) < 1e-12, `${got}, not ${want}`);

test("the entities of 120 rows of tags are seqeval's", () => {
  const rows = of('chunks');
  assert.equal(rows.length, 120);
  for (const { tags, chunks } of rows)
    assert.deepEqual([...entitiesOf(tags)].sort(), chunks.map((chunk) => chunk.join(' ')).sort(), tags.join(' '));
});

test("entity F1, precision and recall are seqeval's and within their intervals", () => {
  const sets = of('entities');
  assert.equal(sets.length, 4);
  for (const { wanted, said, ...want } of sets) {
    const [f1, precision, recall] = entityMetrics(wanted, said);
    close(f1!.value, want.f1);
    close(precision!.value, want.precision);
    close(recall!.value, want.recall);
    for (const { low, value, high } of [f1!, precision!, recall!]) assert.ok(low < value && value < high);
    assert.equal(
      f1!.count,
      wanted.reduce((sum, tags) => sum + entitiesOf(tags).size, 0),
    );
  }
});

test("exact match and F1 of 120 answers are those of SQuAD's script", () => {
  const rows = of('answers');
  assert.equal(rows.length, 120);
  for (const { said, wanted, exact, f1 } of rows) {
    const got = squadScores(said, wanted);
    assert.equal(got.exact, exact, said);
    close(got.f1, f1);
  }
});

test("confusion matrix and macro F1 are scikit-learn's; for multi-label rows, micro and macro F1", () => {
  const sets = of('classes');
  assert.equal(sets.length, 2);
  for (const { classes, wanted, said, macro, confusion } of sets) {
    assert.deepEqual(confusionOf(wanted, said, classes), confusion);
    close(macroF1(confusion), macro);
  }
  const [several] = of('several');
  const { wanted, said } = several!;
  const task = taskOf({ name: 'sequence-classification', labels: ['a', 'b', 'c', 'd'], multiLabel: true });
  const rows = wanted.map((target) => ({ ids: new Int32Array(1), labels: new Int32Array(), place: '', target }));
  const outputs = new Map(rows.map((row, i) => [row as object, Float32Array.from(said[i]!, (v) => v - 0.5)]));
  const { metrics } = task.metrics!(rows, (row) => outputs.get(row)!);
  const byName = Object.fromEntries(metrics.map((metric) => [metric.name, metric]));
  close(byName.f1_micro!.value, several!.micro);
  close(byName.f1_macro!.value, several!.macro);
  assert.deepEqual([byName.exact_match!.count, byName.f1_micro!.count], [40, 160]);
});

test("correlations are SciPy's, with ties too", () => {
  const sets = of('numbers');
  assert.equal(sets.length, 3);
  for (const { x, y, ...want } of sets) {
    close(pearson(x, y), want.pearson);
    close(spearman(x, y), want.spearman);
  }
});

test('the bootstrap interval of a proportion is close to the Wilson interval, and deterministic', () => {
  const hits = Array.from({ length: 200 }, (_, i) => (i % 4 === 0 ? 0 : 1));
  const share = (indices: readonly number[]) => indices.reduce((sum, i) => sum + hits[i]!, 0) / indices.length;
  const [resampled, exact] = [bootstrap(200, share), wilson(150, 200)];
  assert.equal(resampled.value, 0.75);
  assert.deepEqual(bootstrap(200, share), resampled);
  for (const side of ['low', 'high'] as const)
    assert.ok(Math.abs(resampled[side] - exact[side]) < 0.015, `${resampled[side]}`);
});
