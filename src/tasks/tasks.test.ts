/** Rows and windows of the tasks; their losses are in test/parity/tasks.test.ts. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { golden } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { type Example, loadTokenizer, type Row, rowNotes, toExample } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { classCounts, classNotes, labelsIn, numberedClasses, taskOf, taskRows, unusedSettings } from './index.ts';

interface Window {
  ids: number[];
  types: number[];
  offsets: ([number, number] | null)[];
}

interface Windows {
  tokenizer: string;
  question: string;
  context: string;
  max_length: number;
  stride: number;
  windows: Window[];
}

const tokenizers = new Map(
  ['bert', 'llama3', 'qwen2'].map((name) => [name, loadTokenizer(golden('tokenizer', `${name}.json`))]),
);
const { cases } = JSON.parse(readFileSync(golden('tokenizer', 'alignment.json'), 'utf8')) as { cases: Windows[] };
const windowed = cases.filter((c) => c.windows && tokenizers.has(c.tokenizer));

const options = (name: string, maxLength = 64, stride = 8) => ({
  tokenizer: tokenizers.get(name),
  chat: undefined,
  vocabSize: 1000,
  maxLength,
  stride,
  trainOn: 'all' as const,
});
const rowsFrom = (head: TaskHead, value: Record<string, unknown>, name = 'bert', maxLength?: number, stride?: number) =>
  taskRows(
    taskOf(head),
    [{ example: toExample({ value, place: 'rows.jsonl:3' }, 'auto'), place: 'rows.jsonl:3' }],
    options(name, maxLength, stride),
  );

function refused(act: () => unknown, pattern: RegExp): void {
  assert.throws(
    act,
    (e) => e instanceof GraftError && e.place?.startsWith('rows.jsonl:3') === true && pattern.test(e.message),
  );
}

const answerer: TaskHead = { name: 'question-answering', labels: ['start', 'end'] };
const classifier: TaskHead = { name: 'sequence-classification', labels: ['ham', 'spam'] };
const tagger: TaskHead = { name: 'token-classification', labels: ['B-PER', 'I-PER', 'O'] };

test('nine contexts are cut into windows, 141 in all', () => {
  assert.equal(windowed.length, 9);
  assert.equal(windowed.flatMap(({ windows }) => windows).length, 141);
});

for (const { tokenizer: name, question, context, max_length, stride, windows } of windowed) {
  test(`${name}: ids, types and spans of all ${windows.length} windows of '${question}' are transformers'`, () => {
    const { rows } = rowsFrom(answerer, { question, context, answers: [] }, name, max_length, stride);
    assert.equal(rows.length, windows.length);
    const units = [0];
    for (const c of context) units.push(units.at(-1)! + c.length);
    let compared = 0;
    rows.forEach((row, w) => {
      const { ids, types, offsets } = windows[w]!;
      assert.deepEqual([...row.ids], ids);
      assert.deepEqual([...row.types!], types);
      offsets.forEach((offset, i) => {
        const span = [row.spans![2 * i], row.spans![2 * i + 1]];
        if (!offset || types[i] === 0) assert.deepEqual(span, [-1, -1]);
        else assert.deepEqual(span, [units[offset[0]], units[offset[1]]], `window ${w}, token ${i}`);
        compared++;
      });
      assert.deepEqual(row.target, [0, 0]);
    });
    assert.equal(
      compared,
      windows.reduce((sum, { ids }) => sum + ids.length, 0),
    );
  });
}

test('the answer is the target in the windows that contain all of it, and in no other', () => {
  const context = 'The river rises in the hills north of the town, runs past three old mills and the abbey.';
  const answer = 'three old mills';
  const value = {
    question: 'What does it pass?',
    context,
    answers: { text: [answer], answer_start: [context.indexOf(answer)] },
  };
  const { rows } = rowsFrom(answerer, value, 'bert', 40, 14);
  const withAnswer = rows.filter(({ target }) => target![0] !== 0);
  assert.ok(
    rows.length > 1 && withAnswer.length > 0 && withAnswer.length < rows.length,
    `${withAnswer.length} of ${rows.length}`,
  );
  // Windows of few tokens that hardly overlap: none has the answer whole, which is told.
  const split = rowsFrom(answerer, value, 'bert', 14, 1);
  assert.ok(split.rows.every(({ target }) => target![0] === 0 && target![1] === 0));
  assert.deepEqual([split.report.splitAnswers, split.report.places.splitAnswers], [1, ['rows.jsonl:3']]);
  assert.match(
    rowNotes(split.report, [], 'rows', 'question-answering')[0]!,
    /^rows: 1 row has an answer that no window .* stride/,
  );
  assert.equal(rowsFrom(answerer, value, 'bert', 40, 14).report.splitAnswers, 0);
  for (const { target, spans } of withAnswer) {
    assert.equal(context.slice(spans![2 * target![0]!], spans![2 * target![1]! + 1]), answer);
  }
  refused(
    () =>
      rowsFrom(answerer, { question: 'Who?', context: 'Ada wrote it.', answers: [{ text: 'Ada', answer_start: 4 }] }),
    /is not at position 4 of its context.*It is at position 0/,
  );
  const lists = { text: ['Ada', 'it'], answer_start: [0] };
  refused(
    () => rowsFrom(answerer, { question: 'Who?', context: 'Ada wrote it.', answers: lists }),
    /answers\.answer_start: expected one for each text/,
  );
  refused(
    () =>
      rowsFrom(answerer, { question: 'Who?', context: 'Ada wrote it.', answers: [{ text: 'Byron', answer_start: 0 }] }),
    /must be an exact part of the context/,
  );
  refused(
    () => rowsFrom(answerer, { question: 'Who '.repeat(40), context: 'Ada.', answers: [] }),
    /leave no room for its context/,
  );
  refused(() => rowsFrom(answerer, { question: 'Who?', context: 'Ada.' }), /no answers/);
});

test('texts, pairs and tags: special tokens are kept, the longer text is truncated, first tokens of words have the labels', () => {
  const tokenizer = tokenizers.get('bert')!;
  const long = 'river hills town mills abbey '.repeat(20);
  const one = rowsFrom(classifier, { text: long, label: 'spam' }, 'bert', 20);
  assert.equal(one.rows[0]!.ids.length, 20);
  assert.deepEqual(
    [one.rows[0]!.ids[0], one.rows[0]!.ids[19]],
    [tokenizer.tokenToId('[CLS]'), tokenizer.tokenToId('[SEP]')],
  );
  assert.deepEqual([one.rows[0]!.target, one.report.cutRows], [[1], 1]);
  const pair = rowsFrom(classifier, { text: 'a b', text_pair: long, label: 0 }, 'bert', 20).rows[0]!;
  assert.deepEqual([pair.ids.length, pair.target], [20, [0]]);
  assert.deepEqual([...pair.types!], [...Array(4).fill(0), ...Array(16).fill(1)]);
  const { rows } = rowsFrom(tagger, { tokens: ['Ada', 'wrote'], tags: ['B-PER', 'O'] });
  const { labels, words } = rows[0]!;
  assert.deepEqual(
    [...labels].filter((c) => c >= 0),
    [0, 2],
  );
  assert.deepEqual(
    [...words!.keys()].filter((i) => labels[i]! >= 0),
    [[...words!].indexOf(0), [...words!].indexOf(1)],
  );
});

test('a question with several answers: the first is the target, and that is told; the same answer twice is one', () => {
  const context = 'Ada wrote it in Turin, and Ada read it.';
  const made = (starts: number[], texts = starts.map(() => 'Ada')) =>
    rowsFrom(answerer, { question: 'Who?', context, answers: { text: texts, answer_start: starts } });
  const several = made([27, 0, 16], ['Ada', 'Ada', 'Turin']);
  const [{ target, spans }] = several.rows as [Row];
  assert.deepEqual([spans![2 * target![0]!], spans![2 * target![1]! + 1]], [27, 30]);
  assert.deepEqual([several.report.severalAnswers, several.report.places.severalAnswers], [1, ['rows.jsonl:3']]);
  assert.deepEqual(rowNotes(several.report, [], 'rows', 'question-answering'), [
    'rows: 1 row has several answers: the loss is of the first, and all of them count as right (rows.jsonl:3)',
  ]);
  assert.equal(made([0, 0]).report.severalAnswers, 0);
});

test('a row that loses its labels: what keeps answers is not advised, since there are none', () => {
  const examples = [[-100, -100, 1], [0]].map((labels, i) => {
    const place = `rows.jsonl:${i + 1}`;
    return { example: toExample({ value: { ids: labels.map(() => 5), labels }, place }, 'auto'), place };
  });
  const { report } = taskRows(taskOf(tagger), examples, options('bert', 2));
  const notes = rowNotes(report, [], 'rows', 'token-classification');
  assert.match(
    notes.join('\n'),
    /1 row lost all of its labels to max_length and is left out: raise max_length \(rows\.jsonl:1\)/,
  );
  assert.doesNotMatch(notes.join('\n'), /answer/);
});

test('settings that a task does not read are named', () => {
  const asked = ['stride', 'train_on', 'truncate', 'max_length', 'temperature', 'labels', 'class_weights', 'columns'];
  const unused = (task: TaskHead['name']) => unusedSettings(asked, task).map((note) => note.split(' ')[0]);
  assert.deepEqual(unused('causal-lm'), ['stride', 'temperature', 'labels', 'class_weights']);
  assert.deepEqual(unused('question-answering'), ['train_on', 'truncate', 'temperature', 'labels', 'class_weights']);
  assert.deepEqual(unused('image-classification'), ['stride', 'train_on', 'truncate', 'max_length', 'temperature']);
  assert.deepEqual(unusedSettings(['stride'], 'causal-lm'), ['stride is not used: it is for question-answering']);
});

test('rows without what the task needs, or with labels that the head does not have', () => {
  refused(() => rowsFrom(classifier, { text: 'a' }), /the row has no label/);
  refused(
    () => rowsFrom(classifier, { text: 'a', label: 'spamm' }),
    /'spamm' is not one of the head's labels: ham, spam. Did you mean 'spam'/,
  );
  refused(() => rowsFrom(classifier, { text: 'a', label: 2 }), /'2' is not one of the head's labels/);
  refused(() => rowsFrom(classifier, { text: 'a', label: ['ham'] }), /not one class/);
  refused(
    () => rowsFrom(classifier, { tokens: ['a'], tags: ['O'] }),
    /sequence-classification does not support rows of the kind 'tags'/,
  );
  refused(() => rowsFrom(tagger, { tokens: ['a', 'b'], tags: ['O'] }), /2 tokens have 1 tags/);
  refused(() => rowsFrom(tagger, { tokens: ['a'], tags: ['B-LOC'] }), /'B-LOC' is not one of the head's labels/);
  refused(() => rowsFrom(tagger, { tokens: ['a'] }), /no tags/);
  refused(
    () => rowsFrom({ name: 'sequence-classification', labels: ['value'] }, { text: 'a', label: 'x' }),
    /not one number/,
  );
  refused(() => rowsFrom({ name: 'embedding', labels: [] }, { text: 'a' }), /no second text/);
  refused(() => rowsFrom({ name: 'causal-lm', labels: [] }, { text: 'a', label: 'ham' }), /Set the recipe's task/);
  assert.throws(
    () => taskOf(classifier, { classWeights: { spamm: 2 } }),
    /'spamm' is not one of the labels.*Did you mean 'spam'/,
  );
});

test('a completion is its label: the row is the prompt, and a long prompt loses its middle', () => {
  const row = (prompt: string, maxLength?: number) =>
    rowsFrom(classifier, { prompt, completion: ' spam' }, 'llama3', maxLength);
  const prompt = 'Win a prize now: spam or ham?';
  const promptIds = [...tokenizers.get('llama3')!.encode(prompt)];
  const { rows } = row(prompt);
  assert.deepEqual([...rows[0]!.ids], promptIds);
  assert.deepEqual(rows[0]!.target, [1]);
  const cut = row(prompt, promptIds.length - 2);
  assert.deepEqual([...cut.rows[0]!.ids].slice(-2), promptIds.slice(-2));
  assert.deepEqual([cut.rows[0]!.ids.length, cut.report.cutTokens], [promptIds.length - 2, 2]);
  refused(() => rowsFrom(classifier, { prompt, completion: ' eggs' }), /'eggs' is not one of the head's labels/);
  refused(() => rowsFrom(classifier, { messages: [{ role: 'user', content: 'a' }] }), /no chat template/);
});

test('labels are found in the data', () => {
  const labelsOf = (...labels: unknown[]) =>
    labelsIn(
      'sequence-classification',
      labels.map((label) => toExample({ value: { text: 'a', label }, place: '' }, 'auto')),
    );
  assert.deepEqual(labelsOf('spam', 'ham', 'spam'), { labels: ['ham', 'spam'] });
  assert.deepEqual(labelsOf(10, 9, 1), { labels: ['1', '9', '10'] });
  assert.deepEqual(labelsOf('1.5', '2'), { labels: ['value'] });
  assert.deepEqual(labelsOf(true, false), { labels: ['false', 'true'] });
  assert.deepEqual(labelsOf(['b'], ['a', 'c'], []), { labels: ['a', 'b', 'c'], multiLabel: true });
  assert.equal(labelsOf(undefined), undefined);
  const ids = (labels: number | number[]): Example => ({ kind: 'tokens', ids: [1, 2], labels });
  assert.deepEqual(labelsIn('sequence-classification', [ids(0), ids(2)]), {
    labels: ['LABEL_0', 'LABEL_1', 'LABEL_2'],
  });
  assert.deepEqual(labelsIn('sequence-classification', [ids([0, 1])]), {
    labels: ['LABEL_0', 'LABEL_1'],
    multiLabel: true,
  });
  assert.deepEqual(labelsIn('token-classification', [ids([-100, 1])]), { labels: ['LABEL_0', 'LABEL_1'] });
});

test('labels 0 and 1 are names where classes are called so; else a 0 or 1 for each class is a multi-hot label', () => {
  const multiLabel = (...labels: string[]): TaskHead => ({ name: 'sequence-classification', labels, multiLabel: true });
  const target = (head: TaskHead, label: unknown) => [...rowsFrom(head, { text: 'a', label }).rows[0]!.target!];
  assert.deepEqual(target(multiLabel('0', '1'), [0, 1]), [1, 1]);
  assert.deepEqual(target(multiLabel('0', '1'), [1, 0]), [1, 1]);
  assert.deepEqual(target(multiLabel('a', 'b', 'c'), [1, 0, 1]), [1, 0, 1]);
});

test('classes are counted; names that hardly differ, and classes without rows, are told', () => {
  const head: TaskHead = { name: 'sequence-classification', labels: ['Bug', 'bug', 'bug ', 'none', 'other'] };
  const rows = ['bug', 'bug', 'Bug', 'bug ', 'other'].flatMap((label) => rowsFrom(head, { text: 'a', label }).rows);
  const classes = classCounts(head, rows);
  assert.deepEqual(
    classes.map(({ label, count }) => [label, count]),
    [
      ['Bug', 1],
      ['bug', 2],
      ['bug ', 1],
      ['none', 0],
      ['other', 1],
    ],
  );
  assert.deepEqual(classNotes(classes), [
    'the classes "Bug" (1), "bug" (2), "bug " (1) differ only in case or white space, and are 3 classes',
    "no training row has the class 'none'",
  ]);
  const tagged = rowsFrom(tagger, { tokens: ['Ann', 'is', 'here'], tags: ['B-PER', 'O', 'O'] }).rows;
  assert.deepEqual(
    classCounts(tagger, tagged).map(({ count }) => count),
    [1, 0, 2],
  );
  const several: TaskHead = { ...classifier, multiLabel: true };
  const multi = rowsFrom(several, { text: 'a', label: ['ham', 'spam'] }).rows;
  assert.deepEqual(
    classCounts(several, multi).map(({ count }) => count),
    [1, 1],
  );
  assert.deepEqual(classCounts({ name: 'sequence-classification', labels: ['value'] }, rows), []);
});

test('numbers name the classes of a head by their order, as texts too, unless a class is called by a number', () => {
  const targetOf = (label: unknown, head = classifier) => rowsFrom(head, { text: 'a', label }).rows[0]!.target;
  assert.deepEqual([targetOf(1), targetOf('1'), targetOf('0')], [[1], [1], [0]]);
  refused(() => targetOf('2'), /the label '2' is not one of the head's labels/);
  const stars: TaskHead = { name: 'sequence-classification', labels: ['1', '2', '3'] };
  assert.deepEqual([targetOf('1', stars), targetOf(3, stars)], [[0], [2]]);
  refused(() => targetOf(0, stars), /the label '0' is not one of the head's labels: 1, 2, 3/);
});

test('whole numbers that pandas wrote as 1.0 are the classes of 1', () => {
  const examples = ['1.0', '0', '2.00', '1'].map((label) =>
    toExample({ value: { text: 'a', label }, place: '' }, 'auto'),
  );
  assert.deepEqual(labelsIn('sequence-classification', examples), { labels: ['0', '1', '2'] });
  const targetOf = (label: unknown, labels: string[]) =>
    rowsFrom({ name: 'sequence-classification', labels }, { text: 'a', label }).rows[0]!.target;
  assert.deepEqual([targetOf('1.0', ['ham', 'spam']), targetOf('2.0', ['1', '2'])], [[1], [1]]);
  assert.deepEqual([targetOf('1.0', ['1', '1.0']), targetOf('007', ['007', '7'])], [[1], [0]]);
  refused(() => targetOf('1.5', ['ham', 'spam']), /the label '1\.5' is not one of the head's labels/);
});

test('what classes are meant by numbers is told, where they have names', () => {
  const notes = (labels: readonly string[], ...values: unknown[]) =>
    numberedClasses(
      { name: 'sequence-classification', labels },
      values.map((label) => toExample({ value: { text: 'a', label }, place: '' }, 'labelled')),
    );
  assert.equal(
    notes(['ham', 'spam'], 'ham', '1'),
    'labels that are numbers name the classes in their order: 0 is ham, 1 is spam',
  );
  assert.match(notes(['ham', 'spam'], 0)!, /0 is ham/);
  assert.equal(notes(['ham', 'spam'], 'ham', 'spam', undefined), undefined);
  assert.equal(notes(['0', '1'], '1', 0), undefined);
  assert.equal(notes(['LABEL_0', 'LABEL_1'], '1', 0), undefined);
  const tags = toExample({ value: { tokens: ['a'], tags: [2] }, place: '' }, 'auto');
  assert.match(numberedClasses(tagger, [tags])!, /2 is O$/);
});

test('labelled rows without a text are left out and counted, as other empty rows are', () => {
  const made = (head: TaskHead, values: Record<string, unknown>[], labelled = true) =>
    taskRows(
      taskOf(head),
      values.map((value, i) => ({ example: toExample({ value, place: `f:${i}` }, 'auto'), place: `f:${i}` })),
      { ...options('bert'), labelled },
    );
  const good = { text: 'a', label: 'ham' };
  const empty = [
    { text: '', label: 'spam' },
    { text: ' \n', label: 'ham' },
    { text: '', text_pair: ' ', label: 'ham' },
    { text: '\u0000', label: 'ham' }, // nothing of it is a token
    { prompt: ' ', completion: 'spam' },
    {
      messages: [
        { role: 'user', content: '' },
        { role: 'assistant', content: 'spam' },
      ],
    },
  ];
  for (const labelled of [true, false]) {
    const { rows, report } = made(classifier, [good, ...empty, { text: '', text_pair: 'b', label: 'ham' }], labelled);
    assert.equal(rows.length, 2);
    assert.deepEqual([report.emptyRows, report.places.empty.length], [6, 5]);
    assert.match(
      rowNotes(report, [], 'f', 'sequence-classification')[0]!,
      /^f: 6 rows have nothing to learn and are left out \(f:1, f:2, f:3, f:4, f:5 …\)/,
    );
  }
  const pairs = ['', ' '].flatMap((blank) => [
    { text: blank, text_pair: 'b' },
    { text: 'b', text_pair: blank },
  ]);
  const { rows, report } = made({ name: 'embedding', labels: [], prompt: 'query: ' }, [
    { text: 'a', text_pair: 'b' },
    ...pairs,
  ]);
  assert.deepEqual([rows.length, report.emptyRows], [1, 4]);
  assert.throws(
    () => made(classifier, empty.slice(0, 2)),
    /none of the rows has content to learn or measure\. Check the texts/,
  );
});

test('each task names the metrics that its rows give', () => {
  const rowOf = (target: readonly number[], labels: readonly number[] = []): Row => ({
    ids: Int32Array.of(1, 2),
    labels: Int32Array.from(labels),
    place: '',
    target,
  });
  const pair = { ...rowOf([]), pair: rowOf([]) };
  const { target: _, ...unscored } = pair;
  const heads: [TaskHead, Row[], unknown][] = [
    [classifier, [rowOf([0]), rowOf([1])], Float32Array.of(0, 1)],
    [{ ...classifier, multiLabel: true }, [rowOf([0, 1]), rowOf([1, 1])], Float32Array.of(0, 1)],
    [{ ...classifier, labels: ['value'] }, [rowOf([0.5]), rowOf([1])], Float32Array.of(0)],
    [{ ...classifier, name: 'image-classification' }, [rowOf([0])], Float32Array.of(0, 1)],
    [tagger, [rowOf([], [0, 2])], Int32Array.of(0, 2)],
    [{ ...tagger, labels: ['A', 'B', 'C'] }, [rowOf([], [0, 2])], Int32Array.of(0, 2)],
    [
      { name: 'embedding', labels: [] },
      [{ ...pair, target: [1] }, { ...pair, target: [0] }, unscored],
      Float32Array.of(1, 0),
    ],
  ];
  for (const [head, rows, output] of heads) {
    const { metricNames, metrics } = taskOf(head);
    const found = metrics!(rows, () => output).metrics.map(({ name }) => name);
    assert.deepEqual(found.sort(), [...metricNames].sort(), JSON.stringify(head));
  }
});
