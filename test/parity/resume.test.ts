/** What a run directory is good for: which runs are resumed, extended, refused or kept, and what a result says that was saved. */
import assert from 'node:assert/strict';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import type { GraftError } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { isInBackward, optimizers } from '../../src/optim/index.ts';
import { parseRecipe, type RunOptions, runTraining, type TrainEvent, type TrainResult } from '../../src/train/index.ts';
import { golden, temporary } from '../support.ts';

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
});

type Fields = Record<string, unknown>;

/** 24 rows that can be learned: the next id is `step` more, in a circle of 60. */
const rowsOf = (step: number) =>
  Array.from({ length: 24 }, (_, r) => ({
    ids: Array.from({ length: 4 + ((r * 5) % 9) }, (_, i) => 3 + ((r * 13 + i * step) % 60)),
  }));
const write = (file: string, rows: readonly object[]) =>
  writeFileSync(file, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));

/** Sets fields by dotted name. */
function withFields(recipe: Fields, fields: Fields): Fields {
  const copy = structuredClone(recipe);
  for (const [name, value] of Object.entries(fields)) {
    const path = name.split('.');
    let group = copy;
    for (const key of path.slice(0, -1)) {
      group[key] ??= {};
      group = group[key] as Fields;
    }
    group[path.at(-1)!] = value;
  }
  return copy;
}

/** A folder with a file of rows and a recipe of ten steps. */
function workspace() {
  const folder = temporary();
  const data = join(folder.path, 'rows.jsonl');
  write(data, rowsOf(7));
  const recipe: Fields = {
    model: golden('models', 'qwen2'),
    method: { type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.1 },
    data: { train: data, format: 'tokens', held_out: 4 },
    train: { lr: 3e-3, warmup_steps: 3, steps: 10, batch_size: 4, micro_tokens: 48, threads: 1 },
    eval: { every: 4 },
    run: { dir: join(folder.path, 'run'), checkpoint_every: 2 },
  };
  return { folder, data, recipe, dir: join(folder.path, 'run') };
}

async function train(recipe: Fields, options: RunOptions = {}) {
  const events: TrainEvent[] = [];
  const result = await runTraining({ recipe: parseRecipe(recipe), ...options }, (event) => events.push(event));
  return { events, result };
}

/** Runs a recipe until the checkpoint after `step`. */
async function stopAt(recipe: Fields, step: number): Promise<void> {
  const kill = (event: TrainEvent) => {
    if (event.type === 'checkpoint' && event.step === step) throw new Error('killed');
  };
  await assert.rejects(runTraining({ recipe: parseRecipe(recipe) }, kill), /killed/);
}

const weightsOf = (adapter: string) => readFileSync(join(adapter, 'adapter_model.safetensors'));

/** The files of a directory with their content, to see that nothing touched them. */
const snapshot = (dir: string) =>
  Object.fromEntries(
    (readdirSync(dir, { recursive: true, withFileTypes: true }) ?? [])
      .filter((entry) => entry.isFile() && entry.name !== 'graft.lock')
      .map((entry) => join(entry.parentPath, entry.name))
      .sort()
      .map((file) => [file, readFileSync(file, 'hex')]),
  );

const refusal = async (act: Promise<unknown>): Promise<string> => {
  const error = await act.then(
    () => assert.fail('it was not refused'),
    (thrown: GraftError) => thrown,
  );
  assert.ok(error.hint, error.message);
  return error.message;
};

/** Changes that decide no loss of the steps that are done. */
const harmless: Readonly<Record<string, Fields>> = {
  threads: { 'train.threads': 2 },
  measuring: { 'eval.every': 3, 'eval.patience': 9 },
  'what is kept': { 'eval.keep': 'last' },
  checkpoints: { 'run.checkpoint_every': 5, 'run.keep_checkpoints': 4 },
  memory: { 'train.micro_tokens': 60, 'train.gradient_checkpointing': true },
  'a default that is written down': { 'train.beta1': 0.9, quantize: 'none', 'train.schedule': 'constant' },
  'a limit that cuts nothing': { 'data.max_length': 100 },
  'a method in a list': { method: [{ type: 'lora', r: 4, target_modules: 'all-linear', lora_dropout: 0.1 }] },
};

