import assert from 'node:assert/strict';
import test from 'node:test';
import { temporary } from '../../test/samples/io.ts';
import { GraftError } from '../base/index.ts';
import { deepspeedNotes, withBatchOf } from './deepspeed.ts';
import { parseRecipe, readRecipe } from './recipe.ts';

const base = { model: 'org/name', method: { type: 'lora' }, data: { train: '/rows.jsonl' }, run: { dir: '/out' } };
const parsed = (deepspeed: object, train: object = {}) => parseRecipe({ ...base, deepspeed, train });

/** As people keep one beside transformers' Trainer: everything that its arguments know is "auto". */
const autoConfig = {
  bf16: { enabled: 'auto' },
  fp16: { enabled: false, loss_scale: 0, initial_scale_power: 16 },
  optimizer: { type: 'AdamW', params: { lr: 'auto', betas: 'auto', eps: 'auto', weight_decay: 'auto' } },
  scheduler: {
    type: 'WarmupDecayLR',
    params: { total_num_steps: 'auto', warmup_min_lr: 'auto', warmup_max_lr: 'auto', warmup_num_steps: 'auto' },
  },
  zero_optimization: {
    stage: 1,
    offload_optimizer: { device: 'none', pin_memory: true },
    reduce_bucket_size: 'auto',
    allgather_bucket_size: 2e8,
    overlap_comm: true,
  },
  gradient_accumulation_steps: 'auto',
  gradient_clipping: 'auto',
  train_batch_size: 'auto',
  train_micro_batch_size_per_gpu: 'auto',
  steps_per_print: 2000,
  wall_clock_breakdown: false,
};

/** As people write one by hand: all numbers given. */
const fullConfig = {
  train_batch_size: 32,
  gradient_accumulation_steps: 4,
  gradient_clipping: 0.5,
  bf16: { enabled: true },
  optimizer: {
    type: 'Adam',
    params: { lr: 3e-4, betas: [0.8, 0.95], eps: 1e-6, weight_decay: 0.01, adam_w_mode: true },
  },
  scheduler: {
    type: 'WarmupCosineLR',
    params: { total_num_steps: 500, warmup_num_steps: 50, warmup_type: 'linear', cos_min_ratio: 0 },
  },
  zero_optimization: { stage: 0 },
};

test('a configuration whose values are all given decides the fields of train', () => {
  using dir = temporary();
  dir.put('ds_config.json', JSON.stringify(fullConfig));
  const recipe = readRecipe(dir.put('recipe.yaml', JSON.stringify({ ...base, deepspeed: 'ds_config.json' })));
  const { train } = recipe;
  assert.deepEqual(
    { ...train },
    {
      ...parseRecipe(base).train,
      batch_size: 32,
      max_grad_norm: 0.5,
      precision: 'bfloat16',
      optimizer: { type: 'adamw', beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.01 },
      lr: 3e-4,
      schedule: 'cosine',
      steps: 500,
      warmup_steps: 50,
      zero: { stage: 0 },
    },
  );
  assert.deepEqual(deepspeedNotes(recipe), []);
  assert.deepEqual(deepspeedNotes(parseRecipe(base)), []);
});

test('settings that an optimizer lacks are named; a recipe that was read is read again, with its defaults, as it is', () => {
  const sgd = { optimizer: { type: 'SGD', params: { lr: 0.1, betas: [0.9, 0.99], momentum: 0.5 } } };
  const read = parsed(sgd);
  assert.deepEqual(read.train.optimizer, { type: 'sgd', momentum: 0.5, nesterov: false, weight_decay: 0 });
  assert.match(deepspeedNotes(read).join(), /not used, since Graft has nothing like it: optimizer\.params\.betas$/);
  const scheduled = {
    gradient_clipping: 0,
    bf16: { enabled: true },
    scheduler: { type: 'WarmupDecayLR', params: { warmup_num_steps: 2, total_num_steps: 9, warmup_type: 'linear' } },
  };
  const once = parsed(scheduled);
  assert.deepEqual([once.train.steps, once.train.warmup_steps, once.train.epochs], [9, 2, 1]);
  const plain = (value: object) => JSON.parse(JSON.stringify(value));
  const again = parseRecipe(plain(once));
  assert.deepEqual(plain(again.train), plain(once.train));
  // With the rows of a step that its processes come to, as launched processes read it.
  const micro = withBatchOf(parsed({ train_micro_batch_size_per_gpu: 4, gradient_accumulation_steps: 2 }), 2);
  assert.equal(withBatchOf(parseRecipe(plain(micro)), 2).train.batch_size, 16);
});

