/** Rows and windows of the tasks; their losses are in test/parity/tasks.test.ts. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import test from 'node:test';
import { golden } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { type Example, loadTokenizer, toExample } from '../data/index.ts';
import type { TaskHead } from '../nn/index.ts';
import { labelsIn, taskOf, taskRows } from './index.ts';

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
const made = (head: TaskHead, value: Record<string, unknown>, name = 'bert', maxLength?: number, stride?: number) =>
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

const qa: TaskHead = { name: 'question-answering', labels: ['start', 'end'] };
const kinds: TaskHead = { name: 'sequence-classification', labels: ['ham', 'spam'] };
const tagger: TaskHead = { name: 'token-classification', labels: ['B-PER', 'I-PER', 'O'] };

test('nine contexts are cut into windows, 141 in all', () => {
  assert.equal(windowed.length, 9);
  assert.equal(windowed.flatMap(({ windows }) => windows).length, 141);
});

for (const { tokenizer: name, question, context, max_length, stride, windows } of windowed) {
  test(`${name}: ids, types and places of all ${windows.length} windows of '${question}' are transformers'`, () => {
    const { rows } = made(qa, { question, context, answers: [] }, name, max_length, stride);
    assert.equal(rows.length, windows.length);
    const units = [0];
    for (const c of context) units.push(units.at(-1)! + c.length);
    let places = 0;
    rows.forEach((row, w) => {
      const { ids, types, offsets } = windows[w]!;
      assert.deepEqual([...row.ids], ids);
      assert.deepEqual([...row.types!], types);
      offsets.forEach((offset, i) => {
        const place = [row.spans![2 * i], row.spans![2 * i + 1]];
        if (!offset || types[i] === 0) assert.deepEqual(place, [-1, -1]);
        else assert.deepEqual(place, [units[offset[0]], units[offset[1]]], `window ${w}, token ${i}`);
        places++;
      });
      assert.deepEqual(row.target, [0, 0]);
    });
    assert.equal(
      places,
      windows.reduce((sum, { ids }) => sum + ids.length, 0),
    );
  });
}

test('an answer is found in the windows that hold it whole, and nowhere else', () => {
  const context = 'The river rises in the hills north of the town, runs past three old mills and the abbey.';
  const answer = 'three old mills';
  const value = {
    question: 'What does it pass?',
    context,
    answers: { text: [answer], answer_start: [context.indexOf(answer)] },
  };
  const { rows } = made(qa, value, 'bert', 40, 14);
  const found = rows.filter(({ target }) => target![0] !== 0);
  assert.ok(rows.length > 1 && found.length > 0 && found.length < rows.length, `${found.length} of ${rows.length}`);
  for (const { target, spans } of found) {
    assert.equal(context.slice(spans![2 * target![0]!], spans![2 * target![1]! + 1]), answer);
  }
  refused(
    () => made(qa, { question: 'Who?', context: 'Ada wrote it.', answers: [{ text: 'Ada', answer_start: 4 }] }),
    /does not stand at 4 of its context.*It stands at 0/,
  );
  refused(
    () => made(qa, { question: 'Who?', context: 'Ada wrote it.', answers: [{ text: 'Byron', answer_start: 0 }] }),
    /must be a part of the context/,
  );
  refused(
    () => made(qa, { question: 'Who '.repeat(40), context: 'Ada.', answers: [] }),
    /leave no room for its context/,
  );
  refused(() => made(qa, { question: 'Who?', context: 'Ada.' }), /no answers/);
});

test('texts, pairs and tags: special tokens stay, the longer text gives way, first pieces have the labels', () => {
  const tokenizer = tokenizers.get('bert')!;
  const long = 'river hills town mills abbey '.repeat(20);
  const one = made(kinds, { text: long, label: 'spam' }, 'bert', 20);
  assert.equal(one.rows[0]!.ids.length, 20);
  assert.deepEqual(
    [one.rows[0]!.ids[0], one.rows[0]!.ids[19]],
    [tokenizer.tokenToId('[CLS]'), tokenizer.tokenToId('[SEP]')],
  );
  assert.deepEqual([one.rows[0]!.target, one.report.cutRows], [[1], 1]);
  const pair = made(kinds, { text: 'a b', text_pair: long, label: 0 }, 'bert', 20).rows[0]!;
  assert.deepEqual([pair.ids.length, pair.target], [20, [0]]);
  assert.deepEqual([...pair.types!], [...Array(4).fill(0), ...Array(16).fill(1)]);
  const { rows } = made(tagger, { tokens: ['Ada', 'wrote'], tags: ['B-PER', 'O'] });
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

test('rows that lack what they need, or name what the head does not know', () => {
  refused(() => made(kinds, { text: 'a' }), /the row has no label/);
  refused(
    () => made(kinds, { text: 'a', label: 'spamm' }),
    /'spamm' is none of the head's: ham, spam. Is 'spam' meant/,
  );
  refused(() => made(kinds, { text: 'a', label: 2 }), /'2' is none of the head's/);
  refused(() => made(kinds, { text: 'a', label: ['ham'] }), /not one class/);
  refused(
    () => made(kinds, { tokens: ['a'], tags: ['O'] }),
    /rows of the kind 'tags' are not for sequence-classification/,
  );
  refused(() => made(tagger, { tokens: ['a', 'b'], tags: ['O'] }), /2 tokens have 1 tags/);
  refused(() => made(tagger, { tokens: ['a'], tags: ['B-LOC'] }), /'B-LOC' is none of the head's/);
  refused(() => made(tagger, { tokens: ['a'] }), /no tags/);
  refused(
    () => made({ name: 'sequence-classification', labels: ['value'] }, { text: 'a', label: 'x' }),
    /not one number/,
  );
  refused(() => made({ name: 'embedding', labels: [] }, { text: 'a' }), /no second text/);
  refused(() => made({ name: 'causal-lm', labels: [] }, { text: 'a', label: 'ham' }), /Set the recipe's task/);
  assert.throws(() => taskOf(kinds, { classWeights: { spamm: 2 } }), /'spamm' is none of the labels.*Is 'spam' meant/);
});

test('a completion ends in its label: a head reads where it would begin, and a long prompt loses its middle', () => {
  const row = (prompt: string, maxLength?: number) => made(kinds, { prompt, completion: ' spam' }, 'llama3', maxLength);
  const prompt = 'Win a prize now: spam or ham?';
  const whole = [...tokenizers.get('llama3')!.encode(prompt)];
  const { rows } = row(prompt);
  assert.deepEqual([...rows[0]!.ids], whole);
  assert.deepEqual(rows[0]!.target, [1]);
  const cut = row(prompt, whole.length - 2);
  assert.deepEqual([...cut.rows[0]!.ids].slice(-2), whole.slice(-2));
  assert.deepEqual([cut.rows[0]!.ids.length, cut.report.cutTokens], [whole.length - 2, 2]);
  refused(() => made(kinds, { prompt, completion: ' eggs' }), /'eggs' is none of the head's/);
  refused(() => made(kinds, { messages: [{ role: 'user', content: 'a' }] }), /no chat template/);
});

test('labels are found in the data', () => {
  const found = (...labels: unknown[]) =>
    labelsIn(
      'sequence-classification',
      labels.map((label) => toExample({ value: { text: 'a', label }, place: '' }, 'auto')),
    );
  assert.deepEqual(found('spam', 'ham', 'spam'), { labels: ['ham', 'spam'] });
  assert.deepEqual(found(10, 9, 1), { labels: ['1', '9', '10'] });
  assert.deepEqual(found('1.5', '2'), { labels: ['value'] });
  assert.deepEqual(found(true, false), { labels: ['false', 'true'] });
  assert.deepEqual(found(['b'], ['a', 'c'], []), { labels: ['a', 'b', 'c'], multiLabel: true });
  assert.equal(found(undefined), undefined);
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

test('several classes that are called 0 and 1 are names; elsewhere a 0 or 1 for each class is read as that', () => {
  const head = (...labels: string[]): TaskHead => ({ name: 'sequence-classification', labels, multiLabel: true });
  const target = (of: TaskHead, label: unknown) => [...made(of, { text: 'a', label }).rows[0]!.target!];
  assert.deepEqual(target(head('0', '1'), [0, 1]), [1, 1]);
  assert.deepEqual(target(head('0', '1'), [1, 0]), [1, 1]);
  assert.deepEqual(target(head('a', 'b', 'c'), [1, 0, 1]), [1, 0, 1]);
});