test('changes that decide no loss: the run is resumed', async (t) => {
  for (const [name, fields] of Object.entries(harmless)) {
    const { folder, recipe } = workspace();
    using _ = folder;
    await stopAt(recipe, 4);
    const { result, events } = await train(withFields(recipe, fields));
    assert.equal(result.resumedFrom, 4, name);
    assert.equal(result.losses.length, 10, name);
    assert.equal(events.filter((e) => e.type === 'step').length, 6, name);
  }
  t.diagnostic(`${Object.keys(harmless).length} changes`);
});

/** Settings with which each optimizer changes what it keeps within ten steps. */
const optimizerSettings: Readonly<Record<string, Fields>> = {
  sgd: { nesterov: true },
  adafactor: { beta1: 0.9 },
  galore: { rank: 4, update_proj_gap: 3 },
};

test('every optimizer, with a rate for each layer: killed and resumed, the losses and the model are those of a run never killed', async (t) => {
  let losses = 0;
  for (const type of Object.keys(optimizers)) {
    const { folder, recipe } = workspace();
    using _ = folder;
    const at = (name: string) =>
      withFields(recipe, {
        method: { type: 'full' },
        'train.optimizer': { type, weight_decay: 0.1, ...optimizerSettings[type] },
        'train.layer_lr_decay': 0.8,
        'train.lr': 1e-3,
        'train.batch_size': 3,
        ...(isInBackward({ type }) && { 'train.micro_tokens': undefined }),
        'run.dir': join(folder.path, name),
      });
    const whole = await train(at('whole'));
    await stopAt(at('killed'), 4);
    const killed = await train(at('killed'));
    assert.equal(killed.result.resumedFrom, 4, type);
    assert.deepEqual(killed.result.losses, whole.result.losses, type);
    const [a, b] = [whole, killed].map(({ result }) => readFileSync(join(result.adapter, 'model.safetensors')));
    assert.ok(a!.equals(b!), type);
    assert.ok(whole.result.losses.at(-1)! < whole.result.losses[0]!, `${type} learns`);
    losses += killed.result.losses.length;
  }
  assert.equal(losses, 10 * Object.keys(optimizers).length);
  t.diagnostic(`${losses} losses`);
});

test('a run, its rows and its model at another place: resumed, with the losses of the run never moved', async () => {
  const { folder, data, recipe, dir } = workspace();
  using _ = folder;
  const whole = await train(withFields(recipe, { 'run.dir': join(folder.path, 'whole') }));
  await stopAt(recipe, 4);
  const [movedRows, movedModel, movedDir] = ['other.jsonl', 'model', 'moved'].map((name) => join(folder.path, name));
  renameSync(data, movedRows!);
  cpSync(golden('models', 'qwen2'), movedModel!, { recursive: true });
  renameSync(dir, movedDir!);
  const places = { model: movedModel, 'data.train': movedRows, 'run.dir': movedDir };
  const { result } = await train(withFields(recipe, places));
  assert.equal(result.resumedFrom, 4);
  assert.deepEqual(result.losses, whole.result.losses);
  assert.ok(weightsOf(result.adapter).equals(weightsOf(whole.result.adapter)));
});

