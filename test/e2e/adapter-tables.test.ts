/** Adapters of PEFT whose files hold tables of the vocabulary beside the updates, also for more tokens than the base has. */
import assert from 'node:assert/strict';
import { copyFileSync, cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { startEngine } from '../../src/engine/index.ts';
import { writeSafetensors } from '../../src/io/index.ts';
import type { LoadedModel } from '../../src/session/index.ts';
import { tinyModel } from '../samples/tiny.ts';
import { torchFile } from '../samples/torch.ts';
import { readTensors } from '../support.ts';
import { mails, workspaceFor } from './workspace.ts';

await startEngine();
const { session, withModel, at } = workspaceFor('tables');
const base = tinyModel(at('base'));
const rows = mails(12).map(({ text, label }) => ({ prompt: text, completion: ` ${label}` }));
const ids = [[5, 9, 20, 31]];

const logitsOf = async (model: LoadedModel, adapter: string) => (await model.logits(ids, { adapter }))[0]!;

/** A trained adapter with both tables, as `modules_to_save` names them. */
const named = await (async () => {
  const { adapter } = await session.train({
    model: base,
    data: rows,
    method: { type: 'lora', r: 2, target_modules: ['q_proj'], modules_to_save: ['embed_tokens', 'lm_head'] },
    train: { steps: 2, lr: 1e-2 },
    run: { dir: at('run') },
  });
  return adapter;
})();

type Tensors = ReturnType<typeof readTensors>['tensors'];

/** A copy of the adapter without `modules_to_save` in its config, its tensors changed. */
function unnamed(name: string, change: (name: string, shape: number[], bytes: Uint8Array) => [number[], Uint8Array]) {
  cpSync(named, at(name), { recursive: true });
  const file = join(at(name), 'adapter_config.json');
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), modules_to_save: null }));
  const { tensors }: { tensors: Tensors } = readTensors(join(named, 'adapter_model.safetensors'));
  const entries = [...tensors].map(([key, tensor]) => {
    const [shape, bytes] = change(key, [...tensor.shape], tensor.bytes().slice());
    return { name: key, dtype: tensor.dtype, shape, bytes: () => bytes };
  });
  writeSafetensors(join(at(name), 'adapter_model.safetensors'), entries);
  return at(name);
}

test('tables that the config does not name are loaded', async () => {
  const dir = unnamed('unnamed', (_, shape, bytes) => [shape, bytes]);
  await withModel(base, async (model) => {
    const expected = await logitsOf(model, named);
    assert.notDeepEqual(await logitsOf(model, dir), (await model.logits(ids))[0]);
    assert.deepEqual(await logitsOf(model, dir), expected);
  });
});

test('of more tokens than the base has, the base is resized with a word, and only for that adapter', async () => {
  const dir = unnamed('added', (key, [count, width], bytes) => {
    if (!/embed_tokens|lm_head/.test(key)) return [[count!, width!], bytes];
    const table = new Float32Array((count! + 2) * width!);
    table.set(new Float32Array(bytes.buffer));
    table.set(table.subarray(7 * width!, 8 * width!), count! * width!); // the first new token is as token 7
    return [[count! + 2, width!], new Uint8Array(table.buffer)];
  });
  await withModel(base, async (model) => {
    const { vocabSize } = model.info;
    const [expected, got] = [await logitsOf(model, named), await logitsOf(model, dir)];
    const last = (logits: typeof got) => Array.from(logits.data.slice(-logits.shape.at(-1)!));
    assert.equal(got.shape.at(-1), vocabSize + 2);
    // A product with more columns may sum in another order.
    const differences = last(expected).map((value, i) => Math.abs(value - last(got)[i]!));
    assert.ok(Math.max(...differences) < 1e-5, String(Math.max(...differences)));
    assert.ok(Math.abs(last(got)[vocabSize]! - last(expected)[7]!) < 1e-5);
    const text = await model.evaluate(rows, { adapter: dir });
    assert.match(
      text.notes[0]!,
      new RegExp(`the vocabulary of the base, ${vocabSize} tokens, is resized to the ${vocabSize + 2}`),
    );
    assert.match(text.notes[0]!, /with the tokenizer of the base/);
    assert.deepEqual(
      (await model.evaluate(rows)).notes.filter((note) => note.includes('resized')),
      [],
    );
    assert.equal((await model.logits(ids))[0]!.shape.at(-1), vocabSize);

    // A tokenizer beside the adapter has the new tokens.
    const tokenizer = JSON.parse(readFileSync(join(base, 'tokenizer.json'), 'utf8'));
    tokenizer.added_tokens.push({ ...tokenizer.added_tokens[0], id: vocabSize, content: '<new>' });
    writeFileSync(join(dir, 'tokenizer.json'), JSON.stringify(tokenizer));
    copyFileSync(join(base, 'tokenizer_config.json'), join(dir, 'tokenizer_config.json'));
    const { tokens, notes } = await model.evaluate([{ prompt: 'a', completion: '<new>' }], { adapter: dir });
    assert.equal(tokens, 2);
    assert.match(notes[0]!, /with the tokenizer beside it/);

    const merged = await model.merge({ adapter: dir, out: at('merged') });
    assert.match(merged.notes.join(), /is resized to the \d+ of the adapter, with the tokenizer beside it/);
    assert.equal(JSON.parse(readFileSync(at('merged', 'config.json'), 'utf8')).vocab_size, vocabSize + 2);
    assert.match(readFileSync(at('merged', 'tokenizer.json'), 'utf8'), /<new>/);
  });
});

test('where the base is shared, as in training and serving, an adapter of more tokens is refused with what to do', async () => {
  const other = /has tables for 602 tokens, and this base, as it is loaded here, has 600\. .*graft merge/;
  const method = {
    type: 'lora',
    r: 2,
    target_modules: ['q_proj'],
    modules_to_save: ['embed_tokens', 'lm_head'],
  } as const;
  const recipe = { model: base, adapter: at('added'), data: rows, method, run: { dir: at('onwards') } };
  await assert.rejects(session.train({ ...recipe }), other);
  await using model = await session.load(base, { adapters: { added: at('added') } });
  await using serving = model.serve();
  await assert.rejects(serving.submit({ promptIds: [1, 2], adapter: 'added', maxNewTokens: 1 }), other);
});

test('adapters in pickles are combined as those in safetensors are', async () => {
  const plain = await session.train({
    model: base,
    data: rows,
    method: { type: 'lora', r: 2, target_modules: ['q_proj'] },
    train: { steps: 1, lr: 1e-2 },
    run: { dir: at('plain') },
  });
  const pickled = at('pickled');
  cpSync(plain.adapter, pickled, { recursive: true });
  const { tensors } = readTensors(join(pickled, 'adapter_model.safetensors'));
  const stored = new Map([...tensors].map(([name, tensor]) => [name, { shape: tensor.shape, bytes: tensor.bytes() }]));
  writeFileSync(join(pickled, 'adapter_model.bin'), torchFile(stored));
  rmSync(join(pickled, 'adapter_model.safetensors'));
  const combine = (adapter: string, out: string) =>
    session.combine([adapter, adapter], { weights: [0.5, 0.25], how: 'linear', out: at(out) });
  await combine(plain.adapter, 'from-safetensors');
  await combine(pickled, 'from-pickle');
  const [a, b] = ['from-safetensors', 'from-pickle'].map((name) =>
    readFileSync(join(at(name), 'adapter_model.safetensors')),
  );
  assert.deepEqual(a, b);
});
