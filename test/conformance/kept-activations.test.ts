/**
 * Kept activations: runs in which the lowest blocks never change have the same losses, bit for bit, whether their outputs are kept,
 * computed again, lost, damaged or of other rows, and whether the run is stopped, killed, or has no room on disk.
 */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { currentEngine, startEngine } from '../../src/engine/index.ts';
import { RecordFile } from '../../src/io/index.ts';
import { parseRecipe, runTraining, type TrainEvent, type TrainResult } from '../../src/train/index.ts';
import { tinyBert, tinyVit } from '../samples/tiny.ts';
import { golden, temporary } from '../support.ts';

const threads = 2;
before(async () => {
  await startEngine();
  currentEngine().native.threads(threads);
});

type Fields = Record<string, unknown>;
const fileName = 'kept-activations.bin';

/** Rows of 1 to 25 ids: a matrix product computes them differently where they are few. */
const tokenRows = Array.from({ length: 22 }, (_, r) => ({
  ids: Array.from({ length: 2 + ((r * 11) % 24) }, (_, i) => 3 + ((r * 13 + i * 7) % 60)),
}));
const words = ['the', 'mills', 'abbey', 'river', 'town', 'Ada', 'prize', 'cash'];
const text = (i: number) => Array.from({ length: 1 + (i % 6) }, (_, w) => words[(i * 5 + w * 3) % 8]).join(' ');
const textRows = Array.from({ length: 22 }, (_, i) => ({ text: text(i), label: i % 3 === 0 ? 'a' : 'b' }));
const pairRows = Array.from({ length: 22 }, (_, i) => ({ text: text(i), text_pair: text(i + 1) }));
const imageRows = Array.from({ length: 12 }, (_, i) => ({
  image: Array.from({ length: 16 }, (_, y) => Array.from({ length: 16 }, (_, x) => (y * (i + 3) * 16 + x * i) % 256)),
  label: `LABEL_${i % 4}`,
}));

const samples = temporary();
process.on('exit', () => samples[Symbol.dispose]());
const bert = tinyBert(join(samples.path, 'bert'));
const vit = tinyVit(join(samples.path, 'vit'));

const lora = (layer: number, more: Fields = {}) => ({
  type: 'lora',
  r: 4,
  target_modules: ['q_proj', 'v_proj', 'down_proj', 'query', 'value', 'c_attn', 'c_proj', 'query_key_value', 'dense'],
  layers_to_transform: [layer],
  ...more,
});
const onTokens = (...path: string[]): Fields => ({
  model: golden(...path),
  method: lora(1),
  data: { train: tokenRows, format: 'tokens', held_out: 4 },
});
const onTexts = (model: string): Fields => ({
  model,
  method: lora(1),
  task: 'sequence-classification',
  data: { train: textRows, held_out: 4 },
});
const llama: Fields = { ...onTokens('models', 'llama3'), method: lora(2) };

