/** A comparison of methods through the command line, on a tiny model: table, page, going on, and mistakes. */

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { fromWire } from '../../src/base/index.ts';
import type { Outcome, Results } from '../../src/compare/index.ts';
import { tinyModel } from '../samples/tiny.ts';
import { assertRefused, graft } from './cli.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-compare-'));
after(() => rmSync(dir, { recursive: true }));
const model = tinyModel(join(dir, 'tiny'));
const rows = Array.from({ length: 24 }, (_, i) => ({
  text: i % 2 ? 'report town' : 'prize cash',
  label: i % 2 ? 'ham' : 'spam',
}));
writeFileSync(join(dir, 'rows.jsonl'), rows.map((row) => `${JSON.stringify(row)}\n`).join(''));

const write = (name: string, fields: Record<string, unknown>): string => {
  const comparison = {
    model,
    task: 'sequence-classification',
    data: { train: 'rows.jsonl', eval: 'rows.jsonl' },
    train: { steps: 3, batch_size: 4 },
    run: { dir: name },
    ...fields,
  };
  writeFileSync(join(dir, `${name}.yaml`), JSON.stringify(comparison));
  return `${name}.yaml`;
};

test('each method learns and is measured; a second call takes what is there, and only the new one learns', () => {
  const first = graft(dir, ['compare', write('both', { compare: { only: ['lora', 'prefix'] } })]);
  assert.equal(first.status, 0, first.stderr);
  assert.match(first.stdout, /^Quality and size\nmethod +accuracy % +95 % confidence interval/);
  assert.match(first.stdout, /\n\nSpeed and memory on .+\nmethod +tokens\/s +time s +peak MB\n/);
  const page = readFileSync(join(dir, 'both', 'comparison.html'), 'utf8');
  assert.equal(page.match(/<svg /g)?.length, 3);
  assert.equal(page.match(/<polyline class="s/g)?.length, 2);
  assert.equal(page.match(/<circle /g)?.length, 4);
  assert.match(
    page,
    /(Best|Highest accuracy): (lora|prefix), [\d.]+ % with [\d,]+ trained parameters\. (By|No method is best: )/,
  );
  assert.ok(!/(src|href)=/.test(page), 'nothing is from elsewhere');

  const again = graft(dir, ['compare', write('both', { compare: { only: ['lora', 'prefix', 'full'] } }), '--json']);
  assert.equal(again.status, 0, again.stderr);
  assert.match(again.stderr, /lora: .*\(measured earlier\)\nprefix: .*\(measured earlier\)/);
  const { outcomes, loss } = fromWire(JSON.parse(again.stdout)) as Results;
  assert.equal(new Set(outcomes.map((o) => o.rows)).size, 1, 'all were measured on the same rows');
  assert.deepEqual(
    outcomes.map(({ name }) => name),
    ['full', 'lora', 'prefix'],
  );
  for (const { losses, metric, hits, trainable, parameters, size, peakMb, tokensPerSecond } of outcomes) {
    assert.equal(losses.length, 3);
    assert.deepEqual([metric.name, metric.count], ['accuracy', 24]);
    assert.match(hits!, /^[01]{24}$/);
    assert.equal(hits!.replaceAll('0', '').length, Math.round(24 * metric.value));
    assert.ok(metric.low <= metric.value && metric.value <= metric.high);
    assert.ok(trainable > 0 && trainable <= parameters && size > 4 * 32 && peakMb > 50 && tokensPerSecond > 0);
  }
  assert.equal(outcomes[0]!.trainable, outcomes[0]!.parameters);
  assert.ok(loss > 0);
});

test('other rows in the same file: learned and measured again, and the earlier run is kept', () => {
  const few = rows.slice(0, 20).map((row) => `${JSON.stringify(row)}\n`);
  writeFileSync(join(dir, 'few.jsonl'), few.join(''));
  const fields = { data: { train: 'few.jsonl', eval: 'rows.jsonl' }, compare: { only: ['lora'] } };
  const first = graft(dir, ['compare', write('changing', fields), '--json']);
  assert.equal(first.status, 0, first.stderr);
  writeFileSync(join(dir, 'few.jsonl'), few.reverse().join(''));
  const again = graft(dir, ['compare', write('changing', fields), '--json']);
  assert.equal(again.status, 0, again.stderr);
  assert.match(again.stderr, /lora: its recipe, the model or the rows changed since it was measured\n/);
  assert.match(again.stderr, /lora: \S+ has another run, which is kept in previous-N\//);
  const losses = [first, again].map(({ stdout }) => (fromWire(JSON.parse(stdout)) as Results).outcomes[0]!.losses);
  assert.notDeepEqual(losses[0], losses[1]);
  assert.ok(
    readdirSync(join(dir, 'changing', 'lora'), { recursive: true }).some((name) => /previous-1/.test(String(name))),
  );
});

test('rows are measured as they are read to learn: columns by other names, a limit, another delimiter', () => {
  const lines = rows.map(({ text, label }) => `${text}^${label}\n`);
  writeFileSync(join(dir, 'other.csv'), `body^kind\n${lines.join('')}`);
  const data = {
    ...{ train: 'other.csv', eval: 'other.csv', columns: { text: 'body', label: 'kind' } },
    ...{ delimiter: '^', limit: 10 },
  };
  const fields = { data, compare: { only: ['lora', 'full'] } };
  const result = graft(dir, ['compare', write('columns', fields), '--json']);
  assert.equal(result.status, 0, result.stderr);
  const { outcomes, failed } = fromWire(JSON.parse(result.stdout)) as Results;
  assert.deepEqual(failed, []);
  assert.deepEqual(
    outcomes.map(({ name, metric }) => [name, metric.count]),
    [
      ['full', 10],
      ['lora', 10],
    ],
  );
});

test('a method that needs a head learns from the same conversations; one that fails is named with its reason', () => {
  const talks = rows.map(({ text, label }) => ({
    messages: [
      { role: 'user', content: text },
      { role: 'assistant', content: label },
    ],
  }));
  writeFileSync(join(dir, 'talks.jsonl'), talks.map((row) => `${JSON.stringify(row)}\n`).join(''));
  const file = write('talks', {
    task: undefined,
    data: { train: 'talks.jsonl', eval: 'talks.jsonl' },
    compare: {
      answers: ['spam', 'ham'],
      methods: {
        prefix: {},
        'p-tuning-v2': { train: { lr: 5e-3 } },
        wrong: { method: { type: 'lora', target_modules: ['nowhere'] } },
      },
    },
  });
  const { status, stdout, stderr } = graft(dir, ['compare', file, '--json']);
  assert.equal(status, 0, stderr);
  const { outcomes, failed, before } = fromWire(JSON.parse(stdout)) as Results;
  assert.deepEqual(
    outcomes.map(({ name, method, lr, metric }) => [name, method, lr, metric.name, metric.count]),
    [
      ['prefix', 'prefix', 2e-2, 'accuracy', 24],
      ['p-tuning-v2', 'prefix', 5e-3, 'accuracy', 24],
    ],
  );
  assert.equal(before?.count, 24);
  assert.ok(before && !('hits' in before));
  for (const { hits, rows, metric } of outcomes) {
    assert.equal(hits!.replaceAll('0', '').length, Math.round(24 * metric.value));
    assert.ok(
      hits!.length === 24 && rows === outcomes[0]!.rows,
      'a head and generated text are measured on the same rows',
    );
  }
  assert.deepEqual(
    failed.map(({ name }) => name),
    ['wrong'],
  );
  assert.match(failed[0]!.reason, /nowhere/);
  assert.ok(!existsSync(join(dir, 'talks', 'prefix', 'checkpoints')), 'checkpoints are of no more use');

  const kept = join(dir, 'talks', 'before.json');
  const { key, value } = JSON.parse(readFileSync(kept, 'utf8')) as { key: string; value: object };
  writeFileSync(kept, JSON.stringify({ key, value: { ...value, count: 23 } }));
  const again = graft(dir, ['compare', file, '--json']);
  assert.equal((fromWire(JSON.parse(again.stdout)) as Results).before?.count, 23, 'the base is not measured again');
});

test('mistakes: each one clear sentence', () => {
  const refused = (fields: Record<string, unknown>, sentence: RegExp) =>
    assertRefused(graft(dir, ['compare', write('wrong', fields)]), 2, sentence);
  refused({ compare: { answers: ['a', 'b'], metric: 'f1' } }, /answers are measured by accuracy.*Remove one/);
  refused({ method: { type: 'lora' } }, /does not support the field method.*compare\.methods/);
  refused({ tasks: { a: {} } }, /does not support several tasks/);
  refused({ compare: { only: ['lora', 'prefix'], metric: 'f1' } }, /no metric 'f1'.*accuracy, f1_macro/);
  const words = { task: undefined, compare: { only: ['lora'], metric: 'accuracy' } };
  refused(
    { ...words, data: { train: 'rows.jsonl', eval: 'rows.jsonl', format: 'text' } },
    /no metric 'accuracy'.*It has loss/,
  );
  refused({ compare: { only: ['lara'] } }, /compare\.only matches no method.*lora/);
  refused({ compare: { onyl: ['lora'] } }, /unknown key 'onyl' \(did you mean 'only'\?\)/);
  refused({ data: { train: 'rows.jsonl' } }, /data\.eval is missing.*Add data\.eval/);
  refused({ compare: { methods: { mine: { method: { type: 'lora', rank: 8 } } } } }, /mine.*unknown key 'rank'/);
  const rounded = { to: 'q4_0', group_size: 32 };
  const never = { compare: { methods: { mine: { method: { type: 'lora' }, rounded } } } };
  refused(never, /compare\.methods\.mine\.rounded: group_size is for integers: blocks of q4_0 have their own size/);
  assert.ok(!existsSync(join(dir, 'wrong')), 'nothing is trained first');
  writeFileSync(join(dir, 'bad.yaml'), 'model: [');
  assertRefused(graft(dir, ['compare', 'bad.yaml']), 2, /bad\.yaml:\d+:\d+.*not valid YAML/);
  assertRefused(graft(dir, ['compare', 'bda.yaml']), 2, /cannot be read.*bad\.yaml/);
});

test('language models by their held-out loss; what one method trained is rounded and measured for another, which trains nothing', () => {
  const texts = rows.map(({ text }) => `${JSON.stringify({ text })}\n`);
  writeFileSync(join(dir, 'texts.jsonl'), texts.join(''));
  const lora = { type: 'lora', r: 4, target_modules: 'all-linear' };
  const rounded = { to: 'int2', group_size: 4 };
  const fields = (methods: object) => ({
    task: undefined,
    data: { train: 'texts.jsonl', eval: 'texts.jsonl' },
    train: { steps: 6, batch_size: 4, lr: 1e-2 },
    compare: { methods },
  });
  const methods = {
    float: { method: lora },
    after: { of: 'float', rounded },
    trained: { method: [lora, { type: 'qat', weight: 'int2', group_size: 4 }], rounded },
    gguf: { of: 'float', rounded: { to: 'q8_0' } },
  };
  const { status, stdout, stderr } = graft(dir, ['compare', write('rounding', fields(methods)), '--json']);
  assert.equal(status, 0, stderr);
  const { outcomes, failed, before } = fromWire(JSON.parse(stdout)) as Results;
  assert.deepEqual(failed, []);
  assert.deepEqual([before?.name, before?.error, before?.count], ['loss', true, 24]);
  const [float, after, trained, gguf] = outcomes as [Outcome, Outcome, Outcome, Outcome];
  for (const { metric } of outcomes) {
    assert.deepEqual([metric.name, metric.count, metric.of], ['loss', 24, 'rows']);
    assert.ok(metric.low < metric.value && metric.value < metric.high);
  }
  assert.deepEqual(after.losses, float.losses, 'it was trained once');
  assert.notDeepEqual(trained.losses, float.losses);
  assert.ok(after.metric.value > float.metric.value + 0.01, 'two bits lose something');
  assert.ok(Math.abs(gguf.metric.value - float.metric.value) < 0.01, 'eight bits lose little');
  assert.notEqual(after.size, float.size);
  assert.deepEqual(
    ['after', 'gguf'].map((name) => readdirSync(join(dir, 'rounding', name))),
    [['outcome.json'], ['outcome.json']],
  );

  for (const [name, wrong, problem] of [
    ['missing', { of: 'other', rounded }, /no method of this name that trains is listed before it/],
    ['same', { of: 'float' }, /the field rounded is missing/],
    ['both', { of: 'float', rounded, method: lora }, /it has no field method/],
  ] as const)
    assertRefused(
      graft(dir, ['compare', write(`rounding-${name}`, fields({ float: { method: lora }, wrong }))]),
      2,
      problem,
    );
});
