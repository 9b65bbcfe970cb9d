/** Runs with layers in turn, from recipe to files: killed and resumed, extended, of several tasks, begun from an adapter, refused. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import type { GraftError } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { isInBackward, optimizers } from '../../src/optim/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { parseRecipe, type RunOptions, runTraining, type TrainEvent } from '../../src/train/index.ts';
import { graft } from '../e2e/cli.ts';
import { mails } from '../e2e/workspace.ts';
import { tinyBert, tinyModel } from '../samples/tiny.ts';
import { golden, readTensors, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Fields = Readonly<Record<string, unknown>>;
const full = { type: 'full' };
const lora = { type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.1 };
const steps = 14;

const policies: Readonly<Record<string, Fields>> = {
  last: { policy: 'last', layers: 1 },
  lisa: { policy: 'lisa', layers: 1, every: 3 },
  badam: { policy: 'badam', every: 3 },
  'rules by step': {
    policy: 'schedule',
    rules: [
      { freeze: '0-1', step: 3, for: 4 },
      { freeze: 2, step: 10 },
    ],
  },
  // With these numbers a mean always is below, so that every rule comes.
  'rules that watch': {
    policy: 'schedule',
    rules: [
      { freeze: 0, plateau: 2, min_fall: 2 },
      { train: 0, plateau: 3, min_fall: 2 },
      { freeze: '1-2', gradient_norm: 50, window: 2, for: 3 },
    ],
  },
};

/** A folder with 24 rows that can be learned, and recipes for llama3, which has three layers. */
function workspace() {
  const folder = temporary();
  const data = join(folder.path, 'rows.jsonl');
  const row = (r: number) => Array.from({ length: 5 + ((r * 7) % 12) }, (_, i) => 3 + ((r * 13 + i * 7) % 60));
  writeFileSync(data, Array.from({ length: 24 }, (_, r) => `${JSON.stringify({ ids: row(r) })}\n`).join(''));
  const recipe = (name: string, method: unknown, more: Fields = {}): Fields => ({
    model: golden('models', 'llama3'),
    method,
    data: { train: data, format: 'tokens', held_out: 4 },
    train: { lr: 5e-3, steps, batch_size: 4, micro_tokens: 48, threads: 1, weight_decay: 0.1 },
    eval: { every: 4, keep: 'last' },
    run: { dir: join(folder.path, name), checkpoint_every: 2 },
    ...more,
  });
  return { path: folder.path, data, recipe, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

async function train(recipe: Fields, options: RunOptions = {}, stopAt?: (event: TrainEvent) => boolean) {
  const events: TrainEvent[] = [];
  const result = await runTraining({ recipe: parseRecipe(recipe), ...options }, (event) => {
    events.push(event);
    if (stopAt?.(event)) throw new Error('killed');
  });
  return { events, result };
}
type Of<T extends TrainEvent['type']> = Extract<TrainEvent, { type: T }>;
const only = <T extends TrainEvent['type']>(events: readonly TrainEvent[], type: T) =>
  events.filter((event): event is Of<T> => event.type === type);
const logged = (dir: string, type: string) =>
  readFileSync(join(dir, 'events.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Fields)
    .filter((event) => event.type === type);
const weightsOf = (dir: string, method: Fields) =>
  readFileSync(join(dir, method === full ? 'model.safetensors' : 'adapter_model.safetensors'));

const resumed = { runs: 0, kills: 0 };
for (const [method, name] of [
  [full, 'full'],
  [lora, 'lora'],
] as const) {
  for (const [policy, fields] of Object.entries(policies)) {
    test(`${name}, ${policy}: killed after every checkpoint, a run has the losses, the layers and the weights of one never killed`, async () => {
      using work = workspace();
      const methods = [method, { type: 'layerwise', ...fields }];
      const whole = await train(work.recipe('whole', methods));
      const switches = only(whole.events, 'layers');
      assert.ok(policy === 'last' ? switches.length === 1 : switches.length >= 4, `${switches.length} switches`);
      const recipe = work.recipe('killed', methods);
      for (let at = 2; at < steps; at += 2) {
        const kill = (event: TrainEvent) => event.type === 'checkpoint' && event.step === at;
        await assert.rejects(train(recipe, {}, kill), /killed/);
        resumed.kills++;
      }
      const { result, events } = await train(recipe);
      assert.equal(result.resumedFrom, steps - 2);
      const first = events.find(({ type }) => type === 'layers' || type === 'step');
      assert.equal(first!.type, 'layers', 'a resumed run tells first what trains');
      assert.deepEqual(result.losses, whole.result.losses);
      assert.deepEqual(logged(join(work.path, 'killed'), 'layers'), logged(join(work.path, 'whole'), 'layers'));
      assert.ok(weightsOf(result.adapter, method).equals(weightsOf(whole.result.adapter, method)));
      resumed.runs++;
    });
  }
}

for (const type of Object.keys(optimizers)) {
  test(`lisa with ${type}: killed and resumed, a run is as one never killed`, async () => {
    using work = workspace();
    const methods = [full, { type: 'layerwise', ...policies.lisa }];
    const settings = type === 'galore' ? { rank: 4 } : {};
    const recipe = (name: string): Fields => {
      const all = work.recipe(name, methods);
      const { weight_decay: _, micro_tokens, ...others } = all.train as Fields;
      const cut = isInBackward({ type }) ? {} : { micro_tokens };
      return { ...all, train: { ...others, ...cut, optimizer: { type, ...settings } } };
    };
    const whole = await train(recipe('whole'));
    for (const at of [4, 10]) {
      const kill = (event: TrainEvent) => event.type === 'checkpoint' && event.step === at;
      await assert.rejects(train(recipe('killed'), {}, kill), /killed/);
      resumed.kills++;
    }
    const { result } = await train(recipe('killed'));
    assert.deepEqual(result.losses, whole.result.losses);
    assert.ok(weightsOf(result.adapter, full).equals(weightsOf(whole.result.adapter, full)));
    resumed.runs++;
  });
}

test('so many runs were killed and resumed', (t) => {
  t.diagnostic(JSON.stringify(resumed));
  const { length } = Object.keys(optimizers);
  assert.deepEqual(resumed, { runs: 10 + length, kills: 60 + 2 * length });
});

test('gradient checkpointing changes no loss', async () => {
  using work = workspace();
  let compared = 0;
  for (const [policy, fields] of Object.entries(policies)) {
    const methods = [full, { type: 'layerwise', ...fields }];
    const { result: plain } = await train(work.recipe(policy, methods));
    const recipe = work.recipe(`${policy}, again`, methods);
    const { result } = await train({ ...recipe, train: { ...(recipe.train as Fields), gradient_checkpointing: true } });
    result.losses.forEach((loss, i) => {
      assert.ok(
        Math.abs(loss / plain.losses[i]! - 1) < 1e-5,
        `${policy}: ${loss} and ${plain.losses[i]} in step ${i + 1}`,
      );
      compared++;
    });
  }
  assert.equal(compared, 5 * steps);
});

test('a part that the task does not compute with cannot train alone', async () => {
  using work = workspace();
  const recipe = work.recipe('pooler', [full, { type: 'layerwise', policy: 'badam', blocks: 'head' }]);
  const pairs = join(work.path, 'pairs.jsonl');
  writeFileSync(
    pairs,
    mails(8)
      .map(({ text }) => `${JSON.stringify({ text, text_pair: text })}\n`)
      .join(''),
  );
  await assert.rejects(
    train({ ...recipe, model: tinyBert(join(work.path, 'bert')), task: 'embedding', data: pairs }),
    /nothing that trains in this step changes the loss/,
  );
});

test('an extended run is one that was so long from the beginning', async () => {
  using work = workspace();
  const methods = [full, { type: 'layerwise', ...policies.lisa }];
  const longer = { train: { ...(work.recipe('', methods).train as Fields), steps: 20 } };
  const long = await train(work.recipe('long', methods, longer));
  await train(work.recipe('short', methods));
  const { result } = await train(work.recipe('short', methods, longer));
  assert.equal(result.resumedFrom, steps);
  assert.deepEqual(result.losses, long.result.losses);
});

test('the seed of the run decides the layers, also where a run begins from an adapter', async () => {
  using work = workspace();
  const methods = [lora, { type: 'layerwise', ...policies.lisa }];
  const { result: start } = await train(work.recipe('start', [lora]));
  const layersOf = async (name: string, seed: number, more: Fields = {}) => {
    const recipe = work.recipe(name, methods, more);
    const { events } = await train({ ...recipe, train: { ...(recipe.train as Fields), seed } });
    return only(events, 'layers').map(({ trained }) => trained.join());
  };
  const adapter = { adapter: start.adapter };
  const [first, same, other, begun, begunOther] = [
    await layersOf('a', 3),
    await layersOf('b', 3),
    await layersOf('c', 4),
    await layersOf('d', 3, adapter),
    await layersOf('e', 4, adapter),
  ];
  assert.deepEqual(same, first);
  assert.notDeepEqual(other, first);
  assert.deepEqual([begun, begunOther], [first, other]);
});

test('several tasks share the layers in turn; rules that compare their steps are refused', async () => {
  using _s = scope();
  using work = workspace();
  const model = tinyModel(join(work.path, 'llama'));
  const file = join(work.path, 'mails.jsonl');
  writeFileSync(
    file,
    mails(24)
      .map((row) => `${JSON.stringify(row)}\n`)
      .join(''),
  );
  const task = { task: 'sequence-classification', data: { train: file, held_out: 4 } };
  const recipe = (name: string, method: Fields, policy: Fields) => {
    const { data: _, ...rest } = work.recipe(name, [method, { type: 'layerwise', ...policy }]);
    return { ...rest, model, tasks: { one: task, two: task } };
  };
  const { events, result } = await train(recipe('shared', lora, policies.lisa!));
  assert.deepEqual(
    only(events, 'layers').map(({ step }) => step),
    [1, 4, 7, 10, 13],
  );
  assert.equal(only(events, 'step').filter(({ task: name }) => name === 'two').length, steps / 2);
  const [one, two] = Object.values(result.tasks!).map(({ adapter }) => adapter);
  // They share the layers, and each has its head.
  const [ofOne, ofTwo] = [one!, two!].map((dir) => readTensors(join(dir, 'adapter_model.safetensors')).tensors);
  const same = [...ofOne!].map(
    ([key, tensor]) => [key, Buffer.compare(tensor.bytes(), ofTwo!.get(key)!.bytes()) === 0] as const,
  );
  assert.deepEqual(
    same.filter(([, equal]) => !equal).map(([key]) => key),
    ['base_model.model.score.weight'],
  );
  assert.equal(same.length, 1 + 3 * 7 * 2);
  await assert.rejects(
    train(recipe('watched', lora, { policy: 'schedule', rules: [{ freeze: 0, plateau: 2 }] })),
    /rule 1 compares steps, and those of several tasks are not comparable/,
  );
  await assert.rejects(
    async () => train(recipe('full', full, policies.lisa!)),
    /tasks share an adapter, and full writes a whole model/,
  );
});

test('what cannot be trained is refused, and the directory stays as it is', async () => {
  using work = workspace();
  const layerwise = (fields: Fields) => ({ type: 'layerwise', ...fields });
  const lisa = layerwise(policies.lisa!);
  const cases: Readonly<Record<string, readonly [method: unknown, why: RegExp]>> = {
    alone: [lisa, /layerwise trains no weights of its own.*full, lora/],
    'beside settings only': [[{ type: 'qat', weight: 'int4' }, lisa], /trains no weights of its own/],
    twice: [[full, lisa, layerwise(policies.last!)], /layerwise stands twice/],
    'beside adalora': [[{ type: 'adalora' }, lisa], /adalora compares the gradients of all its parameters/],
    'as an adapter': [[full, { ...lisa, adapter: 'x' }], /layerwise is not an adapter/],
    frozen: [[full, { ...lisa, train: false }], /layerwise is not an adapter/],
    'beside a prompt': [
      [{ type: 'prompt', num_virtual_tokens: 3, prompt_tuning_init: 'RANDOM' }, lisa],
      /there is no layer to choose: prompt \+ layerwise trains no parameter in a layer/,
    ],
    'too many layers': [[full, layerwise({ policy: 'last', layers: 4 })], /layers is 4, and the model has 3 layers/],
    'layers that do not exist': [
      [full, layerwise({ policy: 'badam', blocks: [0, 12] })],
      /blocks names layer 12, and the model has 3 layers, 0 to 2/,
    ],
    'nothing ever trains': [
      [full, layerwise({ policy: 'schedule', rules: [{ freeze: ['embeddings', 'layers', 'head'], step: 0 }] })],
      /after 0 steps nothing trains/,
    ],
    'a rule after the end': [
      [full, layerwise({ policy: 'schedule', rules: [{ freeze: 0, step: 400 }] })],
      /rule 1 comes after 400 steps at the earliest, and the run has 14/,
    ],
    'an unknown policy': [[full, layerwise({ policy: 'first' })], /policy/],
    'a field of another policy': [
      [full, layerwise({ policy: 'lisa', order: 'random' })],
      /policy lisa has no field order. Its fields: layers, every, always/,
    ],
    'no layers of the adapter': [
      [{ ...lora, target_modules: ['q_proj'], layers_to_transform: [0] }, layerwise({ policy: 'last', layers: 1 })],
      /no parameter of the last layers \(2\) is trained/,
    ],
  };
  for (const [name, [method, why]] of Object.entries(cases)) {
    const recipe = work.recipe('refused', method);
    const error = await train(recipe).then(
      () => assert.fail(`${name} was not refused`),
      (cause: GraftError) => cause,
    );
    assert.equal(error.kind, 'usage', name);
    assert.match(`${error.message} ${error.hint ?? ''}`, why, name);
    assert.ok(!existsSync(join(work.path, 'refused', 'events.jsonl')), name);
  }
  assert.equal(Object.keys(cases).length, 14);
});

test('notes name what is in no layer, and what is not reached; nothing of it is saved', async () => {
  using work = workspace();
  const methods = [lora, { type: 'prefix', num_virtual_tokens: 2 }, { type: 'layerwise', policy: 'badam', every: 10 }];
  const { events, result } = await train(work.recipe('notes', methods));
  const notes = only(events, 'warning').map(({ message }) => message);
  assert.ok(notes.includes('layerwise: in 14 steps, 2 of 3 blocks are trained'), notes.join('\n'));
  assert.ok(notes.includes('in no layer, and trained in every step: 1.prompt_embeddings'), notes.join('\n'));
  assert.doesNotMatch(readFileSync(join(result.adapter, 'graft.json'), 'utf8'), /layerwise|settings/);
});

test('graft train shows which layers train, and the log has their number', () => {
  using work = workspace();
  const { path } = work;
  writeFileSync(
    join(path, 'recipe.json'),
    JSON.stringify(work.recipe('cli', [full, { type: 'layerwise', policy: 'last', layers: 2 }])),
  );
  const { status, stderr } = graft(path, ['train', 'recipe.json']);
  assert.equal(status, 0, stderr);
  assert.match(stderr, /step 14\/14 .* trains layers 1-2, head {2}/);
  assert.match(stderr, /note: layerwise: the output projection is the table of the embeddings, which stays frozen/);
  const [event, ...others] = logged(join(path, 'cli'), 'layers');
  assert.deepEqual([event!.step, event!.trained, others], [1, [1, 2, 'head'], []]);
  // Of llama3: two blocks of 32 wide and 44 inner, and a norm.
  const block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 44 + 2 * 32;
  assert.equal(event!.parameters, 2 * block + 32);
});