/** Changes that make another run of it, and what is said of them. */
const decisive: Readonly<Record<string, readonly [Fields, RegExp]>> = {
  'learning rate': [{ 'train.lr': 1e-3 }, /train\.lr was 0\.003 and is 0\.001/],
  seed: [{ 'train.seed': 5 }, /train\.seed was 0 and is 5/],
  'batch size': [{ 'train.batch_size': 3 }, /train\.batch_size was 4 and is 3/],
  'gradient clipping': [{ 'train.max_grad_norm': 1 }, /train\.max_grad_norm was not given and is 1/],
  optimizer: [
    { 'train.optimizer': { type: 'lion' } },
    /train\.optimizer\.type was "adamw" and is "lion"; train\.optimizer\.beta2 was 0\.999 and is 0\.99/,
  ],
  'decay of the learning rate by layers': [
    { 'train.layer_lr_decay': 0.9 },
    /train\.layer_lr_decay was not given and is 0\.9/,
  ],
  rank: [{ 'method.r': 2 }, /method\.r was 4 and is 2/],
  'two fields': [
    { 'method.r': 2, 'train.beta2': 0.99 },
    /method\.r was 4 and is 2; train\.optimizer\.beta2 was 0\.999 and is 0\.99/,
  ],
  method: [{ method: { type: 'ia3' } }, /method\.type was "lora" and is "ia3"/],
  precision: [{ 'train.precision': 'bfloat16' }, /train\.precision was \w+ and is bfloat16/],
  quantize: [{ quantize: 'int8' }, /quantize was "none" and is "int8"/],
  'held-out share': [{ 'data.held_out': 6 }, /data\.held_out was 4 and is 6/],
  'row limit': [{ 'data.max_length': 6 }, /data\.max_length was 1024 and is 6/],
  model: [{ model: golden('models', 'qwen3') }, /model was \S+qwen2 and is \S+qwen3, which holds something else/],
};

test('changes that make another run of it: refused by name before anything is touched', async (t) => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  await stopAt(recipe, 4);
  const before = snapshot(dir);
  for (const [name, [fields, message]] of Object.entries(decisive)) {
    const said = await refusal(train(withFields(recipe, fields)));
    assert.match(said, message, name);
    assert.match(said, /another run, stopped after step 4: .*--fresh/, name);
    assert.deepEqual(snapshot(dir), before, name);
  }
  const { result } = await train(recipe);
  assert.equal(result.resumedFrom, 4);
  t.diagnostic(`${Object.keys(decisive).length} changes`);
});

test('other rows in the same file, another adapter at the same path, other weights in the same model: refused by name', async () => {
  const { folder, data, recipe, dir } = workspace();
  using _ = folder;
  const [start, model] = [join(folder.path, 'start'), join(folder.path, 'model')];
  cpSync(golden('models', 'qwen2'), model, { recursive: true });
  const { result: first } = await train(withFields(recipe, { model, 'run.dir': join(folder.path, 'first') }));
  cpSync(first.adapter, start, { recursive: true });
  const onStart = withFields(recipe, { model, adapter: start });
  await stopAt(onStart, 4);

  write(data, rowsOf(11));
  assert.match(await refusal(train(onStart)), /the rows of data\.train \(\S+rows\.jsonl\) changed/);
  write(data, rowsOf(7));
  const changed = weightsOf(start);
  changed[changed.length - 1]! ^= 1;
  writeFileSync(join(start, 'adapter_model.safetensors'), changed);
  assert.match(await refusal(train(onStart)), /adapter \(\S+start\) changed/);
  rmSync(start, { recursive: true });
  cpSync(first.adapter, start, { recursive: true });
  const weights = join(model, 'model.safetensors');
  const bytes = readFileSync(weights);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(weights, bytes);
  assert.match(await refusal(train(onStart)), /model \(\S+model\) changed/);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(weights, bytes);

  // The same rows in another spelling are the same rows, and so is a model whose config says where it comes from.
  const config = join(model, 'config.json');
  writeFileSync(
    config,
    JSON.stringify({ ...JSON.parse(readFileSync(config, 'utf8')), use_cache: false, _name_or_path: 'x' }),
  );
  writeFileSync(data, `${readFileSync(data, 'utf8').replaceAll(',', ', ')}\n`);
  const { result } = await train(onStart);
  assert.equal(result.resumedFrom, 4);
  assert.ok(existsSync(join(dir, 'adapter')));
});

