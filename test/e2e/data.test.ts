/** Data as a recipe understands them, and what an adapter keeps of it: the start of a run, graft data, eval and predict afterwards. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyBert, tinyModel, tinyVit } from '../samples/tiny.ts';
import { assertRefused, graft } from './cli.ts';
import { kindOf, mails, numbered, words, workspaceFor } from './workspace.ts';

const { dir, at, write, session } = workspaceFor('data');
const llama = tinyModel(at('llama'));
const bert = tinyBert(at('bert'));
writeFileSync(join(bert, 'README.md'), '---\nlicense: apache-2.0\n---\n# A model\n');

/** Writes a recipe that learns classes, with more fields in `data`, and returns its file. */
function recipe(name: string, data: object, more: object = {}): string {
  const fields = {
    model: bert,
    task: 'sequence-classification',
    data,
    method: { type: 'lora', r: 4, target_modules: 'all-linear' },
    train: { lr: 1e-2, epochs: 4, batch_size: 6 },
    run: { dir: at(name) },
    ...more,
  };
  writeFileSync(at(`${name}.yaml`), JSON.stringify(fields));
  return `${name}.yaml`;
}

const rows = mails(60).map(({ text, label }, i) => ({
  number: i,
  body: text,
  category: label,
  fooBar: { innerKey: 1 },
}));
mkdirSync(at('shards'));
write('shards/rows-0.jsonl', rows.slice(0, 40));
write('shards/rows-1.jsonl', rows.slice(40));
const columns = { text: 'body', label: 'category' };

