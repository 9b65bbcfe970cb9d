import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { tinyModel } from '../../../test/samples/tiny.ts';
import { golden, logitsOf, temporary } from '../../../test/support.ts';
import { loadAdapter, saveAdapter, settingsOf, writeSettings } from '../../adapters/index.ts';
import { startEngine } from '../../engine/index.ts';
import { openGguf } from '../../io/index.ts';
import { attachMethods, type MethodChoice } from '../../methods/index.ts';
import { type ExportFormat, exportFormats, loadModel, saveModel } from '../../models/index.ts';
import { Linear, type Model, namedModules } from '../../nn/index.ts';
import { isGgufFormat, pack } from '../../quant/index.ts';
import { ops, scope } from '../../tensor/index.ts';
import { mergeFiles } from './merge.ts';
import { type QuantizeSettings, quantizeFiles } from './quantize.ts';

before(() => startEngine());

const base = golden('gguf', 'llama.gguf');
const ids = [3, 17, 40, 9, 62, 5];

test('the drift is that of the file that was written, and progress is told', async () => {
  using dir = temporary();
  const drifts: number[] = [];
  for (const to of ['q8_0', 'q4_0', 'int8', 'int4', 'int2'] as const) {
    const told: number[] = [];
    const out = join(dir.path, to.startsWith('q') ? `${to}.gguf` : to);
    const groups = to.startsWith('int') ? { groupSize: 32 } : {};
    const result = await quantizeFiles(
      { model: base, to, ...groups, out },
      { throwIfStopped() {}, emit: ({ done, total }) => told.push(total - done) },
    );
    drifts.push(result.maxDrift);
    assert.deepEqual([result.out, result.tokens, result.predictions], [out, 128, 128]);
    assert.ok(result.bytes > 0 && result.sourceBytes > 0);
    assert.ok(told.length >= 20 && told.at(-1) === 1, `${told}`);
    assert.match(result.notes.join(), /rounded before \(.*q5_1.*\) are rounded again/, to);
  }
  const [q8, q4, int8, int4, int2] = drifts as [number, number, number, number, number];
  assert.ok(q8 < q4 && int8 < int4 && int4 < int2, drifts.join());
});

test('a file in its own format is written without drift', async () => {
  using dir = temporary();
  const [first, second] = ['a', 'b'].map((name) => join(dir.path, `${name}.gguf`)) as [string, string];
  await quantizeFiles({ model: base, to: 'q4_0', out: first });
  const again = await quantizeFiles({ model: first, to: 'q4_0', out: second });
  assert.deepEqual([again.maxDrift, again.notes], [0, []]);
});

test('a model from a directory takes its tokenizer along; embeddings have a format of their own', async () => {
  using dir = temporary();
  const model = tinyModel(join(dir.path, 'tiny'));
  const out = join(dir.path, 'm.gguf');
  const { notes } = await quantizeFiles({ model, to: 'q4_0', embedding: 'float16', out });
  assert.match(
    notes.join(),
    /rows of 44 numbers, which blocks of 32 do not divide: float16 instead of q4_0, as in llama\.cpp/,
  );
  using source = openGguf(out);
  assert.equal(source.metadata.get('tokenizer.ggml.pre'), 'llama-bpe');
  assert.equal(source.entries.get('token_embd.weight')!.format, 'float16');
  const without = await quantizeFiles({
    model: golden('models', 'llama2'),
    to: 'float32',
    out: join(dir.path, 'n.gguf'),
  });
  assert.deepEqual(without.notes, ['the base has no tokenizer, so the file has none']);
});

/** Rounds the weights of the blocks of a model in place. */
function round(model: Model, to: ExportFormat): void {
  for (const [path, module] of namedModules(model.root)) {
    if (!(module instanceof Linear) || path === 'lm_head') continue;
    const { weight, format } = pack(module.weight, { format: to as 'int4', ...(to === 'int4' && { groupSize: 32 }) });
    ops.copy_(module.weight, ops.dequantize(weight, format));
  }
}