test('a finished run shows its result again and touches nothing', async () => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  const { result } = await train(recipe);
  const before = snapshot(dir);
  const again = await train(recipe);
  assert.deepEqual(
    again.events.map(({ type }) => type),
    ['start', 'end'],
  );
  const told = again.events.at(-1);
  assert.ok(told?.type === 'end' && told.reason === 'finished-before');
  const { seconds: _s, tokensPerSecond: _t, peakRssMb: _p, resumedFrom: _r, ...same } = result;
  const { seconds, tokensPerSecond, peakRssMb, resumedFrom, ...shown } = again.result;
  assert.deepEqual(shown, same);
  assert.ok(seconds > 0 && tokensPerSecond > 0 && peakRssMb > 0);
  assert.equal(resumedFrom, 10);
  assert.deepEqual(snapshot(dir), before);
  assert.match(
    await refusal(train(withFields(recipe, { 'train.lr': 1 }))),
    /another run, finished after step 10: train\.lr was/,
  );
  assert.deepEqual(snapshot(dir), before);
});

test('--fresh starts over, and the earlier result stays until there is a new one; then it is in previous-1', async () => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  const first = await train(recipe);
  const old = weightsOf(first.result.adapter);
  const changed = withFields(recipe, { 'train.lr': 1e-2 });
  const kill = (event: TrainEvent) => {
    if (event.type === 'checkpoint' && event.step === 6) throw new Error('killed');
  };
  await assert.rejects(runTraining({ recipe: parseRecipe(changed), fresh: true }, kill), /killed/);
  assert.ok(weightsOf(join(dir, 'adapter')).equals(old), 'the run that was interrupted left the adapter');
  assert.deepEqual(readdirSync(join(dir, 'previous-1')).sort(), ['checkpoints', 'events.jsonl', 'run.json']);
  const { result } = await train(changed);
  assert.equal(result.resumedFrom, 6);
  assert.ok(!weightsOf(join(dir, 'adapter')).equals(old));
  assert.ok(weightsOf(join(dir, 'previous-1', 'adapter')).equals(old));
  // What was moved away is a run that can be used.
  const kept = await train(withFields(recipe, { 'run.dir': join(dir, 'previous-1') }));
  assert.deepEqual(kept.result.losses, first.result.losses);

  // A method that writes a model takes the place of the adapter.
  const second = weightsOf(join(dir, 'adapter'));
  await train(withFields(recipe, { method: { type: 'full' } }), { fresh: true });
  assert.ok(existsSync(join(dir, 'model')) && !existsSync(join(dir, 'adapter')));
  assert.ok(weightsOf(join(dir, 'previous-2', 'adapter')).equals(second));
});

test('a larger end and more epochs go on from the end, as if the run had been so long from the beginning', async () => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  const at = (name: string, fields: Fields = {}) =>
    withFields(recipe, { ...fields, 'run.dir': join(folder.path, name) });
  const long = await train(at('long', { 'train.steps': 15 }));
  const compare = (result: TrainResult, what: string) => {
    assert.deepEqual(result.losses, long.result.losses, what);
    assert.deepEqual([result.savedStep, result.evalLoss], [long.result.savedStep, long.result.evalLoss], what);
    assert.ok(weightsOf(result.adapter).equals(weightsOf(long.result.adapter)), what);
  };
  await train(recipe);
  const longer = await train(withFields(recipe, { 'train.steps': 15 }));
  assert.equal(longer.result.resumedFrom, 10);
  compare(longer.result, 'more steps');
  assert.match(await refusal(train(recipe)), /the recipe now ends after 10 steps, and the run has done 15/);

  // 20 rows to learn from are five steps an epoch.
  await train(at('epochs'));
  const more = at('epochs');
  await assert.rejects(
    runTraining({ recipe: parseRecipe(more), moreEpochs: 1 }, (event) => {
      if (event.type === 'checkpoint' && event.step === 12) throw new Error('killed');
    }),
    /killed/,
  );
  assert.match(await refusal(train(more, { moreEpochs: 1 })), /the run is not finished yet/);
  compare((await train(more)).result, 'one more epoch, killed and resumed');
  assert.equal((await train(more)).events.length, 2, 'it is finished');
  assert.match(await refusal(train(at('none'), { moreEpochs: 1 })), /no finished run/);

  await stopAt(at('shorter'), 4);
  const shorter = await train(at('shorter', { 'train.steps': 6 }));
  assert.deepEqual(shorter.result.losses, long.result.losses.slice(0, 6));
  assert.equal(existsSync(dir), true);
});

