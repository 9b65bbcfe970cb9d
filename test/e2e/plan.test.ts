/** `graft plan`, and a DeepSpeed configuration in a recipe, from the command line. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import test, { after } from 'node:test';
import { temporary } from '../samples/io.ts';
import { golden } from '../support.ts';
import { assertRefused, graft } from './cli.ts';

const dir = temporary();
after(() => rmSync(dir.path, { recursive: true, force: true }));
dir.put('rows.jsonl', '{"ids": [1, 5, 9, 4]}\n{"ids": [1, 7, 2]}\n{"ids": [1, 3, 3, 8]}\n{"ids": [1, 6]}\n');
dir.put(
  'ds_config.json',
  JSON.stringify({
    train_micro_batch_size_per_gpu: 2,
    gradient_clipping: 1,
    steps_per_print: 10,
    zero_optimization: { stage: 1 },
  }),
);
const fields = {
  model: golden('models', 'llama3'),
  method: { type: 'lora' },
  data: { train: 'rows.jsonl', format: 'tokens', max_length: 16 },
  run: { dir: 'out' },
};
dir.put('recipe.yaml', JSON.stringify({ ...fields, deepspeed: 'ds_config.json' }));
const unused = 'deepspeed: not used, since Graft has nothing like it: steps_per_print';

test('a plan as a table and as JSON; amounts with their units', () => {
  const amounts = ['--memory', '2GiB', '--bandwidth', '8Gbit/s', '--flops', '1TFLOPS'];
  const planned = graft(dir.path, ['plan', 'recipe.yaml', '--ranks', '4', '--json', ...amounts]);
  assert.equal(planned.status, 0, planned.stderr);
  const plan = JSON.parse(planned.stdout);
  assert.equal(plan.memory_bytes, 2 ** 31);
  assert.deepEqual([plan.ranks, plan.rows_per_rank, plan.row_tokens, plan.asked], [4, 2, 16, 1]);
  assert.ok(plan.notes.includes(unused), plan.notes.join());
  assert.equal(plan.stages.length, 4);
  for (const stage of plan.stages) assert.equal(stage.traffic_s, stage.traffic_bytes / 1e9);
  assert.equal(plan.cheapest_available, plan.cheapest);

  const shown = graft(dir.path, [
    'plan',
    'recipe.yaml',
    '--ranks',
    '2',
    '--zero',
    '3',
    '--shape',
    'llama-7b',
    '--memory',
    '80GB',
  ]);
  assert.equal(shown.status, 0, shown.stderr);
  assert.match(
    shown.stdout,
    /^7B \(Llama 2\), lora: 2 processes, each with 2 rows of 16 tokens a step in 1 micro-batch, and 80\.0 GB of memory\n/,
  );
  assert.match(shown.stdout, /^stage +0 +1 +2 +3$/m);
  assert.match(shown.stdout, /Stage 3 fits\. The cheapest that fits: 0\.\n$/);
  assert.doesNotMatch(shown.stdout, /sending/, 'no times without speeds');
  assert.ok(shown.stderr.includes(unused), shown.stderr);
});

test('what a plan refuses', () => {
  const plan = (...args: string[]) => graft(dir.path, ['plan', 'recipe.yaml', ...args]);
  for (const [args, sentence] of [
    [['--ranks', '2', '--shape', 'llama-9b'], /there is no shape 'llama-9b'/],
    [
      ['--ranks', '3', '--set', 'train.batch_size=4'],
      /the rows of a step .* are 4, which is no multiple of train_micro_batch_size_per_gpu 2 × 3 processes = 6/,
    ],
  ] as const)
    assertRefused(plan(...args), 2, sentence);
  for (const [args, sentence] of [
    [['--ranks', '0'], /integer above 0/],
    [['--ranks', '2', '--memory', '80Gb'], /80GB or 64GiB/],
    [['--ranks', '2', '--bandwidth', 'fast'], /50GB\/s or 400Gbit\/s/],
    [['--ranks', '2', '--flops', '-1'], /300TFLOPS/],
    [['--ranks', '2', '--zero', '4'], /Allowed choices are 0, 1, 2, 3/],
    [[], /--ranks/],
  ] as const) {
    const { status, stderr } = plan(...args);
    assert.match(stderr, sentence);
    assert.equal(status, 2, stderr);
  }
});

test('a run names the keys of its DeepSpeed configuration that do nothing, and takes its batch', () => {
  const trained = graft(dir.path, ['train', 'recipe.yaml', '--json']);
  assert.equal(trained.status, 0, trained.stderr);
  const events = trained.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const warnings = events.filter(({ type }) => type === 'warning').map(({ message }) => message);
  assert.ok(warnings.includes(unused), warnings.join('\n'));
  assert.equal(events.at(-1).losses.length, 2, 'four rows in steps of two');
});