/** Runs of which some blocks never change, with their number. */
const kept: Readonly<Record<string, [blocks: number, recipe: Fields]>> = {
  'llama, lora with dropout in the last layer': [2, { ...llama, method: lora(2, { lora_dropout: 0.2 }) }],
  'llama, full layers in the last block': [
    2,
    { ...llama, method: lora(2, { modules_to_save: ['layers.2.mlp.gate_proj', 'layers.2.post_attention_layernorm'] }) },
  ],
  'llama, the last layer in full': [
    2,
    { ...llama, method: [{ type: 'full' }, { type: 'layerwise', policy: 'last', layers: 1 }] },
  ],
  'llama, two layers of lora in turn': [
    1,
    {
      ...llama,
      method: [
        { type: 'lora', r: 4, target_modules: ['q_proj', 'down_proj'] },
        { type: 'layerwise', policy: 'badam', every: 2, blocks: [1, 2] },
      ],
    },
  ],
  'llama, all layers of which two are frozen from the beginning': [
    2,
    {
      ...llama,
      method: [
        { type: 'full' },
        { type: 'layerwise', policy: 'schedule', rules: [{ freeze: ['embeddings', '0-1'], step: 0 }] },
      ],
    },
  ],
  'llama, lora under bottlenecks of the last block': [
    2,
    { ...llama, method: [lora(2), { type: 'bottleneck', leave_out: [0, 1], dropout: 0.1, reduction_factor: 4 }] },
  ],
  'llama, lora over a frozen prompt': [
    2,
    {
      ...llama,
      method: [
        { type: 'prompt', num_virtual_tokens: 3, prompt_tuning_init: 'RANDOM', train: false },
        lora(2, { lora_dropout: 0.1 }),
      ],
    },
  ],
  'llama with gradient checkpointing': [2, { ...llama, train: { gradient_checkpointing: true } }],
  'llama, adalora': [
    2,
    {
      ...llama,
      method: {
        type: 'adalora',
        init_r: 4,
        target_r: 2,
        target_modules: ['q_proj', 'v_proj'],
        layers_to_transform: [2],
        tinit: 2,
        tfinal: 2,
      },
    },
  ],
  'llama, the output projection only': [3, { ...llama, method: { type: 'lora', r: 4, target_modules: ['lm_head'] } }],
  'llama on a quantised base': [
    1,
    { ...llama, model: golden('gguf', 'llama.gguf'), quantize: 'keep', method: lora(1) },
  ],
  gpt2: [1, onTokens('families', 'gpt2')],
  'gpt-neox': [1, onTokens('families', 'gpt-neox')],
  'qwen3, in bfloat16': [1, { ...onTokens('models', 'qwen3'), train: { precision: 'bfloat16' } }],
  'bert, classes of texts': [1, onTexts(bert)],
  'bert, pairs of sentences': [
    1,
    { model: bert, method: lora(1), task: 'embedding', data: { train: pairRows, held_out: 4 } },
  ],
  vit: [1, { model: vit, method: lora(1), data: { train: imageRows, held_out: 4, format: 'image' } }],
  'two tasks': [
    1,
    {
      model: bert,
      method: lora(1),
      tasks: {
        one: { task: 'sequence-classification', data: { train: textRows, held_out: 4 } },
        two: {
          task: 'sequence-classification',
          data: { train: textRows.map(({ text: t }, i) => ({ text: t, label: i % 2 ? 'x' : 'y' })) },
        },
      },
    },
  ],
};

function recipeOf(fields: Fields, dir: string, keep?: unknown): ReturnType<typeof parseRecipe> {
  const { train, run, ...rest } = fields;
  return parseRecipe({
    ...rest,
    train: {
      lr: 5e-3,
      epochs: 3,
      batch_size: 4,
      micro_tokens: 40,
      threads,
      ...(keep !== undefined && { keep_activations: keep }),
      ...(train as Fields),
    },
    run: { dir, checkpoint_every: 2, ...(run as Fields) },
  });
}

interface Ended {
  readonly result: TrainResult;
  readonly events: TrainEvent[];
  readonly notes: string[];
  readonly start: Extract<TrainEvent, { type: 'start' }>;
}

async function run(
  recipe: ReturnType<typeof parseRecipe>,
  onEvent: (event: TrainEvent) => void = () => {},
): Promise<Ended> {
  const events: TrainEvent[] = [];
  const result = await runTraining({ recipe }, (event) => {
    events.push(event);
    onEvent(event);
  });
  const notes = events.flatMap((event) => (event.type === 'warning' ? [event.message] : []));
  return { result, events, notes, start: events.find((event) => event.type === 'start')! };
}

const evalsOf = ({ events }: Ended) =>
  events.flatMap((event) => (event.type === 'eval' ? [[event.step, event.task, event.loss, event.metrics]] : []));
/** The saved weights, by file. */
const weightsOf = ({ result: { adapter } }: Ended) =>
  Object.fromEntries(
    (readdirSync(adapter, { recursive: true }) as string[])
      .filter((name) => name.endsWith('.safetensors'))
      .sort()
      .map((name) => [
        name,
        createHash('sha256')
          .update(readFileSync(join(adapter, name)))
          .digest('hex'),
      ]),
  );

/** Stops a run as a kill does, after a checkpoint: nothing but the next process sees it. */
async function stopAfter(recipe: ReturnType<typeof parseRecipe>, step: number): Promise<void> {
  const stop = (event: TrainEvent) => {
    if (event.type === 'checkpoint' && event.step === step) throw new Error('killed');
  };
  await assert.rejects(run(recipe, stop), /killed/);
}

let compared = 0;
function assertSame(got: Ended, want: Ended): void {
  assert.ok(want.result.losses.length >= 6);
  assert.deepEqual(got.result.losses, want.result.losses);
  const weights = weightsOf(got);
  assert.ok(Object.keys(weights).length > 0);
  assert.deepEqual(weights, weightsOf(want));
  compared += got.result.losses.length;
}