test('"auto" follows from the recipe; keys that do nothing are named once, and those that demand nothing are not', () => {
  const own = { lr: 1e-3, batch_size: 24, weight_decay: 0.1, warmup_ratio: 0.1, precision: 'mixed', max_grad_norm: 2 };
  const recipe = parsed(autoConfig, own);
  const expected = parseRecipe({ ...base, train: { ...own, schedule: 'linear', zero: { stage: 1 } } });
  assert.deepEqual(recipe.train, expected.train);
  assert.deepEqual(deepspeedNotes(recipe), [
    'deepspeed: the learning rate rises linearly, and not as scheduler.params.warmup_type log says',
    'deepspeed: not used, since Graft has nothing like it: zero_optimization.offload_optimizer.pin_memory, zero_optimization.allgather_bucket_size, zero_optimization.overlap_comm, steps_per_print, wall_clock_breakdown',
  ]);
});

test('rows of a step: the configuration’s product with the number of processes, or an error with its factors', () => {
  const cases: [config: object, own: object, ranks: number, rows: number | RegExp][] = [
    [{ train_micro_batch_size_per_gpu: 4, gradient_accumulation_steps: 2 }, {}, 4, 32],
    [{ train_micro_batch_size_per_gpu: 4 }, {}, 2, 8],
    [{ train_batch_size: 48 }, {}, 5, 48],
    [{ train_batch_size: 48, train_micro_batch_size_per_gpu: 4 }, {}, 3, 48],
    [{ train_micro_batch_size_per_gpu: 4, gradient_accumulation_steps: 2 }, { batch_size: 16 }, 2, 16],
    [{ gradient_accumulation_steps: 4 }, {}, 2, 8],
    [
      { train_batch_size: 48, train_micro_batch_size_per_gpu: 5 },
      {},
      3,
      /48, which is no multiple of train_micro.* 5 × 3 processes = 15/,
    ],
    [
      { train_batch_size: 32, train_micro_batch_size_per_gpu: 4, gradient_accumulation_steps: 2 },
      {},
      2,
      /are 32, which is not train_micro_batch_size_per_gpu 4 × gradient_accumulation_steps 2 × 2 processes = 16/,
    ],
    [
      { train_micro_batch_size_per_gpu: 4, gradient_accumulation_steps: 1 },
      { batch_size: 16 },
      1,
      /4 × .* 1 × 1 process = 4/,
    ],
    [{ gradient_accumulation_steps: 3 }, {}, 2, /are 8, which is no multiple of gradient_accumulation_steps 3 × 2/],
  ];
  for (const [config, own, ranks, rows] of cases) {
    const recipe = parsed(config, own);
    if (typeof rows === 'number')
      assert.equal(withBatchOf(recipe, ranks).train.batch_size, rows, JSON.stringify(config));
    else assert.throws(() => withBatchOf(recipe, ranks), rows, JSON.stringify(config));
  }
  assert.equal(cases.length, 10);
});

test('what contradicts the recipe, or itself, is an error with both places', () => {
  const adam = (params: object) => ({ optimizer: { type: 'AdamW', params } });
  const warmup = (params: object, type = 'WarmupLR') => ({ scheduler: { type, params } });
  const cases: [config: object, own: object, message: RegExp][] = [
    [
      adam({ lr: 1e-3 }),
      { lr: 2e-3 },
      /^recipe: train\.lr is 0\.002, and optimizer\.params\.lr in recipe, deepspeed is 0\.001/,
    ],
    [adam({}), { optimizer: { type: 'lion' } }, /train\.optimizer\.type is "lion", and optimizer\.type .* is "adamw"/],
    [adam({ weight_decay: 0.1 }), { weight_decay: 0 }, /train\.optimizer\.weight_decay is 0, and .* is 0\.1/],
    [
      adam({ betas: [0.9, 0.95] }),
      { optimizer: { type: 'adamw', beta2: 0.9 } },
      /train\.optimizer\.beta2 is 0\.9, and optimizer\.params\.betas/,
    ],
    [{ train_batch_size: 8 }, { batch_size: 16 }, /train\.batch_size is 16, and train_batch_size .* is 8/],
    [{ gradient_clipping: 0 }, { max_grad_norm: 1 }, /train\.max_grad_norm is 1, and gradient_clipping .* is 0/],
    [{ bf16: { enabled: true } }, { precision: 'float32' }, /train\.precision is "float32", and bf16\.enabled/],
    [
      { zero_optimization: { stage: 0 } },
      { zero: { stage: 1 } },
      /train\.zero\.stage is 1, and zero_optimization\.stage .* is 0/,
    ],
    [warmup({}), { schedule: 'cosine' }, /train\.schedule is "cosine", and scheduler\.type/],
    [
      warmup({ warmup_num_steps: 5 }),
      { warmup_ratio: 0.1 },
      /train\.warmup_ratio is 0\.1, and scheduler\.params\.warmup_num_steps/,
    ],
    [
      warmup({ total_num_steps: 50 }, 'WarmupDecayLR'),
      { epochs: 2 },
      /train\.epochs is 2, and scheduler\.params\.total_num_steps/,
    ],
    [
      { ...adam({ lr: 1e-3 }), ...warmup({ warmup_max_lr: 2e-3 }) },
      {},
      /optimizer\.params\.lr is 0\.001, and scheduler\.params\.warmup_max_lr/,
    ],
  ];
  for (const [config, own, message] of cases)
    assert.throws(
      () => parsed(config, own),
      (error) => error instanceof GraftError && error.kind === 'usage' && message.test(error.message),
      String(message),
    );
  assert.equal(cases.length, 12);
  // The same value in both is none, and neither is bfloat16 by the recipe's other name for it.
  assert.equal(parsed(adam({ lr: 1e-3, eps: 1e-7 }), { lr: 1e-3, eps: 1e-7 }).train.optimizer.eps, 1e-7);
  assert.equal(parsed({ bf16: { enabled: true } }, { precision: 'mixed' }).train.precision, 'mixed');
});