test('an end that the schedule does not allow is refused, with the reason', async () => {
  const { folder, recipe } = workspace();
  using _ = folder;
  const budget = { type: 'adalora', target_modules: 'all-linear', init_r: 4, target_r: 2, tinit: 1, tfinal: 2 };
  const cases: Readonly<Record<string, readonly [Fields, RegExp]>> = {
    linear: [{ 'train.schedule': 'linear' }, /learning rate of step 5 depends on it \(train\.schedule: linear\)/],
    ratio: [
      { 'train.warmup_steps': undefined, 'train.warmup_ratio': 0.3 },
      /learning rate of step 2 depends on it .*warmup_ratio/,
    ],
    adalora: [{ method: budget }, /the schedule of adalora depends on it/],
  };
  for (const [name, [fields, message]] of Object.entries(cases)) {
    const changed = withFields(recipe, { ...fields, 'run.dir': join(folder.path, name) });
    await stopAt(changed, 6);
    assert.match(await refusal(train(withFields(changed, { 'train.steps': 12 }))), message, name);
    assert.equal((await train(changed)).result.resumedFrom, 6, name);
  }
  // During the warmup the end decides nothing yet.
  const warm = withFields(recipe, { 'train.schedule': 'cosine', 'run.dir': join(folder.path, 'warm') });
  await stopAt(warm, 2);
  assert.equal((await train(withFields(warm, { 'train.steps': 12 }))).result.losses.length, 12);
});

test('the result, the log and its end are of what was saved: the best step, or the last', async () => {
  const { folder, recipe } = workspace();
  using _ = folder;
  // An adapter that has learned the held-out rows, and forgets them.
  const other = join(folder.path, 'other.jsonl');
  write(other, rowsOf(11));
  const at = (name: string, fields: Fields) => withFields(recipe, { ...fields, 'run.dir': join(folder.path, name) });
  const learned = await train(
    at('start', { data: { train: other, format: 'tokens' }, 'train.lr': 3e-2, 'train.steps': 30 }),
  );
  const forgetting = {
    adapter: learned.result.adapter,
    'data.held_out': undefined,
    'data.eval': other,
    'eval.every': 1,
  };
  for (const keep of ['best', 'last']) {
    const { result, events } = await train(at(keep, { ...forgetting, 'train.lr': 3e-2, 'eval.keep': keep }));
    const measured = events.filter((e) => e.type === 'eval');
    const best = measured.findLast((e) => e.best)!;
    assert.ok(best.step < 10, `the losses ${measured.map((e) => e.loss)} rise`);
    const saved = keep === 'best' ? best : measured.at(-1)!;
    assert.deepEqual([result.savedStep, result.evalLoss, result.evalMetrics], [saved.step, saved.loss, saved.metrics]);
    const [end] = readFileSync(join(folder.path, keep, 'events.jsonl'), 'utf8')
      .trim()
      .split('\n')
      .slice(-1);
    const { saved_step, eval_loss } = JSON.parse(end!);
    assert.deepEqual([saved_step, eval_loss], [saved.step, saved.loss]);
  }
});

