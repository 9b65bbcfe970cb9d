/** Several tasks on one base that share an adapter: learned in turn, gone on with, measured and handed over each by itself. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { taskOfAdapter } from '../../src/adapters/index.ts';
import { GraftError } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { loadModel, loadModels } from '../../src/models/index.ts';
import { type Linear, moduleAt, outputOf, packTokens } from '../../src/nn/index.ts';
import { noGrad, scope } from '../../src/tensor/index.ts';
import { parseRecipe, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { tinyBert, tinyModel } from '../samples/tiny.ts';
import { golden } from '../support.ts';
import { assertRefused, graft } from './cli.ts';
import { mails, numbered, workspaceFor } from './workspace.ts';

const { dir, session, withModel, at, write } = workspaceFor('several');
before(() => startEngine());
const llama = tinyModel(at('llama'));
const bert = tinyBert(at('bert'));

const spam = write('mails.jsonl', mails(60));
const names = write(
  'names.jsonl',
  numbered(40, (i) => {
    const [name, surname] = [['Ada', 'Byron'][i % 2]!, i % 3 === 0];
    const tags = ['O', 'B-person', ...(surname ? ['I-person'] : []), 'O', 'O', 'B-place'];
    return { tokens: ['the', name, ...(surname ? ['Lovelace'] : []), 'was', 'in', 'Turin'], tags };
  }),
);
const talk = write(
  'talk.jsonl',
  numbered(24, (i) => ({ prompt: `town ${i % 3}:`, completion: [' river', ' abbey', ' mills'][i % 3]! })),
);

const files = { spam, names, talk } as const;
const lines = (file: string): object[] =>
  readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as object);
const fields = {
  spam: { task: 'sequence-classification' },
  names: { task: 'token-classification' },
  talk: { task: 'causal-lm' },
};
const task = (name: keyof typeof fields, more: object = {}) => ({
  ...fields[name],
  ...more,
  data: { train: files[name], eval: write(`${name}-held.jsonl`, lines(files[name]).slice(0, 12)) },
});
const onLlama = { spam: task('spam'), names: task('names'), talk: task('talk') };
const onBert = { spam: task('spam'), names: task('names') };

const recipeOf = (model: string, tasks: object, run: string, more: Record<string, unknown> = {}) => {
  const { train: settings = {}, ...rest } = more;
  return parseRecipe({
    model,
    method: { type: 'lora', r: 8, target_modules: 'all-linear' },
    tasks,
    train: { lr: 1e-2, epochs: 6, batch_size: 6, threads: 1, ...(settings as object) },
    run: { dir: at(run), checkpoint_every: 7 },
    ...rest,
  });
};
const bytesIn = (folder: string) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => [entry.name, readFileSync(join(entry.parentPath, entry.name), 'base64')] as const)
    .sort();

const several: Readonly<Record<string, [model: string, tasks: object, more: Record<string, unknown>]>> = {
  'a decoder that writes, classifies and tags': [llama, onLlama, {}],
  'an encoder whose pooler one task alone has': [bert, onBert, { eval: { every: 20 } }],
  'bottlenecks and LoRA with a start of its own': [
    llama,
    { names: task('names'), spam: task('spam') },
    {
      method: [
        { type: 'lora', init_lora_weights: 'pissa' },
        { type: 'bottleneck', reduction_factor: 4 },
      ],
    },
  ],
  'a prefix': [bert, onBert, { method: { type: 'prefix', num_virtual_tokens: 4 }, train: { lr: 3e-2 } }],
};

type Step = Extract<TrainEvent, { type: 'step' }>;
type Eval = Extract<TrainEvent, { type: 'eval' }>;

let measured = 0;

for (const [name, [model, tasks, more]] of Object.entries(several)) {
  test(`${name}: each task learns, and its adapter alone measures what the run said`, async () => {
    const recipe = recipeOf(model, tasks, name.replaceAll(/\W+/g, '-'), more);
    const events: TrainEvent[] = [];
    const training = session.train(recipe);
    for await (const event of training) events.push(event);
    const result = await training;
    assert.deepEqual(readdirSync(result.adapter).sort(), Object.keys(tasks).sort());
    assert.deepEqual(Object.keys(result.tasks!), Object.keys(tasks));
    for (const [task, { adapter, evalLoss, evalMetrics }] of Object.entries(result.tasks!)) {
      const steps = events.filter((event): event is Step => event.type === 'step' && event.task === task);
      const mean = (part: readonly Step[]) => part.reduce((sum, { loss }) => sum + loss, 0) / part.length;
      const [first, last] = [mean(steps.slice(0, 3)), mean(steps.slice(-3))];
      assert.ok(last < 0.8 * first, `${task}: ${first} to ${last}`);
      const evals = events.filter((event): event is Eval => event.type === 'eval' && event.task === task);
      const best = evals.findLast((event) => event.best)!;
      assert.deepEqual([result.savedStep, evalLoss, evalMetrics], [best.step, best.loss, best.metrics]);
      const data = recipe.tasks![task]!.data.eval!;
      const alone = await withModel(model, (loaded) => loaded.evaluate(data, { adapter }));
      assert.ok(Math.abs(alone.loss - best.loss) < 1e-5, `${task}: ${alone.loss}, ${best.loss}`);
      // Alone, the loss of a language model has an interval too.
      const metrics = alone.metrics.filter(({ name }) => name !== 'loss');
      assert.deepEqual(metrics, best.metrics, task);
      measured += 1 + best.metrics.length;
    }
  });
}

test('so much was measured', () => assert.ok(measured >= 20, String(measured)));

test('a prompt of several tasks: the rows of each are of its number, and so are they where its adapter is used', async () => {
  // The same questions; the answer is the task's.
  const tasks = Object.fromEntries(
    ['river', 'mills'].map((completion, k) => {
      const file = write(
        `asked-${k}.jsonl`,
        numbered(24, (i) => ({ prompt: `town ${i % 3}:`, completion })),
      );
      return [`t${k}`, { task: 'causal-lm', data: { train: file, eval: file } }];
    }),
  );
  const method = {
    type: 'multitask-prompt',
    num_virtual_tokens: 6,
    num_tasks: 2,
    num_ranks: 4,
    prompt_tuning_init: 'RANDOM',
  };
  const more = { method, train: { lr: 0.03, epochs: 20 } };
  const { tasks: results } = await session.train(recipeOf(llama, tasks, 'multitask', more));
  const losses: number[] = [];
  for (const k of [0, 1]) {
    const { adapter, evalLoss } = results![`t${k}`]!;
    for (const data of [0, 1].map((file) => at(`asked-${file}.jsonl`))) {
      losses.push((await withModel(llama, (model) => model.evaluate(data, { adapter }))).loss);
    }
    assert.ok(evalLoss !== null);
  }
  const [own, other, otherToo, ownToo] = losses as [number, number, number, number];
  assert.ok(own < other && ownToo < otherToo, String(losses));

  // The same adapter is of the other task where that is asked for: choices, answers and logits too.
  const of = (k: number) => results![`t${k}`]!.adapter;
  const labels = ['river', 'mills'];
  const [prompt, ids] = ['town 0:', [3, 1, 4, 1, 5]];
  const said = async (adapter: string, taskNumber?: number) => {
    await using model = await session.load(llama);
    const chosen = await model.evaluate(at('asked-1.jsonl'), { adapter, taskNumber, labels });
    const { text } = await model.generate(prompt, { adapter, taskNumber, maxNewTokens: 3 });
    const [logits] = await model.logits([ids], { adapter, taskNumber });
    return { accuracy: chosen.accuracy!.value, text, logits: [...logits!.data] };
  };
  const [first, second] = [await said(of(0)), await said(of(1))];
  assert.deepEqual([first.accuracy, second.accuracy], [0, 1]);
  assert.ok(first.text.startsWith('r') && second.text.startsWith('m'), `${first.text}, ${second.text}`);
  assert.notDeepEqual(first.logits, second.logits);
  assert.deepEqual(await said(of(0), 1), second);
  assert.deepEqual(await said(of(1), 0), first);
  const wrong = ['generate', '--model', llama, '--adapter', of(0), '--prompt', prompt, '--task-number'];
  assertRefused(graft(dir, [...wrong, '2']), 2, /a row has the task 2, and the prompt has 2 tasks\. .*--task-number/);

  // Where no prompt has tasks, a number is refused, and those of rows are named.
  const nothingReads = /a task number is for prompts that were trained on several tasks, and there is none/;
  assertRefused(graft(dir, ['generate', '--model', llama, '--prompt', prompt, '--task-number', '0']), 2, nothingReads);
  await using model = await session.load(llama, { adapters: { first: of(0) } });
  const row = { prompt, completion: 'river', task: 1 };
  const unread = 'the field task of 1 row is not used: no prompt is for several tasks';
  assert.ok((await model.evaluate([row])).notes.includes(unread));
  assert.ok(!(await model.evaluate([row], { adapter: 'first' })).notes.includes(unread));
  await assert.rejects(model.evaluate([row], { taskNumber: 1 }), nothingReads);
  const plain = await session.previewRows({
    model: llama,
    method: { type: 'lora' },
    data: [row],
    run: { dir: at('no') },
  });
  assert.deepEqual(plain[0]!.notes, [unread]);
  await using serving = model.serve();
  const request = { promptIds: ids, maxNewTokens: 1, taskNumber: 1 };
  await assert.rejects(serving.submit(request), nothingReads);
  assert.equal((await serving.submit({ ...request, adapter: 'first' })).ids.length, 1);
});

test('a run that was killed and gone on with equals the run never killed, bit for bit', async () => {
  const live = currentEngine().native.memory().handles;
  const recipe = (run: string) =>
    recipeOf(llama, onLlama, run, {
      method: { type: 'lora', r: 4, lora_dropout: 0.2, target_modules: 'all-linear' },
      train: { epochs: 2, seed: 5 },
      eval: { every: 10 },
    });
  const whole = await runTraining({ recipe: recipe('whole') }, () => {});
  const kills = {
    'two steps after a checkpoint': (e: TrainEvent) => e.type === 'step' && e.step === 16,
    'between two measurements': (e: TrainEvent) => e.type === 'eval' && e.step === 20 && e.task === 'names',
    'when only handing over was left': (e: TrainEvent) => e.type === 'checkpoint' && e.step === whole.losses.length,
  };
  for (const [when, killed] of Object.entries(kills)) {
    const listen = (event: TrainEvent) => {
      if (killed(event)) throw new Error('killed');
    };
    await assert.rejects(runTraining({ recipe: recipe(when) }, listen), /killed/, when);
    const result = await runTraining({ recipe: recipe(when) }, () => {});
    assert.ok(result.resumedFrom > 0, when);
    assert.deepEqual(result.losses, whole.losses, when);
    assert.equal(result.evalLoss, whole.evalLoss, when);
    for (const [name, { evalLoss, evalMetrics, adapter }] of Object.entries(result.tasks!)) {
      const of = whole.tasks![name]!;
      assert.deepEqual([evalLoss, evalMetrics], [of.evalLoss, of.evalMetrics], when);
      assert.deepEqual(bytesIn(adapter), bytesIn(of.adapter), when);
    }
  }
  assert.equal(currentEngine().native.memory().handles, live, 'live handles');
});

test('turns go by rows, or by weights; a run begins from what an adapter shares', async () => {
  const turns = async (tasks: object, run: string, more: Record<string, unknown> = {}) => {
    const of: string[] = [];
    const training = session.train(recipeOf(llama, tasks, run, more));
    for await (const event of training) {
      if (event.type === 'step') of.push(event.task!);
      if (event.type === 'warning') of.push(event.message);
    }
    return { of, result: await training };
  };
  const { spam, talk } = onLlama;
  const byRows = await turns({ spam, talk }, 'by-rows', { train: { epochs: 1 } });
  assert.deepEqual(Object.groupBy(byRows.of, (name) => name).spam!.length, 10, 'sixty rows, six at a time');
  assert.equal(byRows.of.length, 14);
  const weighed = await turns({ spam: { ...spam, weight: 1 }, talk: { ...talk, weight: 3 } }, 'weighed', {
    train: { steps: 8 },
  });
  assert.deepEqual(weighed.of.join(' '), 'talk spam talk talk talk spam talk talk');
  const again = await turns({ talk, spam }, 'again', {
    adapter: byRows.result.tasks!.spam!.adapter,
    train: { steps: 2, lr: 1e-9 },
  });
  assert.match(again.of[0]!, /each task begins with a new head/);
  assert.ok(Math.abs(again.result.tasks!.talk!.evalLoss! - byRows.result.tasks!.talk!.evalLoss!) < 1e-4);
});

test('models of one body say what models loaded alone say, in every family', () => {
  const heads = {
    'families/gpt2': [
      'causal-lm',
      'sequence-classification',
      'token-classification',
      'question-answering',
      'embedding',
    ],
    'families/bert': ['sequence-classification', 'token-classification', 'question-answering', 'embedding'],
    'families/roberta-tokcls': ['sequence-classification', 'token-classification', 'question-answering', 'embedding'],
    'families/distilbert-tokcls': [
      'sequence-classification',
      'token-classification',
      'question-answering',
      'embedding',
    ],
    'models/qwen3': ['causal-lm', 'sequence-classification', 'token-classification', 'question-answering', 'embedding'],
  } as const;
  const said = (model: ReturnType<typeof loadModel>) =>
    noGrad(() => {
      using _ = scope();
      return Array.from(
        outputOf(
          model,
          packTokens([
            [3, 1, 4, 1, 5],
            [9, 2],
          ]),
        ).data() as Float32Array,
      );
    });
  let compared = 0;
  for (const [base, tasks] of Object.entries(heads)) {
    const options = tasks.map((task) => ({ task, labels: ['a', 'b', 'c'] }));
    const models = loadModels(golden(...base.split('/')), options, { seed: 3 });
    for (const [i, model] of models.entries()) {
      using alone = loadModel(golden(...base.split('/')), { ...options[i]!, seed: 3 });
      assert.deepEqual(said(model), said(alone), `${base}, ${tasks[i]}`);
      compared++;
    }
    for (const model of models) model[Symbol.dispose]();
  }
  assert.equal(compared, 22);
});

test('a pooler that the checkpoint lacks, and that no adapter holds, does not go by the seed; a new head does', () => {
  const weights = [0, 5].map((seed) => {
    const options = { task: 'sequence-classification', labels: ['a', 'b', 'c', 'd'], seed } as const;
    using model = loadModel(golden('families', 'bert-tokcls'), options);
    const of = (path: string) => Array.from((moduleAt(model.root, path) as Linear).weight.data() as Float32Array);
    return [of('bert.pooler.dense'), of('classifier')];
  });
  assert.deepEqual(weights[0]![0], weights[1]![0]);
  assert.notDeepEqual(weights[0]![1], weights[1]![1]);
});

test('what cannot be is told: both forms, unknown fields, a task the family lacks, full, other names, the folder of all', async () => {
  const refused = (recipe: () => unknown, pattern: RegExp) =>
    assert.rejects(
      async () => await recipe(),
      (error) => error instanceof GraftError && pattern.test(error.message),
    );
  const run = (model: string, tasks: object, more: Record<string, unknown> = {}) =>
    runTraining({ recipe: recipeOf(model, tasks, 'refused', more) }, () => {});
  await refused(
    () => recipeOf(llama, onLlama, 'x', { data: { train: spam }, labels: ['a'] }),
    /labels: must be given in each of the tasks instead; data: must be given in each/,
  );
  await refused(
    () => recipeOf(llama, { spam: { taks: 'causal-lm', data: { train: spam } }, 'a/b': onLlama.spam }, 'x'),
    /tasks\.spam: unknown key 'taks' \(did you mean 'task'\?\); tasks\.a\/b: a task name is a letter/,
  );
  await refused(() => recipeOf(llama, {}, 'x'), /tasks: there are no tasks/);
  await refused(() => recipeOf(llama, { talk: { task: 'causal-lm' } }, 'x'), /tasks\.talk\.data is missing/);
  await refused(() => run(bert, { ...onBert, talk: onLlama.talk }), /bert models cannot be loaded for causal-lm/);
  await refused(() => run(llama, onLlama, { method: { type: 'full' } }), /tasks share an adapter, and full/);
  await refused(
    () => run(llama, { ...onLlama, talk: { ...onLlama.talk, task: 'embedding' } }),
    /cannot share an adapter: .*sequence-classification as model\.layers\.\* and embedding as layers\.\*/,
  );
  await refused(
    () => run(llama, { ...onLlama, spam: { ...onLlama.spam, class_weights: { eggs: 2 } } }),
    /'eggs' is not one of the labels/,
  );
  const folder = at('a-decoder-that-writes-classifies-and-tags', 'adapter');
  assertRefused(
    graft(dir, ['eval', '--model', llama, '--adapter', folder, '--data', spam]),
    2,
    /holds an adapter for each of several tasks\. Name one: \S+names, \S+spam, \S+talk/,
  );
  assert.equal(taskOfAdapter(join(folder, 'names')).task, 'token-classification');
});