for (const [name, [blocks, fields]] of Object.entries(kept)) {
  test(`${name}: losses, measurements and weights are those of a run without`, async () => {
    using dir = temporary();
    const [with_, without, one] = ['with', 'without', 'one'].map((to) => join(dir.path, to, 'run')) as [
      string,
      string,
      string,
    ];
    let size = 0;
    const first = await run(recipeOf(fields, with_), (event) => {
      if (event.type === 'checkpoint') size = Math.max(size, statSync(join(with_, fileName)).size);
    });
    assert.equal(first.start.fixedBlocks, blocks);
    assert.equal(size, first.start.keptBytes, 'every row was kept');
    assert.ok(!existsSync(join(with_, fileName)), 'nothing is left of it');
    // State of an optimizer appears with the first step of each task.
    const handles = first.events.flatMap((event) => (event.type === 'step' && event.step > 4 ? [event.handles] : []));
    assert.equal(new Set(handles).size, 1, `live handles after every step: ${handles}`);

    const second = await run(recipeOf(fields, without, false), (event) => {
      if (event.type === 'checkpoint') assert.ok(!existsSync(join(without, fileName)));
    });
    assert.equal(second.start.fixedBlocks, blocks);
    assert.equal(second.start.keptBytes, undefined);
    assertSame(first, second);
    assert.deepEqual(evalsOf(first), evalsOf(second));
    assert.ok(evalsOf(first).length >= 3);

    // A run of one epoch computes rows in micro-batches: the same numbers but for the last bits.
    const packed = await run(recipeOf({ ...fields, train: { ...(fields.train as Fields), epochs: 1 } }, one));
    assert.equal(packed.start.fixedBlocks, undefined);
    const tolerance = (fields.train as Fields)?.precision === 'bfloat16' ? 1e-2 : 2e-5;
    packed.result.losses.forEach((loss, i) => {
      const error = Math.abs(first.result.losses[i]! / loss - 1);
      if (i === 0 || (fields.method as Fields).type !== 'adalora')
        assert.ok(error <= tolerance, `step ${i + 1}: ${first.result.losses[i]}, and ${loss} in micro-batches`);
    });
  });
}

/** What happens to the kept activations between two processes, and what the second says of it. */
const between: Readonly<Record<string, [act: (file: string) => void, note: RegExp | undefined]>> = {
  'they are there': [() => {}, undefined],
  'they are gone': [(file) => rmSync(file), /^the kept activations are gone: they are computed again$/],
  'they end in the middle of a row': [(file) => truncateSync(file, statSync(file).size - 100), undefined],
  'a byte of them changed': [
    (file) => {
      const bytes = readFileSync(file);
      bytes[bytes.length >> 1]! ^= 1;
      writeFileSync(file, bytes);
    },
    undefined,
  ],
  'they are of other rows': [
    (file) => {
      const bytes = readFileSync(file);
      bytes.write('0123456789abcdef', 8);
      writeFileSync(file, bytes);
    },
    /^the kept activations are of other rows, weights or another engine: they are computed again$/,
  ],
  'they are whole, and not what the blocks compute': [
    (file) => {
      const bytes = readFileSync(file);
      rmSync(file);
      using other = new RecordFile(file, bytes.toString('latin1', 8, 24));
      for (let at = 24; at < bytes.length; at += 16 + bytes.readUInt32LE(at + 4))
        other.append(bytes.readUInt32LE(at), new Uint8Array(bytes.readUInt32LE(at + 4)));
    },
    /^activations are no longer kept, and are computed again in each epoch: what is kept is not what the frozen blocks compute now$/,
  ],
};

test('a run that is stopped goes on as if never stopped, whatever became of the kept activations', async () => {
  using dir = temporary();
  const whole = join(dir.path, 'whole');
  const fields = { ...llama, method: lora(2, { lora_dropout: 0.2 }) };
  const want = await run(recipeOf(fields, whole));
  let checked = 0;
  for (const [what, [act, note]] of Object.entries(between)) {
    for (const step of [4, 8]) {
      const to = join(dir.path, `${what} ${step}`);
      await stopAfter(recipeOf(fields, to), step);
      act(join(to, fileName));
      const got = await run(recipeOf(fields, to));
      assert.equal(got.result.resumedFrom, step, what);
      const notes = got.notes.filter((message) => message.includes('kept'));
      if (note) assert.ok(notes.length === 1 && note.test(notes[0]!), `${what}: ${notes}`);
      else assert.deepEqual(notes, [], what);
      assertSame(got, want);
      checked++;
    }
  }
  assert.equal(checked, 2 * Object.keys(between).length);
});

