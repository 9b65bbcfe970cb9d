/** Adapters in the banks of a model: what they take in memory, what adding and removing touches, mixtures, and what banks refuse. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { randomLlama } from '../../test/samples/llama.ts';
import { numbers, relativeError, temporary } from '../../test/support.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { openSafetensors, writeSafetensors } from '../io/index.ts';
import { attachMethods, Banks, type MethodChoice } from '../methods/index.ts';
import { loadModel, readTensor } from '../models/index.ts';
import { type Model, namedModules, outputOf, packTokens } from '../nn/index.ts';
import { type DType, Generator, noGrad, ops, scope } from '../tensor/index.ts';
import { loadAdapter, loadingResident, loadResident, saveAdapter } from './index.ts';

const folder = temporary();
process.on('exit', () => folder[Symbol.dispose]());
const wideDir = join(folder.path, 'llama');

before(async () => {
  await startEngine();
  currentEngine().native.threads(1);
  randomLlama(wideDir, { width: 128, inner: 256, layers: 2 });
});

const load = () => loadModel(wideDir, {});

/** Saves an adapter with random numbers and returns its directory. */
function saved(name: string, choices: object | readonly object[], seed = 1): string {
  const dir = join(folder.path, name);
  using _ = scope();
  using model = load();
  using generator = new Generator(seed);
  using adapter = attachMethods(model, [choices].flat() as MethodChoice[], seed);
  noGrad(() => {
    for (const p of adapter.parameters.values()) ops.add_(p, ops.mulScalar(ops.randn(p.shape, { generator }), 0.05));
  });
  saveAdapter(model, adapter, dir, { base: 'b' });
  return dir;
}

const lora = (name: string, seed: number, fields: object = {}) =>
  saved(name, { type: 'lora', r: 16, target_modules: 'all-linear', ...fields }, seed);

const rows = [
  [1, 2, 3, 4, 5],
  [6, 7],
  [8, 9, 10, 11],
];

/** Logits of the three rows, each with its adapter. */
const mixed = (model: Model, adapters?: readonly number[]): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return numbers(outputOf(model, packTokens(rows, [], adapters)));
  });

const weightBytes = (dir: string) => {
  using source = openSafetensors(
    join(dir, dir.includes('bottleneck') ? 'adapter.safetensors' : 'adapter_model.safetensors'),
  );
  return [...source.entries.values()].reduce((sum, { bytes }) => sum + bytes, 0);
};

/** Writes the same adapter with numbers of half the size. */
function narrowed(dir: string, dtype: DType): string {
  const copy = `${dir} ${dtype}`;
  cpSync(dir, copy, { recursive: true });
  const file = join(copy, 'adapter_model.safetensors');
  using source = openSafetensors(join(dir, 'adapter_model.safetensors'));
  using _ = scope();
  const tensors = [...source.entries].map(([name, { shape }]) => {
    const values = ops.toCopy(readTensor(source, name), { dtype });
    return { name, dtype, shape, bytes: () => values.bytes() };
  });
  writeSafetensors(file, tensors, { format: 'pt' });
  return copy;
}

test('an adapter takes at most 1.1 of its file, also where its numbers are of half the size', async () => {
  const plain = lora('lora', 1);
  const dora = lora('dora', 2, { use_dora: true });
  const dirs = {
    plain,
    dora,
    half: narrowed(plain, 'float16'),
    brain: narrowed(plain, 'bfloat16'),
    'half dora': narrowed(dora, 'float16'),
    table: lora('table', 3, { target_modules: ['embed_tokens', 'q_proj'] }),
    whole: lora('whole', 4, { target_modules: ['q_proj'], modules_to_save: ['down_proj'] }),
    adalora: saved('adalora', { type: 'adalora', init_r: 8, target_r: 8 }),
    ia3: saved('ia3', { type: 'ia3' }),
    bottleneck: saved('bottleneck', { type: 'bottleneck' }),
    prefix: saved('prefix', { type: 'prefix', num_virtual_tokens: 8 }),
    'projected prefix': saved('projected', { type: 'prefix', num_virtual_tokens: 8, prefix_projection: true }),
    prompt: saved('prompt', { type: 'prompt', num_virtual_tokens: 8 }),
    'p-tuning': saved('p-tuning', { type: 'p-tuning', num_virtual_tokens: 8 }),
  };
  using model = load();
  using banks = new Banks(model);
  const { native } = currentEngine();
  let checked = 0;
  for (const [i, [name, dir]] of Object.entries(dirs).entries()) {
    await setImmediate(); // what was read from files is freed
    const before = native.allocated().now;
    const resident = loadResident(model, banks, dir, i + 1);
    assert.equal(resident.alone, undefined, resident.alone?.reason);
    const file = weightBytes(dir);
    assert.ok(resident.bytes <= 1.1 * file, `${name}: ${resident.bytes} bytes of tensors, ${file} in the file`);
    await setImmediate();
    const taken = native.allocated().now - before;
    // Allocations are rounded up, which shows in adapters of a few kilobytes.
    assert.ok(taken <= 1.1 * file + 4096, `${name}: ${taken} bytes allocated, ${file} in the file`);
    checked++;
  }
  assert.equal(checked, 14);
});