test('merging with a format rounds the merged sum once: what is read back are the rounded merged weights', async () => {
  for (const to of ['q4_0', 'q5_1', 'int4'] as const) {
    using _ = scope();
    using dir = temporary();
    const adapterDir = join(dir.path, 'adapter');
    {
      using loaded = loadModel(base);
      const choice = { type: 'lora', target_modules: 'all-linear', init_lora_weights: false } as const;
      using adapter = attachMethods(loaded, [choice], 1);
      saveAdapter(loaded, adapter, adapterDir, { base });
    }
    const out = join(dir.path, to === 'int4' ? 'merged' : 'merged.gguf');
    const settings = {
      to,
      embedding: to === 'int4' ? 'none' : 'float32',
      ...(to === 'int4' && { groupSize: 32 }),
    } as const;
    const result = await mergeFiles({ model: base, adapter: adapterDir, out, ...settings });
    assert.ok(result.maxDrift > 0.01);
    await mergeFiles({ model: base, adapter: adapterDir, out: join(dir.path, 'plain') });
    using merged = loadModel(join(dir.path, 'plain'));
    round(merged, to);
    using written = loadModel(out);
    assert.deepEqual(logitsOf(written, ids), logitsOf(merged, ids), to);
  }
});

test('after quantisation-aware training, what is written is the network that trained', async () => {
  for (const [weight, more] of [
    ['q4_0', {}],
    ['q4_0', { embedding: 'q8_0', head: 'q8_0' }],
    ['q5_1', { exclude_modules: ['down_proj'] }],
    ['q8_0', { activation: 'q8' }],
    ['int4', { group_size: 32 }],
    ['int3', { group_size: 'channel', symmetric: false }],
    ['int4', { group_size: 32, learned_range: true }],
  ] as const) {
    using dir = temporary();
    const adapterDir = join(dir.path, 'adapter');
    const what = JSON.stringify([weight, more]);
    {
      using loaded = loadModel(base);
      const lora = { type: 'lora', target_modules: 'all-linear', init_lora_weights: false } as const;
      using adapter = attachMethods(loaded, [lora, { type: 'qat', weight, ...more } as MethodChoice], 1);
      saveAdapter(loaded, adapter, adapterDir, { base });
    }
    const out = join(dir.path, weight.startsWith('q') ? 'merged.gguf' : 'merged');
    const result = await mergeFiles({ model: base, adapter: adapterDir, to: weight, out });
    assert.ok(result.maxDrift <= 1e-5, `${what}: ${result.maxDrift}`);
    const note =
      'activation' in more
        ? ['it was trained with inputs rounded as llama.cpp does: other commands compute so with --activation q8']
        : [];
    assert.deepEqual([result.changed, result.notes], [0, note], what);
    if (weight === 'q5_1') {
      using source = openGguf(out);
      const formatOf = (name: string) => source.entries.get(name)!.format;
      assert.deepEqual(['blk.0.attn_q.weight', 'blk.0.ffn_down.weight', 'token_embd.weight'].map(formatOf), [
        'q5_1',
        'float32',
        'float32',
      ]);
      const other = await mergeFiles({
        model: base,
        adapter: adapterDir,
        to: 'q8_0',
        out: join(dir.path, 'other.gguf'),
      });
      assert.match(other.notes.join(), /the adapter was trained for q5_1, and not for q8_0/);
    }
    if (weight === 'int4') {
      const settings = { model: base, adapter: adapterDir, to: weight, groupSize: 16, out: join(dir.path, 'other') };
      await assert.rejects(mergeFiles(settings), /trained for int4 with a group_size of 32, not 16/);
    }
  }
});