test('what cannot be honoured is refused with its place', () => {
  const cases: [config: object, message: RegExp][] = [
    [{ zero_optimization: { stage: 2.5 } }, /zero_optimization\.stage must be 0, 1, 2 or 3, but is 2.5/],
    [{ zero_optimization: { stage: -1 } }, /zero_optimization\.stage must be a number of 0 or more.*but is -1/],
    [{ zero_optimization: { stage: 4 } }, /zero_optimization\.stage must be 0, 1, 2 or 3, but is 4/],
    [
      { zero_optimization: { offload_optimizer: { device: 'tape' } } },
      /offload_optimizer\.device must be "none", "cpu" or "nvme", but is "tape"/,
    ],
    [
      { zero_optimization: { offload_param: { device: 'nvme', nvme_path: 'disk' } } },
      /offload_param\.nvme_path must be an absolute path, but is "disk"/,
    ],
    [
      {
        zero_optimization: {
          offload_param: { device: 'nvme', nvme_path: '/a' },
          offload_optimizer: { device: 'nvme', nvme_path: '/b' },
        },
      },
      /offload_optimizer\.nvme_path is \/b, and zero_optimization\.offload_param\.nvme_path is \/a/,
    ],
    [{ fp16: { enabled: true } }, /fp16\.enabled is true, and Graft does not compute in float16/],
    [{ optimizer: { type: 'Lamb' } }, /optimizer\.type "Lamb" is not available/],
    [{ optimizer: { params: { lr: 1 } } }, /optimizer\.type is missing/],
    [
      { optimizer: { type: 'Adam', params: { adam_w_mode: false } } },
      /optimizer\.params\.adam_w_mode false is not available/,
    ],
    [
      { optimizer: { type: 'AdamW', params: { betas: 0.9 } } },
      /optimizer\.params\.betas must be a list of two numbers/,
    ],
    [{ scheduler: { type: 'OneCycle' } }, /scheduler\.type "OneCycle" is not available/],
    [{ train_batch_size: '32' }, /train_batch_size must be a number of 1 or more, or "auto", but is "32"/],
    [{ zero_optimization: true }, /zero_optimization must be an object, but is true/],
    [{ optimizer: { type: 'AdamW', params: { lr: -1 } } }, /optimizer\.params\.lr must be a number of 0 or more/],
  ];
  for (const [config, message] of cases)
    assert.throws(
      () => parsed(config),
      (error) =>
        error instanceof GraftError && error.message.startsWith('recipe, deepspeed: ') && message.test(error.message),
      String(message),
    );
  assert.equal(cases.length, 15);
  assert.throws(() => parseRecipe({ ...base, deepspeed: '/absent/ds.json' }), /\/absent\/ds\.json/);
});

test('what DeepSpeed offloads to a disk is on the disk; its processor memory is where everything is', () => {
  const offload_param = { device: 'nvme', nvme_path: '/local_nvme', buffer_count: 5 };
  const recipe = parsed({ zero_optimization: { stage: 3, offload_param, offload_optimizer: { device: 'cpu' } } });
  assert.deepEqual(recipe.train.offload, { weights: true, optimizer: false, dir: '/local_nvme' });
  assert.deepEqual(deepspeedNotes(recipe), [
    'deepspeed: zero_optimization.offload_optimizer: what a run has is in the processor’s memory, or on its GPU where it has one',
    'deepspeed: not used, since Graft has nothing like it: zero_optimization.offload_param.buffer_count',
  ]);
  // Read again, with the defaults filled in, it is the same.
  const plain = (value: object) => JSON.parse(JSON.stringify(value));
  assert.deepEqual(parseRecipe(plain(recipe)).train.offload, recipe.train.offload);
  const both = parsed({ zero_optimization: { offload_optimizer: { device: 'nvme' } } }, { offload: { weights: true } });
  assert.deepEqual(both.train.offload, { weights: true, optimizer: true });
  const contrary = { offload: { optimizer: false } };
  assert.throws(
    () => parsed({ zero_optimization: { offload_optimizer: { device: 'nvme' } } }, contrary),
    /train\.offload\.optimizer is false, and zero_optimization\.offload_optimizer\.device in .* is true/,
  );
});