test('factors of half the size give what the adapter alone gives', () => {
  const dir = lora('for halves', 5);
  let compared = 0;
  for (const dtype of ['float16', 'bfloat16'] as const) {
    const half = narrowed(dir, dtype);
    using model = load();
    using reference = load();
    using banks = new Banks(model);
    loadResident(model, banks, half, 1);
    using _ = loadAdapter(reference, half);
    assert.ok(relativeError(mixed(model, [1, 1, 1]), mixed(reference)) <= 1e-5);
    compared++;
  }
  assert.equal(compared, 2);
});

test('adding and removing touches nothing of the others, and leaves the model as it was', () => {
  const dirs = [
    lora('first', 6),
    lora('second', 7, { use_dora: true, bias: 'all' }),
    saved('third', [{ type: 'bottleneck' }, { type: 'ia3' }]),
    saved('fourth', { type: 'prompt', num_virtual_tokens: 3 }),
    lora('fifth', 8, { target_modules: ['embed_tokens'], modules_to_save: ['norm'] }),
  ];
  const { native } = currentEngine();
  using model = load();
  const modules = [...namedModules(model.root)].map(([, module]) => module);
  const plain = mixed(model);
  const live = native.memory().handles;
  {
    using banks = new Banks(model);
    const residents = [1, 2].map((number) => loadResident(model, banks, dirs[number - 1]!, number));
    const two = mixed(model, [1, 0, 2]);
    for (let number = 3; number <= 5; number++) residents.push(loadResident(model, banks, dirs[number - 1]!, number));
    assert.deepEqual(mixed(model, [1, 0, 2]), two, 'after adding');
    assert.notDeepEqual(mixed(model, [1, 3, 2]), two);
    for (const number of [4, 1, 5, 3]) residents[number - 1]!.remove();
    assert.deepEqual(mixed(model, [0, 0, 2]).slice(-8), two.slice(-8), 'after removing');
    assert.equal(banks.holds(1), false);
    assert.throws(() => banks.remove(1), /no adapter has the number 1/);
    loadResident(model, banks, dirs[0]!, 1);
    assert.deepEqual(mixed(model, [1, 0, 2]), two, 'after adding again');
  }
  assert.deepEqual(
    [...namedModules(model.root)].map(([, module]) => module),
    modules,
  );
  assert.deepEqual(mixed(model), plain);
  assert.equal(native.memory().handles, live, 'live handles');
});