test('a run goes on with keep_activations changed, and one that began without keeps to it', async () => {
  using dir = temporary();
  const [whole, to, one] = ['whole', 'to', 'one'].map((name) => join(dir.path, name)) as [string, string, string];
  const want = await run(recipeOf(llama, whole, false));
  await stopAfter(recipeOf(llama, to), 6);
  assert.ok(existsSync(join(to, fileName)));
  await stopAfter(recipeOf(llama, to, false), 10);
  assert.ok(!existsSync(join(to, fileName)));
  assertSame(await run(recipeOf(llama, to, true)), want);

  // Rows to measure on may change: their activations are others.
  const data = { train: tokenRows, format: 'tokens', eval: tokenRows.slice(0, 3) };
  await stopAfter(recipeOf({ ...llama, data }, join(dir.path, 'eval')), 6);
  const evaluated = recipeOf({ ...llama, data: { ...data, eval: tokenRows.slice(3, 7) } }, join(dir.path, 'eval'));
  const { notes, result } = await run(evaluated);
  assert.ok(
    notes.some((note) => note.startsWith('the kept activations are of other rows')),
    String(notes),
  );
  assert.deepEqual(
    result.losses,
    (await run(recipeOf({ ...llama, data }, join(dir.path, 'whole eval')))).result.losses,
  );

  await run(recipeOf({ ...llama, train: { epochs: 1 } }, one));
  assert.ok(!existsSync(join(one, fileName)));
  const more = await run(recipeOf({ ...llama, train: { epochs: 2 } }, one));
  assert.equal(more.start.fixedBlocks, undefined);
  assert.ok(more.notes.includes('activations are not kept, because of the run began without'), String(more.notes));
});

test('where they cannot be kept, a run says why in a line, or refuses to start', async () => {
  using dir = temporary();
  const saved = join(dir.path, 'saved');
  const every = { type: 'lora', r: 2, target_modules: ['q_proj'] };
  await run(recipeOf({ ...llama, method: { ...every, lora_dropout: 0.3 }, train: { epochs: 1 } }, saved));
  const frozen = { type: 'lora', adapter: join(saved, 'adapter'), train: false };
  const cases: Readonly<Record<string, [method: object, note: RegExp | undefined, refusal: RegExp]>> = {
    'a trained layer below': [lora(0), undefined, /because of training: it reaches down to block 1 of 3/],
    'a prefix': [{ type: 'prefix', num_virtual_tokens: 2 }, undefined, /training: it reaches down to block 1 of 3/],
    full: [{ type: 'full' }, undefined, /training: it reaches down to block 1 of 3/],
    'layers at random': [
      [{ type: 'full' }, { type: 'layerwise', policy: 'lisa', layers: 1, every: 3 }],
      undefined,
      /training: it reaches down to block 1 of 3/,
    ],
    'dropout in a frozen adapter below': [
      [frozen, lora(2)],
      /^activations are not kept, because of dropout: adapters in frozen blocks draw random numbers$/,
      /because of dropout/,
    ],
    'rounding that begins later': [
      [lora(2), { type: 'qat', weight: 'int4', group_size: 'channel', start_step: 3 }],
      /^activations are not kept, because of schedule: qat changes with the step$/,
      /because of schedule: qat/,
    ],
  };
  let checked = 0;
  for (const [name, [method, note, refusal]] of Object.entries(cases)) {
    const fields = { ...llama, method };
    const got = await run(recipeOf(fields, join(dir.path, name)));
    assert.equal(got.start.fixedBlocks, undefined, name);
    const notes = got.notes.filter((message) => message.includes('not kept'));
    assert.ok(note ? notes.length === 1 && note.test(notes[0]!) : notes.length === 0, `${name}: ${notes}`);
    await assert.rejects(run(recipeOf(fields, join(dir.path, `${name} refused`), true)), refusal, name);
    assert.ok(!existsSync(join(dir.path, `${name} refused`, 'run.json')));
    checked++;
  }
  assert.equal(checked, 6);
  await assert.rejects(
    run(recipeOf({ ...llama, train: { epochs: 1 } }, join(dir.path, 'one'), true)),
    /activations cannot be kept, because of one epoch/,
  );
  // Without its dropout the frozen adapter computes the same in every step.
  const quiet = join(dir.path, 'quiet');
  await run(recipeOf({ ...llama, method: every, train: { epochs: 1 } }, quiet));
  const method = [{ ...frozen, adapter: join(quiet, 'adapter') }, lora(2)];
  const [a, b] = [join(dir.path, 'a'), join(dir.path, 'b')];
  const got = await run(recipeOf({ ...llama, method }, a));
  assert.equal(got.start.fixedBlocks, 2);
  assertSame(got, await run(recipeOf({ ...llama, method }, b, false)));
});