test('held-out rows that changed, and a best result that was not kept, are not compared with: it is said', async () => {
  const { folder, recipe } = workspace();
  using _ = folder;
  const held = join(folder.path, 'held.jsonl');
  write(held, rowsOf(7).slice(0, 5));
  const own = { 'data.held_out': undefined, 'data.eval': held };
  const warned = (events: readonly TrainEvent[]) => events.flatMap((e) => (e.type === 'warning' ? [e.message] : []));
  const onHeld = withFields(recipe, own);
  await stopAt(onHeld, 6);
  write(held, rowsOf(7).slice(5, 9));
  const { result, events } = await train(onHeld);
  assert.deepEqual(warned(events), [
    'the held-out rows are not those that the run was measured on before: the best result is looked for after step 6',
  ]);
  assert.ok(result.resumedFrom === 6 && result.savedStep > 6);

  const last = withFields(recipe, { 'eval.keep': 'last', 'run.dir': join(folder.path, 'last') });
  await stopAt(last, 6);
  const resumed = await train(withFields(last, { 'eval.keep': 'best' }));
  assert.deepEqual(warned(resumed.events), [
    'eval.keep: the best parameters so far were not saved: the best result is looked for after step 6',
  ]);
});

test('a result that cannot be saved: the checkpoint is named, and the next run saves without training', async () => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  const whole = await train(withFields(recipe, { 'run.dir': join(folder.path, 'whole'), 'eval.keep': 'last' }));
  const last = withFields(recipe, { 'eval.keep': 'last' });
  const block = (event: TrainEvent) => {
    if (event.type === 'checkpoint' && event.step === 10) writeFileSync(join(dir, 'adapter'), 'in the way');
  };
  const error = await refusal(runTraining({ recipe: parseRecipe(last) }, block));
  assert.match(
    error,
    /adapter: .*not a directory; the trained parameters are in \S+step-0000010\. .*run the same command again/,
  );
  rmSync(join(dir, 'adapter'));
  const { result, events } = await train(last);
  assert.equal(events.filter((e) => e.type === 'step').length, 0);
  assert.ok(weightsOf(result.adapter).equals(weightsOf(whole.result.adapter)));
});

test('a run that ended before its first checkpoint, results of no run, a damaged log, deleted checkpoints', async () => {
  const { folder, recipe, dir } = workspace();
  using _ = folder;
  await assert.rejects(
    runTraining({ recipe: parseRecipe(recipe) }, (event) => {
      if (event.type === 'step') throw new Error('killed');
    }),
    /killed/,
  );
  const { events, result } = await train(withFields(recipe, { 'train.lr': 1e-3 }));
  assert.ok(
    events.some(
      (e) => e.type === 'warning' && /ended before its first checkpoint: it is in previous-1\//.test(e.message),
    ),
  );
  assert.equal(result.resumedFrom, 0);
  const done = withFields(recipe, { 'train.lr': 1e-3 });

  const log = join(dir, 'events.jsonl');
  const text = readFileSync(log, 'utf8');
  writeFileSync(log, text.replace('"type":"step"', '"type":"st'));
  assert.match(await refusal(train(done)), /events\.jsonl:\d+: the line is not an event/);
  writeFileSync(log, text);

  rmSync(join(dir, 'checkpoints'), { recursive: true });
  assert.equal((await train(done)).events.length, 2, 'still finished');
  assert.match(await refusal(train(withFields(done, { 'train.steps': 20 }))), /its checkpoints were deleted/);
  const record = readFileSync(join(dir, 'run.json'), 'utf8');
  writeFileSync(join(dir, 'run.json'), JSON.stringify({ identity: 'sha256', microTokens: 64 }));
  assert.match(await refusal(train(done)), /run\.json: .*another version of Graft may have written it/);
  writeFileSync(join(dir, 'run.json'), record);
  assert.match(
    await refusal(train(done, { fresh: true, moreEpochs: 1 })),
    /^fresh \(--fresh\) starts over, and moreEpochs \(--more-epochs\)/,
  );
  rmSync(join(dir, 'run.json'));
  const before = snapshot(dir);
  assert.match(await refusal(train(done)), /has adapter\/ but no run\.json/);
  assert.deepEqual(snapshot(dir), before);
  mkdirSync(join(dir, 'previous-2'));
  await train(done, { fresh: true });
  assert.ok(existsSync(join(dir, 'previous-3', 'adapter')));
});