test('passes of others may run while an adapter is loaded, and loading may be given up', () => {
  const dirs = {
    dora: lora('in steps', 16, { use_dora: true, bias: 'all', modules_to_save: ['norm'] }),
    stack: saved('stack in steps', [
      { type: 'lora', r: 4, target_modules: 'all-linear' },
      { type: 'lora', r: 2, target_modules: 'all-linear', use_dora: true },
      { type: 'prefix', num_virtual_tokens: 3 },
      { type: 'bottleneck' },
    ]),
    pissa: withFields(lora('changes in steps', 17), { init_lora_weights: 'pissa' }),
  };
  const { native } = currentEngine();
  let passes = 0;
  for (const [name, dir] of Object.entries(dirs)) {
    using model = load();
    using banks = new Banks(model);
    loadResident(model, banks, lora('beside', 18), 1);
    const plain = mixed(model);
    const wanted = mixed(model, [1, 0, 1]);
    const live = native.memory().handles;
    const steps = () => loadingResident(model, banks, dir, 2);
    let count = 0;
    for (const _ of steps()) {
      assert.deepEqual(mixed(model, [1, 0, 1]), wanted, `${name}, step ${count}`);
      count++;
    }
    assert.ok(banks.holds(2));
    const complete = mixed(model, [1, 2, 1]);
    banks.remove(2);
    assert.equal(native.memory().handles, live, `live handles after ${name}`);
    for (let last = 1; last < count; last += 5) {
      let step = 0;
      for (const _ of steps()) if (++step === last) break;
      assert.equal(banks.holds(2), false);
      assert.equal(native.memory().handles, live, `live handles after ${last} steps of ${name}`);
      assert.deepEqual(mixed(model), plain, `given up after ${last} steps of ${name}`);
    }
    loadResident(model, banks, dir, 2);
    assert.deepEqual(mixed(model, [1, 2, 1]), complete);
    passes += count;
  }
  assert.equal(passes, 159);
});

test('the hundredth adapter allocates and keeps what the first does', () => {
  const dir = lora('often', 9);
  const { native } = currentEngine();
  using model = load();
  using banks = new Banks(model);
  const costs = Array.from({ length: 100 }, (_, i) => {
    const [handles, { now }] = [native.memory().handles, native.allocated()];
    loadResident(model, banks, dir, i + 1);
    const after = native.allocated();
    return { handles: native.memory().handles - handles, bytes: after.now - now };
  });
  const [first, last] = [costs[0]!, costs[99]!];
  assert.equal(last.handles, first.handles);
  // A few bytes of what JavaScript sees are freed when it likes.
  assert.ok(Math.abs(last.bytes - first.bytes) < 1024, `${last.bytes} and ${first.bytes} bytes`);
});

test('a row may use a weighted sum of LoRA adapters, which shares their tensors', () => {
  const dirs = [lora('one', 10), lora('two', 11, { r: 4, bias: 'all', target_modules: ['q_proj', 'down_proj'] })];
  const weights = [0.3, -1.7];
  /** The same adapter with its update multiplied: α decides its size. */
  const weighted = dirs.map((dir, i) => {
    const { lora_alpha: alpha } = JSON.parse(readFileSync(join(dir, 'adapter_config.json'), 'utf8'));
    return withFields(dir, { lora_alpha: Math.abs(weights[i]!) * alpha });
  });
  using model = load();
  using banks = new Banks(model);
  const { native } = currentEngine();
  const empty = native.memory().handles;
  const residents = dirs.map((dir, i) => loadResident(model, banks, dir, i + 1));
  const handles = native.memory().handles;
  const ownHandles = handles - empty;
  banks.mix(3, [
    { adapter: 1, weight: weights[0]! },
    { adapter: 2, weight: weights[1]! },
  ]);
  assert.equal(native.memory().handles, handles, 'tensors of the mixture');
  assert.equal(banks.bytesOf(3), 0);
  const together = mixed(model, [1, 3, 2]);
  // α has no sign, so the second update is taken from the factors' sign.
  using reference = load();
  using first = loadAdapter(reference, weighted[0]!);
  using second = loadAdapter(reference, weighted[1]!);
  noGrad(() => {
    for (const [key, p] of second.parameters) if (key.includes('lora_B')) ops.mulScalar_(p, -1);
  });
  const wanted = mixed(reference);
  const width = model.vocabSize;
  const [from, to] = [rows[0]!.length * width, (rows[0]!.length + rows[1]!.length) * width];
  assert.ok(relativeError(together.slice(from, to), wanted.slice(from, to)) <= 1e-5);
  first.enabled = second.enabled = false;
  assert.ok(relativeError(together.slice(from, to), mixed(reference).slice(from, to)) > 1e-2);

  // Members may leave before the mixture.
  for (const resident of residents) resident.remove();
  assert.deepEqual(mixed(model, [0, 3, 0]).slice(from, to), mixed(model, [0, 3, 0]).slice(from, to));
  assert.ok(relativeError(mixed(model, [0, 3, 0]).slice(from, to), together.slice(from, to)) <= 1e-6);
  const held = native.memory().handles;
  banks.remove(3);
  assert.equal(held - native.memory().handles, ownHandles, 'tensors of the members');
});

