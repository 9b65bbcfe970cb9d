/** Runs whose weights are shared out among the processes (ZeRO stage 3), against the same run in one process. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import type { GraftError } from '../../src/base/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { Session } from '../../src/session/index.ts';
import type { RecipeInput } from '../../src/train/index.ts';
import { assertRefused, graft } from '../e2e/cli.ts';
import { mails } from '../e2e/workspace.ts';
import { randomLlama } from '../samples/llama.ts';
import {
  alone,
  assertLosses,
  assertWeights,
  close,
  interruptedAt,
  launched,
  longRun,
  lora,
  methods,
  processOf,
  recipe,
  refusedTogether,
  together,
} from '../samples/ranks-runs.ts';
import { tinyBert, tinyModel } from '../samples/tiny.ts';
import { golden, temporary } from '../support.ts';

before(() => startEngine());
after(close);

const zero = { stage: 3 };

let [weights, cases] = [0, 0];
async function compare(
  dir: string,
  what: string,
  ranks: number,
  [more, train = {}]: readonly [more: object, train?: object],
  tolerance = 1e-5,
): Promise<void> {
  const single = await alone(recipe(join(dir, `${what}-one`), more, train));
  const { result: several } = await together(ranks, recipe(join(dir, what), more, { ...train, zero }));
  assert.equal(single.losses.length, 20);
  assertLosses(several, single, what);
  weights += assertWeights(several.adapter, single.adapter, what, tolerance);
  cases++;
}

for (const [i, [name, more, train]] of methods.entries()) {
  test(`${name}: processes that share out the weights have the losses and the weights of one`, async () => {
    using dir = temporary();
    await compare(dir.path, name, i < 2 ? 4 : i % 2 === 0 ? 2 : 3, train ? [more, train] : [more]);
  });
}

test('weights in blocks, files of GGUF, other families, and methods that read weights when they are attached', async (t) => {
  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const wide = randomLlama(at('wide'), { width: 64, inner: 128, layers: 2, vocab: 320, dtype: 'bfloat16', tied: true });
  const twoTables = randomLlama(at('two'), { width: 64, inner: 128, layers: 2, vocab: 320 });
  const rows = Array.from({ length: 16 }, (_, i) => ({
    ids: Array.from({ length: 5 + i }, (_, t) => 3 + ((i * 31 + t * t * 7) % 90)),
  }));
  const data = { train: rows, format: 'tokens' };
  const classify = { task: 'sequence-classification', data: { train: mails(30), held_out: 5 } };
  const reads = (more: object) => ({ method: { ...lora, ...more } });
  const others: Record<string, readonly [more: object, train?: object]> = {
    nf4: [{ model: wide, quantize: 'nf4' }],
    'nf4, full in bfloat16 files': [{ model: wide, method: { type: 'full' } }, { lr: 1e-4 }],
    'two tables, full': [{ model: twoTables, method: { type: 'full' } }, { lr: 1e-4 }],
    'two tables, LoRA on both': [
      { model: twoTables, method: { ...lora, target_modules: ['embed_tokens', 'q_proj', 'lm_head'] } },
    ],
    'blocks of GGUF, heads interleaved': [{ model: golden('gguf', 'llama.gguf'), quantize: 'keep' }],
    'int8 of GGUF': [{ model: golden('gguf', 'llama.gguf'), quantize: 'int8' }],
    'GGUF unpacked': [{ model: golden('gguf', 'qwen2.gguf') }],
    'matrices that are stored transposed': [{ model: golden('families', 'gpt2'), data }, { batch_size: 4 }],
    'a head that is copied': [
      { ...classify, model: tinyBert(at('bert')) },
      { steps: 20, batch_size: 5 },
    ],
    DoRA: [reads({ use_dora: true })],
    PiSSA: [reads({ init_lora_weights: 'pissa' })],
    'trained copies': [reads({ modules_to_save: ['embed_tokens', 'input_layernorm'] })],
    galore: [{ method: { type: 'full' } }, { lr: 1e-4, optimizer: { type: 'galore', rank: 4 } }],
  };
  const before = cases;
  // AdamW makes more of the last bits of a small gradient, which differ by processor; stage 0 has the same differences.
  for (const [name, fields] of Object.entries(others)) {
    t.diagnostic(name);
    await compare(dir.path, name.replaceAll(/\W+/g, '-'), 2, fields, 3e-4);
  }
  assert.equal(cases - before, Object.keys(others).length);
  // Where sums are rounded, another last bit is another code: the same processes have the same bits.
  const rounded = async (stage: number) => {
    const method = [{ type: 'qat', weight: 'int4', group_size: 4 }, lora];
    return (await together(2, recipe(at(`rounded-${stage}`), { method }, { zero: { stage } }))).result;
  };
  assertLosses(await rounded(3), await rounded(0), 'rounded sums');
});

test('all of them were compared', () => {
  assert.equal(cases, methods.length + 13);
  assert.ok(weights > 100_000, `${weights} numbers`);
});

test('held-out rows are measured by all with the metrics of one, and the best of the weights is saved', async () => {
  using dir = temporary();
  const input = (name: string, stage: number): RecipeInput => ({
    model: tinyModel(join(dir.path, 'model')),
    task: 'sequence-classification',
    method: { type: 'full' },
    data: { train: mails(30), held_out: 7 },
    train: {
      lr: 1e-3,
      steps: 6,
      batch_size: 5,
      micro_tokens: 9,
      threads: 1,
      precision: 'float32',
      zero: { stage } as never,
    },
    eval: { every: 2, keep: 'best' },
    run: { dir: join(dir.path, name) },
  });
  const single = await alone(input('one', 0));
  const { result: several, events } = await together(3, input('three', 3));
  assertLosses(several, single, 'classification');
  assert.ok(Math.abs(several.evalLoss! / single.evalLoss! - 1) < 1e-5);
  assert.deepEqual(several.evalMetrics, single.evalMetrics);
  assert.equal(several.evalMetrics[0]!.count, 7);
  assert.ok(assertWeights(several.adapter, single.adapter, 'the best', 1e-4) > 10_000);
  assert.equal(events.filter(({ type }) => type === 'eval').length, 3);
});

test('several tasks with their own heads; pairs, which one process learns while the others take part in gathering', async () => {
  using dir = temporary();
  const write = (name: string, rows: readonly object[]) => {
    const file = join(dir.path, name);
    writeFileSync(file, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return file;
  };
  const kinds = mails(24);
  const lengths = kinds.map(({ text }) => ({ text, label: text.length > 20 ? 'long' : 'short' }));
  const pairs = kinds.slice(0, 12).map(({ text }, i) => ({ text, text_pair: kinds[i + 3]!.text }));
  const task = (file: string) => ({ task: 'sequence-classification', data: { train: file, held_out: 4 } });
  const cases: [name: string, fields: object][] = [
    ['tasks', { tasks: { kind: task(write('kind.jsonl', kinds)), length: task(write('length.jsonl', lengths)) } }],
    ['pairs', { task: 'embedding', data: { train: write('pairs.jsonl', pairs) } }],
  ];
  for (const [name, fields] of cases) {
    const input = (stage: number) =>
      ({
        model: tinyBert(join(dir.path, 'bert')),
        method: lora,
        train: { lr: 1e-3, steps: 6, batch_size: 6, threads: 1, precision: 'float32', zero: { stage } },
        run: { dir: join(dir.path, `${name}-${stage}`) },
        ...fields,
      }) as never;
    assertLosses((await together(2, input(3))).result, await alone(input(0)), name);
  }
  assert.equal(cases.length, 2);
});

test('a checkpoint has a file of each process, and goes on at another stage with another number of them', async () => {
  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const full = (name: string, stage: number) => ({
    ...longRun(at(name), { steps: 60, lr: 1e-4, zero: { stage } }),
    method: { type: 'full' } as const,
  });
  const whole = await alone(full('whole', 0));
  const stops: [ranks: number, stage: number, step: number][] = [
    [2, 3, 15],
    [1, 0, 25],
    [3, 3, 35],
    [2, 2, 45],
  ];
  for (const [ranks, stage, step] of stops) {
    const stop = new AbortController();
    const running = launched(
      { recipe: full('stopped', stage), ranks, signal: stop.signal },
      interruptedAt(step, () => stop.abort()),
    );
    await assert.rejects(running, (error: GraftError) => error.kind === 'interrupted');
    const [last] = readdirSync(join(at('stopped'), 'checkpoints'))
      .sort()
      .reverse();
    const files = readdirSync(join(at('stopped'), 'checkpoints', last!)).filter((name) =>
      name.startsWith('parameters'),
    );
    assert.equal(files.length, stage === 3 ? ranks + 1 : 1, files.join());
  }
  const { result: resumed } = await together(2, full('stopped', 3));
  assert.ok(resumed.resumedFrom >= 45);
  assertLosses(resumed, whole, 'resumed with 2, 1, 3, 2 and 2 processes');
  assertWeights(resumed.adapter, whole.adapter, 'resumed', 1e-4);

  // The last checkpoint of both runs, one of two processes and one of one, is the model that the run wrote.
  const model = golden('models', 'llama3');
  const last = (name: string) => {
    const [newest] = readdirSync(join(at(name), 'checkpoints'))
      .sort()
      .reverse();
    return join(at(name), 'checkpoints', newest!);
  };
  const weights = (folder: string) => readFileSync(join(folder, 'model.safetensors'), 'base64');
  await using session = new Session();
  for (const [name, run] of [
    ['stopped', resumed],
    ['whole', whole],
  ] as const) {
    const { bytes } = await session.mergeCheckpoint(model, { checkpoint: last(name), out: at(`merged-${name}`) });
    assert.equal(bytes, statSync(join(run.adapter, 'model.safetensors')).size);
    assert.equal(weights(at(`merged-${name}`)), weights(run.adapter));
    assert.deepEqual(readdirSync(at(`merged-${name}`)), readdirSync(run.adapter));
  }
  const refused: [checkpoint: string, base: string, why: RegExp][] = [
    [at('stopped'), model, /there is no checkpoint/],
    [last('stopped'), golden('models', 'qwen2'), /not one of full fine-tuning of this model: it has no model\.embed/],
  ];
  for (const [checkpoint, base, why] of refused)
    await assert.rejects(session.mergeCheckpoint(base, { checkpoint, out: at('none') }), why);
  const command = ['merge', '--model', model, '--out', 'none'];
  const checkpoint = ['--checkpoint', last('whole')];
  assertRefused(graft(dir.path, command), 2, /give one of --adapter and --checkpoint/i);
  assertRefused(
    graft(dir.path, [...command, ...checkpoint, '--dtype', 'bfloat16']),
    2,
    /--dtype: a checkpoint is written as it is/,
  );
  assert.equal(existsSync(at('none')), false);
  assert.match(graft(dir.path, [...command, ...checkpoint]).stdout, /^Wrote none, /);
});

test('the peak memory of a process falls by what the others hold', async (t) => {
  using dir = temporary();
  const sizes = { width: 384, inner: 1152, layers: 24, vocab: 400 };
  const model = randomLlama(join(dir.path, 'model'), { ...sizes, dtype: 'bfloat16', tied: true });
  const frozenMb = (4 * (24 * (4 * 384 ** 2 + 3 * 384 * 1152) + 400 * 384)) / 2 ** 20;
  const ids = Array.from({ length: 16 }, (_, i) => 3 + i);
  const data = { train: Array.from({ length: 8 }, () => ({ ids })), format: 'tokens' };
  const peaks: number[] = [];
  for (const stage of [0, 3]) {
    const input = recipe(join(dir.path, `${stage}`), { model, data }, { steps: 2, batch_size: 4, zero: { stage } });
    const { ranks } = await launched({ recipe: input, ranks: 4 });
    peaks.push(Math.max(...ranks!.map(({ peakRssMb }) => peakRssMb)));
  }
  const [whole, shared] = peaks as [number, number];
  t.diagnostic(`${whole} MB, and ${shared} MB at stage 3, of a base of ${frozenMb} MB`);
  // Of four quarters, one stays. Of 24 blocks two are gathered, one is copied by the network, which may hold another.
  assert.ok(whole - shared > 0.5 * frozenMb, `${whole} MB, and ${shared} MB at stage 3`);
});

test('a rank that is killed: the run ends with its name, and goes on with the losses of a run that was never killed', async () => {
  using dir = temporary();
  const input = (name: string) => ({
    ...longRun(join(dir.path, name), { steps: 60, lr: 1e-4, zero }),
    method: { type: 'full' } as const,
  });
  const { result: whole } = await together(2, input('whole'));
  for (const rank of [0, 1]) {
    const kill = interruptedAt(25, () => process.kill(processOf(rank), 'SIGKILL'));
    await assert.rejects(launched({ recipe: input(`killed-${rank}`), ranks: 2 }, kill), (error: GraftError) => {
      assert.match(error.message, new RegExp(`^rank ${rank} was ended by SIGKILL`));
      return error.kind === 'state';
    });
    const resumed = await launched({ recipe: input(`killed-${rank}`), ranks: 2 });
    assert.ok(resumed.resumedFrom >= 20 && resumed.resumedFrom < 60, `${resumed.resumedFrom}`);
    assert.deepEqual(resumed.losses, whole.losses);
  }
});

test('what cannot run so is refused, and a loss that is not finite ends the run of all', async () => {
  using dir = temporary();
  const run = (name: string, more: object, train: object) =>
    refusedTogether(2, recipe(join(dir.path, name), more, { zero, ...train }));
  const refused: [fields: object, train: object, why: RegExp][] = [
    [{ method: { type: 'full' } }, { lr: 1e30 }, /is not finite.*the learning rate of 1e\+30 is too high/s],
    [{ method: { ...lora, target_modules: ['q_prj'] } }, {}, /target_modules/],
    [{ method: { type: 'full' }, quantize: 'q4_0' }, {}, /quantize/],
    [
      {
        method: [
          { ...lora, init_lora_weights: 'pissa' },
          { ...lora, use_dora: true },
        ],
      },
      {},
      /reads a weight of the base that another has replaced/,
    ],
    [
      { method: [{ type: 'qat', weight: 'int8', group_size: 4, over: 'base', start_step: 3 }, lora] },
      {},
      /^train\.zero\.stage: qat takes its changes of the base back during the run/,
    ],
  ];
  for (const [i, [fields, train, why]] of refused.entries()) {
    const errors = await run(`${i}`, fields, train);
    assert.equal(errors.length, 2);
    for (const { message } of errors) assert.match(message, why);
  }
  assert.equal(refused.length, 5);
  // One process shares out nothing.
  const warnings: string[] = [];
  const dora = recipe(join(dir.path, 'dora'), { method: { ...lora, use_dora: true } }, { steps: 1, zero });
  for (const event of (await together(2, dora)).events) if (event.type === 'warning') warnings.push(event.message);
  assert.match(
    warnings.splice(0).join(),
    /^lora reads weights of every layer when it is attached: each process had the whole/,
  );
  await launched({ recipe: recipe(join(dir.path, 'one'), {}, { zero }), ranks: 1 }, (event) => {
    if (event.type === 'warning') warnings.push(event.message);
  });
  assert.deepEqual(warnings, ['train.zero.stage 3 divides nothing, because there is one process']);
});
