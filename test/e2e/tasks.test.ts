/** Every task from a recipe to predictions: trained on tiny models till it is learned, measured, predicted, refused. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import test from 'node:test';
import { encode } from 'fast-png';
import { GraftError } from '../../src/base/index.ts';
import { parseRecipe } from '../../src/train/index.ts';
import { tinyBert, tinyModel, tinyVit } from '../samples/tiny.ts';
import { assertRefused, graft } from './cli.ts';
import { kindOf, mails, numbered, words, workspaceFor } from './workspace.ts';

const { dir, session, withModel, at, write } = workspaceFor('tasks');
const llama = tinyModel(at('llama'));
const bert = tinyBert(at('bert'));
const vit = tinyVit(at('vit'));

async function train(model: string, data: string, more: Record<string, unknown> = {}) {
  const run = at(`run-${Math.random().toString(36).slice(2)}`);
  const { train: settings = {}, ...rest } = more;
  const recipe = parseRecipe({
    model,
    method: { type: 'lora', r: 8, target_modules: 'all-linear' },
    data: { train: data, ...(data.endsWith('jsonl') && { held_out: 12 }) },
    train: { lr: 1e-2, epochs: 6, batch_size: 6, ...(settings as object) },
    run: { dir: run },
    ...rest,
  });
  return await session.train(recipe);
}

async function measured(model: string, adapter: string, data: string, windows: object = {}) {
  const result = await withModel(model, (loaded) => loaded.evaluate(data, { adapter, ...windows }));
  return { ...result, of: Object.fromEntries(result.metrics.map((metric) => [metric.name, metric])) };
}

async function predicted(model: string, adapter: string, data: string): Promise<Record<string, unknown>[]> {
  const { predictions } = await withModel(model, (loaded) => loaded.predict(data, { adapter }));
  return predictions as unknown as Record<string, unknown>[];
}

async function refused(act: () => Promise<unknown>, pattern: RegExp): Promise<void> {
  await assert.rejects(act, (e) => e instanceof GraftError && pattern.test(e.message));
}

test('classes of texts, on a decoder: learned, with weights, in order of the rows, and through the command line', async () => {
  const rows = mails(60);
  const data = write('mails.jsonl', rows);
  const result = await train(llama, data, { task: 'sequence-classification', class_weights: 'balanced' });
  const held = result.evalMetrics.find(({ name }) => name === 'accuracy')!;
  assert.ok(held.count === 12 && held.low <= held.value && held.value <= held.high);
  const { of, confusion } = await measured(llama, result.adapter, data);
  assert.ok(of.accuracy!.value > 0.95 && of.accuracy!.count === 60, JSON.stringify(of));
  assert.deepEqual(confusion!.labels, ['ham', 'spam']);
  assert.equal(
    confusion!.counts.flat().reduce((a, b) => a + b),
    60,
  );

  const asked = write('asked.jsonl', [{ text: 'free cash prize' }, { text: 'town meeting report report river' }]);
  const said = await predicted(llama, result.adapter, asked);
  assert.deepEqual(
    said.map(({ label }) => label),
    ['spam', 'ham'],
  );
  for (const { probabilities } of said) {
    const sum = Object.values(probabilities as object).reduce((a: number, b: number) => a + b, 0);
    assert.ok(Math.abs(sum - 1) < 1e-6);
  }
  const ended = graft(dir, ['eval', '--model', llama, '--adapter', result.adapter, '--data', data]);
  assert.equal(ended.status, 0, ended.stderr);
  assert.match(ended.stdout, /accuracy [\d.]+ \(95 % confidence interval [\d.]+ to [\d.]+, 60 rows\)/);
  assert.match(ended.stdout, /ham +spam\n +ham +\d+ +\d+\n/);

  await refused(
    () => measured(llama, result.adapter, write('odd.jsonl', [{ text: 'a', label: 'spamm' }])),
    /odd\.jsonl:1: .*'spamm' is not one of the head's labels: ham, spam/,
  );
  await refused(
    () => withModel(llama, (model) => model.evaluate(data, { task: 'sequence-classification' })),
    /has no head for sequence-classification: score/,
  );
  await refused(() => measured(llama, result.adapter, asked), /asked\.jsonl:1: .*no label/);
  assertRefused(
    graft(dir, ['eval', '--model', llama, '--adapter', result.adapter, '--data', data, '--labels', 'a', 'b']),
    2,
    /labels of sequence-classification are those of its head/,
  );
});

test('a number, and several classes at a time', async () => {
  const numbers = numbered(48, (i) => ({
    text: words(kindOf(i), i),
    label: (i % 3 === 0 ? 1.5 : -0.5) + (i % 2) / 100,
  }));
  const data = write('numbers.jsonl', numbers);
  const result = await train(llama, data, { task: 'sequence-classification' });
  const { of } = await measured(llama, result.adapter, data);
  assert.ok(of.mse!.value < 0.3 && of.pearson!.value > 0.8 && of.spearman!.count === 48, JSON.stringify(of));
  assert.equal(typeof (await predicted(llama, result.adapter, data))[0]!.value, 'number');

  const several = numbered(48, (i) => {
    const [first, second] = [i % 2 === 0, i % 3 === 0];
    const text = `${first ? 'river town' : 'abbey'} ${second ? 'prize cash' : 'mills'}`;
    return { text, label: [...(first ? ['place'] : []), ...(second ? ['money'] : [])] };
  });
  const labelled = write('several.jsonl', several);
  const both = await train(bert, labelled, { task: 'sequence-classification', train: { epochs: 10 } });
  const scores = (await measured(bert, both.adapter, labelled)).of;
  assert.ok(scores.exact_match!.value > 0.9 && scores.f1_micro!.count === 96, JSON.stringify(scores));
  assert.deepEqual((await predicted(bert, both.adapter, labelled))[0]!.labels, ['money', 'place']);
});

test('tags of words, out of a CoNLL file', async () => {
  const names = ['Ada', 'Byron', 'Turin'];
  const sentences = numbered(60, (i) => [
    ['the', 'O'],
    [names[i % 2]!, 'B-person'],
    ...(i % 3 === 0 ? [['Lovelace', 'I-person']] : []),
    ['was', 'O'],
    ['in', 'O'],
    [names[2]!, 'B-place'],
  ]);
  writeFileSync(at('tags.conll'), sentences.map((lines) => lines.map((l) => `${l.join(' ')}\n`).join('')).join('\n'));
  const result = await train(bert, at('tags.conll'), { task: 'token-classification' });
  const { of } = await measured(bert, result.adapter, at('tags.conll'));
  assert.ok(of.f1_entities!.value > 0.9 && of.f1_entities!.count === 120, JSON.stringify(of));
  assert.equal(of.accuracy!.count, sentences.flat().length);
  const asked = write('words.jsonl', [{ tokens: ['the', 'Ada', 'Lovelace', 'was', 'in', 'Turin'] }]);
  assert.deepEqual(await predicted(bert, result.adapter, asked), [
    { text: 'the Ada Lovelace was in Turin', tags: ['O', 'B-person', 'I-person', 'O', 'O', 'B-place'] },
  ]);
});

test('answers in a context, with windows where it is long', async () => {
  const people = ['Ada', 'Byron', 'Turing', 'Hopper'];
  const filler = ' the mills and the abbey stood by the river';
  const rows = numbered(64, (i) => {
    const [name, before] = [people[i % 4]!, i % 3 === 0 ? filler.trim() : 'in the town'];
    const context = `${before} it was made by ${name} there.`;
    return { question: 'Who?', context, answers: { text: [name], answer_start: [context.indexOf(name)] } };
  });
  const data = write('questions.jsonl', rows);
  const settings = { epochs: 16, lr: 1e-2, schedule: 'cosine' };
  const shape = { data: { train: data, held_out: 8, max_length: 30, stride: 10 }, train: settings };
  const result = await train(bert, data, { task: 'question-answering', ...shape });
  const { of } = await measured(bert, result.adapter, data, { maxLength: 30, stride: 10 });
  assert.ok(of.exact_match!.value > 0.8 && of.f1!.count === 64, JSON.stringify(of));
  // A question that is held out is so with all of its windows.
  const half = { ...shape, data: { ...shape.data, held_out: 32 }, train: { epochs: 1 } };
  const { evalMetrics } = await train(bert, data, { task: 'question-answering', ...half });
  assert.equal(evalMetrics.find(({ name }) => name === 'exact_match')!.count, 32);
  const [first] = await predicted(bert, result.adapter, data);
  assert.equal(rows[0]!.context.slice(Number(first!.start)).startsWith(String(first!.answer)), true);
  await refused(
    () =>
      train(bert, write('off.jsonl', [{ ...rows[0], answers: { text: ['Byron'], answer_start: [0] } }]), {
        task: 'question-answering',
      }),
    /off\.jsonl:1: .*is not at position 0/,
  );
});

test('images in folders, and as pixel values in rows; invalid ones are refused', async () => {
  const image = (bright: boolean, i: number) =>
    Uint8Array.from({ length: 192 }, (_, p) => (bright ? 170 : 20) + ((i * 31 + p * 7) % 60));
  for (const [label, bright] of [
    ['dark', false],
    ['light', true],
  ] as const) {
    mkdirSync(at('images', label), { recursive: true });
    for (let i = 0; i < 12; i++) {
      const png = encode({ width: 8, height: 8, channels: 3, data: image(bright, i) });
      writeFileSync(at('images', label, `${i}.png`), png);
    }
  }
  // Two classes: the head of four that the checkpoint has makes room for a new one.
  await refused(
    () => train(vit, at('images')),
    /'dark' is not one of the head's labels: LABEL_0, [^]*labels in the recipe/,
  );
  const labels = ['dark', 'light'];
  const result = await train(vit, at('images'), { labels, train: { epochs: 6 } });
  const { of, confusion } = await measured(vit, result.adapter, at('images'));
  assert.ok(of.accuracy!.value > 0.95 && of.accuracy!.count === 24, JSON.stringify(of));
  assert.deepEqual(confusion!.labels, labels);
  const grey = numbered(8, () => numbered(8, () => 210));
  const asked = write('images.jsonl', [{ image: grey }, { image: 'images/dark/3.png' }]);
  assert.deepEqual(
    (await predicted(vit, result.adapter, asked)).map(({ label }) => label),
    ['light', 'dark'],
  );
  // The same images as vectors.
  const { predictions } = await withModel(vit, (model) => model.predict(at('images'), { task: 'embedding' }));
  const widths = new Set(predictions.map(({ embedding }) => embedding!.length));
  assert.deepEqual(
    [predictions.length, [...widths]],
    [24, [JSON.parse(readFileSync(`${vit}/config.json`, 'utf8')).hidden_size]],
  );
  const wrong = (row: object) => predicted(vit, result.adapter, write('wrong.jsonl', [row]));
  await refused(() => wrong({ image: [[1, 2], [3]] }), /wrong\.jsonl:1: .*rows of equal length/);
  await refused(() => wrong({ image: [[300]] }), /pixel values from 0 to 255/);
  await refused(() => wrong({ image: [[[1, 2]]] }), /2 channels/);
  await refused(() => wrong({ image: 'nowhere.png' }), /nowhere\.png: the image was not found/);
  await refused(() => wrong({ text: 'a' }), /image-classification does not support rows of the kind 'text'/);
});

test('vectors of sentences: pairs find each other, and a score is learned', async () => {
  const topics = ['river', 'abbey', 'prize', 'report', 'meeting', 'town', 'mills', 'winner'];
  const pairs = numbered(48, (i) => ({ text: `the ${topics[i % 8]} here`, text_pair: `a ${topics[i % 8]} was there` }));
  const data = write('pairs.jsonl', pairs);
  const settings = { train: { batch_size: 8, epochs: 8, lr: 5e-3 }, temperature: 0.1 };
  const result = await train(bert, data, { task: 'embedding', ...settings });
  // Two questions of one answer: either row is right.
  const twice = write('twice.jsonl', [
    { text: 'the river here', text_pair: 'a river was there' },
    { text: 'the river there', text_pair: 'a river was there' },
    { text: 'the prize here', text_pair: 'a prize was there' },
  ]);
  assert.equal((await measured(bert, result.adapter, twice)).of.nearest_is_own!.value, 1);
  const losses = result.losses;
  assert.ok(losses.at(-1)! < losses[0]!, `${losses}`);
  const each = write('each.jsonl', pairs.slice(0, 8));
  const trained = await measured(bert, result.adapter, each);
  const before = await withModel(bert, (model) => model.evaluate(each, { task: 'embedding' }));
  assert.ok(
    trained.of.nearest_is_own!.value >= 0.9 && trained.of.nearest_is_own!.count === 8,
    JSON.stringify(trained.of),
  );
  assert.ok(trained.loss < before.loss, `${trained.loss}, ${before.loss}`);
  const scored = pairs
    .slice(0, 24)
    .map((pair, i) => ({ ...pair, label: i % 2, ...(i % 2 === 0 && { text_pair: 'no' }) }));
  const alike = await measured(bert, result.adapter, write('scored.jsonl', scored));
  assert.ok(alike.of.spearman!.value > 0.5 && alike.of.pearson!.count === 24, JSON.stringify(alike.of));
  const [vector, pair] = await predicted(bert, result.adapter, write('ask.jsonl', [{ text: 'a river' }, pairs[0]!]));
  assert.equal((vector!.embedding as number[]).length, 32);
  assert.ok(Math.abs(Number(pair!.similarity)) <= 1);
});

test('rows that fit two formats are measured once the format is named, as they are trained', async () => {
  const both = numbered(6, (i) => ({ instruction: 'say', input: '', output: words(kindOf(i), i), text: 'say' }));
  const data = write('both.jsonl', both);
  await refused(() => withModel(llama, (model) => model.evaluate(data)), /could be alpaca or text/);
  const ended = graft(dir, ['eval', '--model', llama, '--data', data, '--format', 'alpaca', '--json']);
  assert.equal(ended.status, 0, ended.stderr);
  const answers = (JSON.parse(ended.stdout) as { tokens: number }).tokens;
  const all = await withModel(llama, (model) => model.evaluate(data, { format: 'alpaca', trainOn: 'all' }));
  assert.ok(all.tokens > answers && answers > 0);
});

test('rows of another task, and a task without labels, say what to do', async () => {
  const plain = write('plain.jsonl', [
    { text: 'free cash', label: 'spam' },
    { text: 'a report', label: 'ham' },
  ]);
  await refused(() => train(llama, plain, { data: { train: plain } }), /Set the recipe's task/);
  await refused(
    () => train(llama, plain, { task: 'token-classification', data: { train: plain } }),
    /no labels for token-classification|token-classification does not support/,
  );
  await refused(
    () => train(llama, plain, { task: 'image-classification', data: { train: plain } }),
    /cannot be loaded for image-classification/,
  );
  const shape = { task: 'sequence-classification', data: { train: plain } };
  await refused(() => train(llama, plain, { ...shape, class_weights: { spam: 2, eggs: 1 } }), /class_weights: 'eggs'/);
  await refused(() => train(llama, plain, { ...shape, labels: ['ham'] }), /not one number/);
  await refused(() => withModel(llama, (model) => model.predict(plain)), /Set the recipe's task|graft generate/);
});