test('what cannot be mixed or numbered is refused', () => {
  using model = load();
  using banks = new Banks(model);
  loadResident(model, banks, lora('plain member', 12), 1);
  loadResident(model, banks, lora('dora member', 13, { use_dora: true }), 2);
  loadResident(model, banks, saved('prompt member', { type: 'prompt', num_virtual_tokens: 2 }), 3);
  for (const adapter of [2, 3]) {
    const mixture = [1, adapter].map((each) => ({ adapter: each, weight: 0.5 }));
    assert.throws(() => banks.mix(4, mixture), /does more than add updates of low rank to linear layers/);
  }
  assert.throws(() => banks.mix(4, [{ adapter: 9, weight: 1 }]), /no adapter has the number 9/);
  for (const number of [1, 0, -1, 1.5])
    assert.throws(() => banks.mix(number, [{ adapter: 1, weight: 1 }]), /is not the number of a new adapter/);
  assert.throws(() => mixed(model, [1, 2]), /3 rows have 2 numbers of adapters/);
  const tokens = packTokens(rows, [], [1, 0, 1]);
  const loss = () => noGrad(() => model.lossSum(model.hidden(tokens), tokens.ids));
  using _ = scope();
  using headed = loadModel(wideDir, {});
  using headBanks = new Banks(headed);
  loadResident(headed, headBanks, lora('head member', 14, { target_modules: ['lm_head'] }), 1);
  assert.ok(Number.isFinite(loss().item()), 'no adapter is at the head');
  assert.throws(
    () => noGrad(() => headed.lossSum(headed.hidden(tokens), tokens.ids)),
    /rows whose adapters share a batch have no loss/,
  );
});

/** The same adapter with other fields in its config. */
function withFields(dir: string, fields: object): string {
  const copy = `${dir} ${JSON.stringify(fields).replaceAll(/\W+/g, ' ')}`;
  cpSync(dir, copy, { recursive: true });
  const file = join(copy, 'adapter_config.json');
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), ...fields }));
  return copy;
}

test('what changes the base is held where its update says so too, and else served alone', () => {
  const dir = lora('changes the base', 15, { r: 8 });
  let held = 0;
  // PEFT's own files of PiSSA and OLoRA are for a base without the initial update.
  for (const init of ['pissa', 'olora']) {
    const ofPeft = withFields(dir, { init_lora_weights: init });
    using model = load();
    using banks = new Banks(model);
    const plain = mixed(model);
    assert.equal(loadResident(model, banks, ofPeft, 1).alone, undefined);
    using reference = load();
    using _ = loadAdapter(reference, ofPeft);
    assert.ok(relativeError(mixed(model, [1, 1, 1]), mixed(reference)) <= 1e-5, init);
    assert.ok(relativeError(mixed(reference), plain) > 1e-2);
    assert.deepEqual(mixed(model), plain, 'the base is as it was');
    held++;
  }
  assert.equal(held, 2);
  using quantized = loadModel(wideDir, { quantize: 'nf4' });
  using banks = new Banks(quantized);
  const loftq = { init_lora_weights: 'loftq', loftq_config: { loftq_iter: 3 } };
  const { alone, remove } = loadResident(quantized, banks, withFields(dir, loftq), 1);
  assert.match(alone!.reason, /^it changes the base's weight of 'model\.layers\.0\.self_attn\.q_proj'$/);
  remove();
});

test('an adapter that no bank can hold stays on the model, switched off, and says why', () => {
  const qat = saved('qat', [
    { type: 'lora', r: 4 },
    { type: 'qat', weight: 'q8_0' },
  ]);
  using model = load();
  using banks = new Banks(model);
  const plain = mixed(model);
  const { alone, bytes, remove } = loadResident(model, banks, qat, 1);
  assert.match(alone!.reason, /^qat computes in a batch of its own$/);
  assert.ok(bytes > 0);
  assert.equal(banks.holds(1), false);
  assert.deepEqual(mixed(model), plain, 'switched off');
  alone!.adapter.enabled = true;
  using reference = load();
  using _ = loadAdapter(reference, qat);
  assert.deepEqual(mixed(model), mixed(reference));
  remove();
  assert.deepEqual(mixed(model), plain);
});