test('killed again and again, a run has the losses of one that nothing happened to', async () => {
  using dir = temporary();
  const rows = join(dir.path, 'rows.jsonl');
  writeFileSync(rows, tokenRows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  const recipe = (name: string) => ({
    ...llama,
    data: { train: rows, format: 'tokens' },
    train: { lr: 5e-3, epochs: 8, batch_size: 2, micro_tokens: 40, threads },
    run: { dir: join(dir.path, name), checkpoint_every: 5 },
  });
  const want = await run(parseRecipe(recipe('whole')));
  const file = join(dir.path, 'recipe.json');
  writeFileSync(file, JSON.stringify(recipe('killed')));
  let kills = 0;
  for (const step of [4, 13]) {
    const command = [join(packageRoot, 'bin', 'graft.js'), 'train', file, '--json'];
    const child = spawn(process.execPath, command, { stdio: ['ignore', 'pipe', 'ignore'] });
    let printed = '';
    for await (const chunk of child.stdout) {
      printed += chunk;
      if (printed.includes(`"step":${step},`)) child.kill('SIGKILL');
    }
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    if (child.signalCode === 'SIGKILL') kills++;
  }
  assert.equal(kills, 2);
  assert.ok(existsSync(join(dir.path, 'killed', fileName)));
  const got = await run(parseRecipe(recipe('killed')));
  assert.ok(got.result.resumedFrom > 0);
  assertSame(got, want);
});

test('a disk without room, and one that fills up: the losses stay, and the run has the room', (t) => {
  const many = [0, 1, 2, 3].flatMap(() => tokenRows);
  const module = (path: string) => JSON.stringify(join(packageRoot, 'src', path, 'index.ts'));
  const script = `
    import { existsSync, statfsSync, writeFileSync } from 'node:fs';
    const { startEngine, currentEngine } = await import(${module('engine')});
    const { parseRecipe, runTraining } = await import(${module('train')});
    await startEngine();
    currentEngine().native.threads(1);
    const fields = ${JSON.stringify({ ...llama, data: { train: many, format: 'tokens', held_out: 4 } })};
    const free = () => { const { bavail, bsize } = statfsSync('/mnt'); return bavail * bsize; };
    const fill = (left) => { writeFileSync('/mnt/filler', ''); writeFileSync('/mnt/filler', Buffer.alloc(free() - left)); };
    async function run(dir, keep_activations, onEvent = () => {}) {
      const train = { lr: 5e-3, epochs: 3, batch_size: 16, micro_tokens: 40, threads: 1, keep_activations };
      const notes = [];
      try {
        const recipe = parseRecipe({ ...fields, train, run: { dir, checkpoint_every: 2, keep_checkpoints: 1 } });
        const { losses } = await runTraining({ recipe }, (event) => {
          if (event.type === 'warning') notes.push(event.message);
          onEvent(event);
        });
        return { losses, notes };
      } catch (error) {
        return { error: error.message, notes };
      }
    }
    const want = await run('/mnt/without', false);
    fill(1_100_000);
    const little = await run('/mnt/little', 'auto');
    const refused = await run('/mnt/refused', true);
    const left = existsSync('/mnt/refused');
    writeFileSync('/mnt/filler', '');
    const filled = await run('/mnt/filled', 'auto', (event) => {
      if (event.type === 'step' && event.step === 3) fill(500_000);
    });
    console.log(JSON.stringify({ want, little, refused, left, filled }));`;
  const mount = 'mount -t tmpfs -o size=8m none /mnt && exec "$0" --input-type=module -e "$1"';
  const command = ['-Urm', 'sh', '-c', mount, process.execPath, script];
  const ended = spawnSync('unshare', command, { encoding: 'utf8', cwd: packageRoot });
  if (/^(unshare|mount):/m.test(ended.stderr)) return t.skip('no user namespaces here');
  assert.equal(ended.status, 0, ended.stderr);
  const { want, little, refused, left, filled } = JSON.parse(ended.stdout.trim().split('\n').at(-1)!);
  assert.equal(want.losses.length, 18, want.error);
  assert.deepEqual(little.losses, want.losses, little.error);
  assert.match(
    little.notes.join(),
    /activations are not kept of every row: the disk has room for [\d.]+ MB of [\d.]+ MB/,
  );
  assert.match(refused.error, /activations cannot be kept: the disk has room for [\d.]+ MB of [\d.]+ MB\. Free some/);
  assert.equal(left, false);
  assert.deepEqual(filled.losses, want.losses, filled.error);
  assert.match(filled.notes.join(), /activations are no longer kept.*: the disk is nearly full/);
});

test('every loss was compared', () => assert.ok(compared >= 15 * (Object.keys(kept).length + 14), String(compared)));