test('layers that were rounded to several formats are written so, and a head that alone was rounded', async () => {
  const lora = { type: 'lora', target_modules: 'all-linear', init_lora_weights: false };
  const rounded = (weight: string, target_modules: string[], more = {}) => ({
    type: 'qat',
    weight,
    target_modules,
    ...more,
  });
  const saved = (dir: string, method: readonly unknown[]) => {
    using loaded = loadModel(base);
    using adapter = attachMethods(loaded, method as MethodChoice[], 1);
    saveAdapter(loaded, adapter, dir, { base });
    return dir;
  };
  const several = [lora, rounded('q4_0', ['q_proj']), rounded('q8_0', ['down_proj'])];
  for (const [method, to, q, down, head] of [
    [several, 'q4_0', 'q4_0', 'q8_0', 'float32'],
    [several, 'q8_0', 'q4_0', 'q8_0', 'float32'],
    [[lora, rounded('q4_0', ['lm_head'])], 'q4_0', 'float32', 'float32', 'q4_0'],
  ] as const) {
    using dir = temporary();
    const out = join(dir.path, 'm.gguf');
    const adapter = saved(join(dir.path, 'adapter'), method);
    const { maxDrift, notes } = await mergeFiles({ model: base, adapter, to, out });
    assert.ok(maxDrift <= 1e-4, `${maxDrift}`);
    assert.deepEqual(notes, []);
    using source = openGguf(out);
    const formatOf = (name: string) => source.entries.get(`${name}.weight`)!.format;
    assert.deepEqual(['blk.0.attn_q', 'blk.0.ffn_down', 'output'].map(formatOf), [q, down, head]);
  }

  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const mixed = saved(at('mixed'), [lora, rounded('q4_0', ['q_proj'], { head: 'int8' })]);
  const settings = { model: base, adapter: mixed, to: 'q4_0', out: at('m.gguf') } as const;
  await assert.rejects(
    mergeFiles(settings),
    /cannot hold both q4_0 and int8, for which 'lm_head' was trained.*Choose q4_0/,
  );
  assert.ok(!existsSync(at('m.gguf')));
  const { notes } = await mergeFiles({ ...settings, embedding: 'none' });
  assert.deepEqual(notes, []);
});

test('what the written model does not compute as training did is told', async () => {
  const lora = { type: 'lora', target_modules: 'all-linear', init_lora_weights: false };
  for (const [fields, to, note] of [
    [{ weight: 'q4_0' }, undefined, /trained for weights in q4_0, and these are not rounded/],
    [{ weight: 'q4_0', over: 'base' }, undefined, /^$/],
    [{ weight: 'int4', activation: 'int8' }, 'int4', /inputs rounded to 8 bits for each token/],
    [{ weight: 'int4', over: 'base' }, 'int4', /in float beside a base rounded to int4, and this rounds their sum/],
  ] as const) {
    using dir = temporary();
    const adapter = join(dir.path, 'adapter');
    {
      using loaded = loadModel(base);
      using attached = attachMethods(loaded, [lora, { type: 'qat', ...fields }] as MethodChoice[], 1);
      saveAdapter(loaded, attached, adapter, { base });
    }
    const { notes } = await mergeFiles({ model: base, adapter, ...(to && { to }), out: join(dir.path, 'merged') });
    assert.match(notes.join('\n'), note, JSON.stringify(fields));
  }
});

test('an adapter beside a rounded base computes the same on the base that graft quantize writes, and rounds nothing twice', async () => {
  for (const [weight, group, symmetric] of [
    ['int4', 32, true],
    ['int4', 16, true],
    ['int8', undefined, true],
    ['q4_0', undefined, true],
  ] as const) {
    using dir = temporary();
    const what = `${weight} ${group}`;
    const [adapter, file] = ['adapter', weight === 'q4_0' ? 'base.gguf' : 'base'].map((name) => join(dir.path, name));
    const method = [
      { type: 'lora', target_modules: 'all-linear', init_lora_weights: false },
      { type: 'qat', weight, over: 'base', symmetric, ...(weight !== 'q4_0' && { group_size: group ?? 'channel' }) },
    ] as MethodChoice[];
    const float = join(dir.path, 'float');
    let wanted: readonly number[];
    {
      using loaded = loadModel(base);
      saveModel(loaded, float, base);
      using attached = attachMethods(loaded, method, 1);
      assert.match(
        attached.warnings.join(),
        weight === 'q4_0'
          ? /quantize --to q4_0\)/
          : group
            ? new RegExp(`--to ${weight} --group-size ${group}\\)`)
            : /--to int8\)/,
      );
      saveAdapter(loaded, attached, adapter!, { base });
    }
    {
      using loaded = loadModel(float);
      using _attached = loadAdapter(loaded, adapter!);
      wanted = [...logitsOf(loaded, ids)];
    }
    const embedding = weight === 'q4_0' ? 'float32' : 'none';
    await quantizeFiles({ model: float, to: weight, groupSize: group, embedding, out: file! });
    for (const quantize of ['keep', 'none'] as const) {
      using loaded = loadModel(file!, { quantize });
      using _attached = loadAdapter(loaded, adapter!);
      const far = [...logitsOf(loaded, ids)].map((value, i) => Math.abs(value - wanted[i]!));
      assert.ok(Math.max(...far) <= 1e-5, `${what} ${quantize}: ${Math.max(...far)}`);
    }
    const again = await quantizeFiles({
      model: file!,
      to: weight === 'q4_0' ? 'q5_0' : 'int3',
      out: join(dir.path, weight === 'q4_0' ? 'again.gguf' : 'again'),
    });
    const name = weight === 'q4_0' ? 'q4_0' : `${weight} \\(group_size: ${group ?? 'channel'}\\)`;
    assert.match(again.notes.join(), new RegExp(`rounded before \\(${name}`), what);
  }
});