test('columns are renamed, shards joined; what was understood is shown, logged, kept with the adapter, and used by eval and predict', () => {
  const file = recipe('run', { train: at('shards/rows-*.jsonl'), columns, held_out: 12, max_length: 40 });
  const ended = graft(dir, ['train', file]);
  assert.equal(ended.status, 0, ended.stderr);
  assert.match(ended.stderr, /^classes: ham \d+, spam \d+$/m);
  const [start] = readFileSync(at('run', 'events.jsonl'), 'utf8')
    .split('\n')
    .filter((line) => line.includes('"start"'))
    .map((line) => JSON.parse(line));
  const { classes } = start as { classes: { label: string; count: number }[] };
  assert.deepEqual(
    classes.map(({ label }) => label),
    ['ham', 'spam'],
  );
  assert.equal(
    classes.reduce((sum, { count }) => sum + count, 0),
    48,
  );
  const saved = JSON.parse(readFileSync(at('run', 'adapter', 'graft.json'), 'utf8'));
  assert.deepEqual(saved.data.columns, columns);
  assert.equal(saved.data.max_length, 40);

  const card = readFileSync(at('run', 'adapter', 'README.md'), 'utf8');
  for (const part of [
    `base_model: ${bert}`,
    'Licence: apache-2.0',
    `48 rows to learn from, of ${at('shards/rows-*.jsonl')}; 12 rows held out`,
    '| lora.r | 4 |',
    '| lr | 0.01 |',
    '| max_length | 40 |',
  ])
    assert.ok(card.includes(part), `${part} in\n${card}`);
  assert.match(card, /\| accuracy \| [\d.]+ \([\d.]+ to [\d.]+\) \| 12 rows \|/);

  // The run's directory is the adapter, its base the model, and its columns those of the rows.
  const measured = graft(dir, ['eval', '--adapter', 'run', '--data', 'shards', '--limit', '50']);
  assert.equal(measured.status, 0, measured.stderr);
  assert.match(measured.stdout, /accuracy .*, 50 rows\)/);
  const unlabelled = write(
    'unlabelled.jsonl',
    rows.slice(0, 5).map(({ category: _, ...row }) => row),
  );
  const predicted = graft(dir, ['predict', '--adapter', 'run', '--data', unlabelled, '--out', 'out.jsonl']);
  assert.equal(predicted.status, 0, predicted.stderr);
  const lines = readFileSync(at('out.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.equal(lines.length, 5);
  const { number, body, fooBar, label, probabilities } = lines[3];
  assert.deepEqual([number, body, fooBar], [3, rows[3]!.body, { innerKey: 1 }]);
  assert.ok(label === 'ham' || label === 'spam');
  assert.deepEqual(Object.keys(probabilities), ['ham', 'spam']);

  const labelled = at('labelled.jsonl');
  const fields = '"text": "free cash", "label": "other", "probabilities": "mine", "pairs": [["a", 1]]';
  writeFileSync(labelled, `{"id": 100000000000000001, ${fields}}\n`);
  const command = [
    'predict',
    '--adapter',
    'run',
    '--data',
    labelled,
    '--delimiter',
    ';',
    '--stride',
    '4',
    '--out',
    'given.jsonl',
  ];
  const repeated = graft(dir, command);
  assert.equal(repeated.status, 0, repeated.stderr);
  assert.match(repeated.stderr, /labelled\.jsonl: data\.delimiter is not used/);
  assert.match(repeated.stderr, /note: stride is not used: it is for question-answering/);
  assert.match(readFileSync(at('given.jsonl'), 'utf8'), /"id":100000000000000001,.*"pairs":\[\["a",1\]\]/);
  const [given] = readFileSync(at('given.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.deepEqual([given.given_label, given.given_probabilities, given.text], ['other', 'mine', 'free cash']);

  // The label of a row that has nothing to predict is not taken for a prediction.
  const empty = write('empty.jsonl', [
    { body: '', category: 'spam', label: 'mine' },
    { body: 'free cash', category: 'ham' },
  ]);
  const skipping = graft(dir, ['predict', '--adapter', 'run', '--data', empty, '--out', 'skipping.jsonl']);
  assert.match(skipping.stderr, /1 row has nothing to learn and is left out \(.*empty\.jsonl:1\)/);
  const [skipped] = readFileSync(at('skipping.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.deepEqual(skipped, {
    body: '',
    category: 'spam',
    given_label: 'mine',
    text: '',
    skipped: 'the row has nothing to predict',
  });

  renameSync(bert, at('moved'));
  assertRefused(
    graft(dir, ['eval', '--adapter', 'run', '--data', 'shards']),
    2,
    /run\/adapter: the base of the adapter is not there: .*bert\. Name the base as --model/,
  );
  renameSync(at('moved'), bert);
  assertRefused(
    graft(dir, ['eval', '--data', 'shards']),
    2,
    /--model: there is no model\. Name a model, or an adapter/,
  );
});

test('the directory of a run that has no single adapter is named for what it is', () => {
  cpSync(at('run'), at('tasks'), { recursive: true });
  mkdirSync(at('tasks', 'both'));
  renameSync(at('tasks', 'adapter'), at('tasks', 'both', 'one'));
  renameSync(at('tasks', 'both'), at('tasks', 'adapter'));
  const asked = (run: string) => graft(dir, ['eval', '--adapter', run, '--data', 'shards']);
  assertRefused(asked('tasks'), 2, /holds an adapter for each of several tasks\. Name one: .*tasks\/adapter\/one/);
  renameSync(at('tasks', 'adapter'), at('tasks', 'model'));
  assertRefused(asked('tasks'), 2, /this run wrote a model, and no adapter\. Name it as the model: tasks\/model/);
  renameSync(at('tasks', 'model'), at('tasks', 'checkpoints-only'));
  assertRefused(asked('tasks'), 2, /this run has no adapter: it has not ended/);
});

test('classes that hardly differ, columns and files that are not there, and rows that are bad are told before training', () => {
  const odd = write('odd.jsonl', [...mails(12), { text: 'a', label: 'Spam' }, { text: 'b', label: 'spam ' }]);
  const ended = graft(dir, ['train', recipe('odd', { train: odd })]);
  assert.match(
    ended.stderr,
    /note: .*odd\.jsonl: the classes "Spam" \(1\), "spam" \(\d+\), "spam " \(1\) differ only in case/,
  );
  const refused = (name: string, data: object, sentence: RegExp) =>
    assertRefused(graft(dir, ['train', recipe(name, data)]), name === 'rows' ? 1 : 2, sentence);
  refused('column', { train: odd, columns: { text: 'bdy' } }, /data\.columns: no row has the column 'bdy'/);
  refused('target', { train: odd, columns: { txt: 'body' } }, /data\.columns/);
  refused('glob', { train: 'none-*.jsonl' }, /none-\*\.jsonl: no file matches this pattern/);
  refused(
    'rows',
    {
      train: write('bad.jsonl', [
        { text: 1, label: 'a' },
        { text: 'a', label: {} },
      ]),
    },
    /bad\.jsonl:1: invalid row/,
  );
});

test('graft data shows rows as the model sees them, what is learned, lengths, classes and notes, and writes nothing', () => {
  const talks = numbered(24, (i) => ({
    messages: [
      { role: 'user', content: words('ham', i) },
      { role: 'assistant', content: i === 3 ? '' : kindOf(i) },
    ],
  }));
  const data = { train: write('talks.jsonl', talks), max_length: 30, truncate: 'middle' };
  const file = recipe('shown', data, { model: llama, task: 'causal-lm' });
  const plain = graft(dir, ['data', file], { NO_COLOR: '1' });
  assert.equal(plain.status, 0, plain.stderr);
  assert.equal(plain.stdout.match(/^── .*talks\.jsonl:\d+, \d+ tokens$/gm)?.length, 10);
  assert.match(plain.stdout, /<\|start_header_id\|>assistant<\|end_header_id\|>\n\n⟦(ham|spam)<\|eot_id\|>⟧/);
  assert.match(plain.stdout, /causal-lm: 24 training rows, 0 held out, \d+ of \d+ tokens learned/);
  assert.match(plain.stdout, /^ +29 tokens █+ 3\n +30 tokens █+ 21$/m);
  assert.match(
    plain.stderr,
    /note: .*1 row has an empty answer, of which only the end is learned \(.*talks\.jsonl:4\)/,
  );
  assert.match(graft(dir, ['data', file], { FORCE_COLOR: '1' }).stdout, /\u001b\[32m(ham|spam)<\|eot_id\|>\u001b\[39m/);

  const json = graft(dir, ['data', recipe('json', { train: at('shards'), columns }), '--json']);
  const [task] = (JSON.parse(json.stdout) as { tasks: Record<string, unknown>[] }).tasks as [Record<string, never>];
  assert.equal(task.rows, 60);
  const examples = task.examples as unknown as { label: string; pieces: { text: string }[] }[];
  assert.deepEqual([examples.length, examples[0]!.label], [10, 'spam']);
  const lengths = task.lengths as unknown as { rows: number }[];
  assert.equal(
    lengths.reduce((sum, bin) => sum + bin.rows, 0),
    60,
  );
  for (const name of ['shown', 'json']) assert.ok(!existsSync(at(name)), name);
});

test('a language model predicts one of some answers for each row', async () => {
  const talks = write(
    'asked.jsonl',
    numbered(3, (i) => ({ prompt: words('ham', i), completion: ' ham', source: i })),
  );
  const model = ['--model', llama, '--data', talks, '--out'];
  assertRefused(
    graft(dir, ['predict', ...model, 'no.jsonl']),
    2,
    /no labels of its own to predict\. Give the answers to choose among as labels/,
  );
  assert.ok(!existsSync(at('no.jsonl')));
  const ended = graft(dir, ['predict', ...model, 'chosen.jsonl', '--labels', 'ham', 'spam']);
  assert.equal(ended.status, 0, ended.stderr);
  const lines = readFileSync(at('chosen.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.deepEqual(
    lines.map(({ source }) => source),
    [0, 1, 2],
  );
  for (const { label, probabilities } of lines) assert.ok(probabilities[label] >= 0.5);

  // Rows that only ask, in three formats.
  const asking = [
    { prompt: 'free cash' },
    { messages: [{ role: 'user', content: 'free cash' }] },
    { instruction: 'free cash' },
  ];
  for (const [i, row] of asking.entries()) {
    const data = ['--data', write(`asking-${i}.jsonl`, [{ ...row, source: i }])];
    const out = ['--out', `asked-${i}.jsonl`];
    const asked = graft(dir, ['predict', '--model', llama, ...data, ...out, '--labels', ' ham', ' spam']);
    assert.equal(asked.status, 0, asked.stderr);
    const { source, label } = JSON.parse(readFileSync(at(`asked-${i}.jsonl`), 'utf8'));
    assert.deepEqual([source, [' ham', ' spam'].includes(label)], [i, true]);
  }

  // From TypeScript: several paths, rows in memory, and the rows of a recipe.
  const tasks = await session.previewRows({
    model: llama,
    data: { train: [talks, { prompt: 'a', completion: 'b' }].slice(0, 1) as string[], limit: 2 },
    method: { type: 'lora' },
    run: { dir: at('none') },
  });
  assert.equal(tasks[0]!.rows, 2);
});

test('an answer whose beginning is given goes on from there', async () => {
  await using model = await session.load(llama);
  const turns = [
    { role: 'user', content: 'free cash' },
    { role: 'assistant', content: 'spam and' },
  ];
  const whole = await model.generate(turns, { maxNewTokens: 1 });
  const begun = await model.generate(turns, { maxNewTokens: 1, continueFinalMessage: true });
  // Without it, the turn is closed and another one begins: its end and the head of a turn are tokens more.
  assert.ok(begun.promptTokens < whole.promptTokens, `${begun.promptTokens}, ${whole.promptTokens}`);
  await assert.rejects(
    model.generate(turns.slice(0, 1), { continueFinalMessage: true }),
    /only a message of the assistant at the end of a conversation can be continued/,
  );
  const ended = graft(dir, [
    'generate',
    '--model',
    llama,
    '--prompt',
    'free cash',
    '--continue',
    'spam and',
    '--max-new-tokens',
    '1',
    '--json',
  ]);
  assert.equal(ended.status, 0, ended.stderr);
  assert.equal(JSON.parse(ended.stdout).prompt_tokens, begun.promptTokens);
});

test('a config that speaks of a quantisation which the weights do not have is named, in train and in eval', () => {
  cpSync(bert, at('undone'), { recursive: true });
  const config = JSON.parse(readFileSync(at('undone', 'config.json'), 'utf8'));
  const quantization_config = { quant_method: 'bitsandbytes', load_in_4bit: true };
  writeFileSync(at('undone', 'config.json'), JSON.stringify({ ...config, quantization_config }));
  const train = write('undone.jsonl', mails(12));
  const ended = graft(dir, ['train', recipe('from-undone', { train }, { model: at('undone') })]);
  assert.equal(ended.status, 0, ended.stderr);
  const note = /note: quantization_config of config\.json names bitsandbytes, and the weights are not quantised/;
  assert.match(ended.stderr, note);
  assert.match(graft(dir, ['eval', '--adapter', 'from-undone', '--data', train]).stderr, note);
});

test('numbers for classes with names, and images that cannot be read, are told', () => {
  const numbers = write(
    'numbers.jsonl',
    mails(12).map(({ text, label }) => ({ text, label: label === 'spam' ? '1.0' : 0 })),
  );
  const ended = graft(dir, ['train', recipe('numbers', { train: numbers }, { labels: ['ham', 'spam'] })]);
  assert.equal(ended.status, 0, ended.stderr);
  const note = /note: (\S+: )?labels that are numbers name the classes in their order: 0 is ham, 1 is spam/;
  assert.match(ended.stderr, note);
  assert.match(graft(dir, ['eval', '--adapter', 'numbers', '--data', numbers]).stderr, note);

  const images = ['GIF89a', 'BM1234', 'what'].map((text, i) => {
    writeFileSync(at(`${i}.png`), text);
    return { image: `${i}.png`, label: 'LABEL_0' };
  });
  const command = ['eval', '--model', tinyVit(at('vit')), '--data', write('images.jsonl', images)];
  assertRefused(graft(dir, command), 1, /0\.png: the file is a GIF image, which is not read/);
  const { stderr } = graft(dir, command);
  assert.match(stderr, /1\.png: the file is a BMP image.*\n.*2\.png: the file is neither[^]*3 rows cannot be used/);
});