test('a whole model that was trained to be rounded is written so', async () => {
  using dir = temporary();
  const trained = join(dir.path, 'trained');
  {
    using model = loadModel(base);
    const choice = { type: 'qat', weight: 'q4_1', exclude_modules: ['up_proj'], embedding: 'q5_0' } as MethodChoice;
    using adapter = attachMethods(model, [{ type: 'full' }, choice], 1);
    const settings = settingsOf(adapter.parts);
    for (const part of settings) part.enabled = false;
    saveModel(model, trained, base, 'float32', {}, { writeMore: (draft) => writeSettings(draft, settings) });
  }
  const out = join(dir.path, 'm.gguf');
  const { maxDrift, notes } = await quantizeFiles({ model: trained, to: 'q4_1', out });
  assert.ok(maxDrift <= 1e-5, `${maxDrift}`);
  assert.deepEqual(notes, ['the base has no tokenizer, so the file has none']);
  using source = openGguf(out);
  assert.deepEqual(
    ['blk.0.attn_q', 'blk.0.ffn_up', 'token_embd'].map((name) => source.entries.get(`${name}.weight`)!.format),
    ['q4_1', 'float32', 'q5_0'],
  );
});

test('every format that is offered is written, of layers and of embeddings', async () => {
  using dir = temporary();
  for (const to of exportFormats) {
    const [out, plain] = ['', '-plain'].map((name) =>
      join(dir.path, isGgufFormat(to) ? `${to}${name}.gguf` : to + name),
    );
    assert.ok((await quantizeFiles({ model: base, to, embedding: to, out: out! })).bytes > 0, to);
    assert.ok((await quantizeFiles({ model: base, to, embedding: 'float32', out: plain! })).bytes > 0, to);
  }
  assert.equal(exportFormats.length, 18);
});

test('options that contradict each other, and formats that no file can hold, are refused; nothing is written', async () => {
  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const refused = async (
    settings: Omit<QuantizeSettings, 'out'> & { out?: string; model?: string },
    message: RegExp,
  ) => {
    await assert.rejects(quantizeFiles({ model: base, out: at('m.gguf'), ...settings }), message);
    assert.deepEqual(readdirSync(dir.path), []);
  };
  await refused({ to: 'int3' }, /llama\.cpp has no kernel for int3, so a \.gguf file cannot hold it/);
  await refused({ to: 'q4_0', out: at('dir') }, /q4_0 is a format of GGUF, and '.*' does not end in \.gguf/);
  await refused({ to: 'q4_0', groupSize: 32 }, /blocks of q4_0 have their own size/);
  await refused({ to: 'q4_0', embedding: 'int4' }, /one file cannot hold both q4_0 and int4/);
  await refused({ to: 'int4', embedding: 'q8_0', out: at('dir') }, /one file cannot hold both int4 and q8_0/);
  await refused({ to: 'q4_0', dtype: 'bfloat16' }, /dtype is not for GGUF files/);
  await refused(
    { to: 'int4', groupSize: 24, out: at('dir') },
    /group_size of 24 does not divide the width of .*q_proj \(32 wide\)/,
  );
  await refused({ to: 'q4_0', model: golden('families', 'vit') }, /a model of the type vit cannot be a GGUF file/);
  await refused({ to: 'q4_0', model: golden('families', 'llama-qa') }, /this one is for question-answering/);
  const merge = { model: base, adapter: at('none'), out: at('m.gguf') };
  await assert.rejects(mergeFiles(merge), /a \.gguf file needs the format to write/);
  await assert.rejects(mergeFiles({ ...merge, out: at('d'), groupSize: 32 }), /group_size needs the format to write/);
  await assert.rejects(mergeFiles({ ...merge, to: 'q4_0', quantize: 'int8' }), /the merged weights are quantised once/);
  assert.ok(!existsSync(at('d')));
});
