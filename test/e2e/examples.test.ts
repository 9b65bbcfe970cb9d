/** Every example and every recipe, run as a reader would, on a tiny model. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after, before } from 'node:test';
import { encode } from 'fast-png';
import { packageRoot } from '../../src/base/index.ts';
import { commit, hub } from '../samples/hub.ts';
import { tinyBert, tinyModel, tinyVit } from '../samples/tiny.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-examples-'));
after(() => rmSync(dir, { recursive: true }));
const at = (...parts: string[]) => join(dir, ...parts);
const model = tinyModel(at('tiny'));
const adapter = at('run', 'adapter');

const words = ['red', 'blue', 'green', 'black'];
const rows = Array.from({ length: 60 }, (_, i) => [`Is item ${i} ${words[i % 4]}?`, i % 2 ? 'no' : 'yes'] as const);
const lines = (row: (question: string, answer: string) => object) =>
  rows.map(([question, answer]) => JSON.stringify(row(question, answer))).join('\n');
writeFileSync(
  at('text.jsonl'),
  lines((question, answer) => ({ text: `${question} ${answer}` })),
);
writeFileSync(
  at('labelled.jsonl'),
  lines((text, label) => ({ text, label })),
);
writeFileSync(
  at('asked.jsonl'),
  rows
    .slice(0, 2)
    .map(([text]) => JSON.stringify({ text }))
    .join('\n'),
);
writeFileSync(
  at('tags.conll'),
  rows
    .map(([question, answer]) =>
      question
        .split(' ')
        .map((word) => `${word} B-${answer}\n`)
        .join(''),
    )
    .join('\n'),
);
writeFileSync(
  at('answers.jsonl'),
  lines((context) => ({ question: 'What?', context, answers: { text: ['item'], answer_start: [3] } })),
);
for (const label of ['dark', 'light']) {
  mkdirSync(at('images', label), { recursive: true });
  for (let i = 0; i < 10; i++) {
    const data = new Uint8Array(64).fill(label === 'dark' ? i : 200 + i);
    writeFileSync(at('images', label, `${i}.png`), encode({ width: 8, height: 8, channels: 1, data }));
  }
}
/** What recipes for a head are run with. */
const heads: Readonly<Record<string, { model: string; data: string; labels?: string }>> = {
  'classify-head.yaml': { model, data: at('labelled.jsonl') },
  'tag.yaml': { model: tinyBert(at('bert')), data: at('tags.conll') },
  'qa.yaml': { model: at('bert'), data: at('answers.jsonl') },
  'images.yaml': { model: tinyVit(at('vit')), data: at('images'), labels: '[dark, light, red, blue]' },
  'digits-base.yaml': { model: at('vit'), data: at('images'), labels: '[dark, light, red, blue]' },
};
writeFileSync(
  at('rows.jsonl'),
  lines((question, answer) => ({
    messages: [
      { role: 'user', content: question },
      { role: 'assistant', content: answer },
    ],
  })),
);

interface Outcome {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

function node(args: readonly string[], { input = '', env = {} }: { input?: string; env?: object } = {}) {
  const child = spawn(process.execPath, args, {
    cwd: packageRoot,
    env: { ...process.env, ...env },
  });
  child.stdin.end(input);
  const text = { out: '', err: '' };
  child.stdout.setEncoding('utf8').on('data', (piece: string) => (text.out += piece));
  child.stderr.setEncoding('utf8').on('data', (piece: string) => (text.err += piece));
  return new Promise<Outcome>((resolve) => child.on('close', (code) => resolve({ code, ...text })));
}

const ran = new Set<string>();

/** What the example prints, once it has ended well. */
async function example(name: string, args: readonly string[], options?: Parameters<typeof node>[1]): Promise<string> {
  const { code, out, err } = await node([join('examples', `${name}.ts`), ...args], options);
  assert.equal(code, 0, err);
  ran.add(name);
  return out;
}

const numbers = (text: string, pattern: RegExp) => Array.from(text.matchAll(pattern), (match) => Number(match[1]));

before(async () => {
  const out = await example('train', [model, at('rows.jsonl'), at('run'), '5']);
  const [first, ...more] = numbers(out, /step \d+: loss ([\d.]+)/g);
  assert.ok(more.length > 20 && more.at(-1)! < first! / 2, out);
  assert.equal(numbers(out, /held out: loss ([\d.]+)/g).length, 5);
  assert.ok(out.endsWith(`saved ${adapter}\n`));
  assert.deepEqual(readdirSync(adapter).sort(), [
    'README.md',
    'adapter_config.json',
    'adapter_model.safetensors',
    'graft.json',
  ]);
  const events = readFileSync(at('run', 'events.jsonl'), 'utf8').trim().split('\n');
  assert.equal(JSON.parse(events.at(-1)!).type, 'end');
});

test('launch: two processes train together', async () => {
  const out = await example('launch', [model, at('rows.jsonl'), at('launched')]);
  assert.ok(numbers(out, /step \d+: loss ([\d.]+)/g).length > 10, out);
  assert.deepEqual(numbers(out, /^rank (\d): \d+ MB, [\d.]+ MB sent, [\d.]+ s waited$/gm), [0, 1]);
  assert.ok(out.endsWith(`saved ${at('launched', 'adapter')}\n`));
});

test('plan: the memory of every stage, which falls from stage to stage', async () => {
  const out = await example('plan', ['llama-70b', '64']);
  const sizes = numbers(out, /^stage \d: ([\d.]+) GB of memory/gm);
  assert.equal(sizes.length, 4, out);
  assert.ok(sizes[3]! < sizes[2]! && sizes[2]! < sizes[1]! && sizes[1]! < sizes[0]!, out);
  assert.ok(out.endsWith('the cheapest that fits: 3\n'), out);
});

test('eval: the adapter lowers the loss', async () => {
  const out = await example('eval', [model, adapter, at('rows.jsonl'), 'yes', 'no']);
  const [base, trained] = numbers(out, /loss ([\d.]+)/g);
  assert.ok(trained! < base! / 2, out);
  assert.equal(numbers(out, /([\d.]+) % correct/g).length, 2);
});

test('generate: text streams, and the same seed gives the same', async () => {
  const said = async (args: string[]) => {
    const [, text, count] = /^(.+)\n\((\d+) tokens, \d+ tokens\/s, ended by (?:eos|length)\)\n$/s.exec(
      await example('generate', [model, 'Hello', ...args]),
    )!;
    assert.ok(Number(count) > 0);
    return text;
  };
  const text = await said([]);
  assert.equal(await said([]), text);
  assert.notEqual(await said([adapter]), text);
});

test('serve: the base and each adapter of a folder answer over HTTP', async () => {
  cpSync(adapter, at('served', 'mine'), { recursive: true });
  const out = await example('serve', [model, at('served'), 'Is item 1 red?']);
  assert.match(out, /^serving at http:\/\/127\.0\.0\.1:\d+\/v1\n/);
  const counts = numbers(out, /\((\d+) tokens\)$/gm);
  assert.ok(counts.length === 2 && counts.every((count) => count > 0), out);
  assert.ok(/^tiny: /m.test(out) && /^mine: [yn]/m.test(out), out);
});

test('chat: a line is a turn, and each is answered', async () => {
  const out = await example('chat', [model], { input: 'Hello\nAnd now?\n' });
  assert.ok(out.split('\n').filter(Boolean).length >= 2, out);
});

test('logits: the five likeliest tokens', async () => {
  const out = await example('logits', [model, 'Hello']);
  const shares = numbers(out, /^([\d.]+) % {2}"/gm);
  assert.equal(shares.length, 5);
  assert.ok(shares.every((share, i) => share > 0 && share < 100 && share <= (shares[i - 1] ?? 100)));
});

test('combine: two adapters weighed into one that the base generates with', async () => {
  const out = await example('combine', [model, adapter, adapter, at('combined'), 'Hello']);
  assert.deepEqual(numbers(out, /rank (\d+)/g), [16], out);
  assert.deepEqual(readdirSync(at('combined')).sort(), ['adapter_config.json', 'adapter_model.safetensors']);
});

test('convert: to another format and back', async () => {
  const [mlx, back] = [at('mlx'), at('back')];
  const out = await example('convert', [adapter, 'mlx', mlx]);
  assert.match(out, /from peft to mlx/);
  assert.deepEqual(readdirSync(mlx).sort(), ['adapter_config.json', 'adapters.safetensors']);
  assert.match(await example('convert', [mlx, 'peft', back]), /from mlx to peft\nlora/);
});

test('predict: a head is trained, measured and asked', async () => {
  const out = await example('predict', [model, at('labelled.jsonl'), at('asked.jsonl'), at('head')]);
  assert.match(out, /^accuracy [\d.]+ \(95 % confidence interval [\d.]+ to [\d.]+, 12 rows\)\n/);
  const said = Array.from(out.matchAll(/^(yes|no) \(([\d.]+) %\): /gm), ([, , share]) => Number(share));
  assert.ok(said.length === 2 && said.every((share) => share >= 50), out);
});

test('compare: two methods, and a page', async () => {
  const comparison = {
    model,
    task: 'sequence-classification',
    data: { train: at('labelled.jsonl'), eval: at('labelled.jsonl') },
    train: { steps: 2 },
    run: { dir: at('compared') },
    compare: { only: ['lora', 'ia3'] },
  };
  writeFileSync(at('compare.yaml'), JSON.stringify(comparison));
  const out = await example('compare', [at('compare.yaml')]);
  assert.equal(numbers(out, /accuracy ([\d.]+), \d+ parameters trained$/gm).length, 2, out);
  assert.ok(readFileSync(at('compared', 'comparison.html'), 'utf8').includes('<svg '));
});

test('merge: a model with its tokenizer that says something', async () => {
  const out = await example('merge', [model, adapter, at('merged'), 'Hello']);
  assert.ok(numbers(out, /at most ([\d.e+-]+) over/g)[0]! < 1e-3, out);
  for (const name of ['config.json', 'model.safetensors', 'tokenizer.json', 'chat_template.jinja'])
    assert.ok(existsSync(at('merged', name)), name);
  assert.ok(out.split('\n')[1]!.length > 0);
});

test('quantize: files for llama.cpp that are read back', async () => {
  const out = await example('quantize', [model, adapter, at('merged.gguf'), 'Hello']);
  assert.match(out, /merged\.gguf: \d+ tensors, \d+ bytes; logits differ by at most [\d.e+-]+\n/);
  assert.match(out, /float16 instead of q4_0, as in llama\.cpp\n/);
  assert.match(out, /merged-base\.gguf: \d+ of 128 predictions changed\n/);
  assert.ok(existsSync(at('merged.gguf')) && existsSync(at('merged-base.gguf')));
});

test('inspect: what the files hold', async () => {
  const out = await example('inspect', [model, adapter]);
  assert.match(out, /^llama: 3 layers of width 32\nfloat32: 29 tensors, 0\.17 MB\nlora adapter of \S+tiny: \{"r":8,/);
});

test('pull: every file once, and none again', async () => {
  const names = readdirSync(model);
  await using server = await hub(Object.fromEntries(names.map((name) => [name, readFileSync(join(model, name))])));
  const env = { GRAFT_CACHE: at('cache'), HF_ENDPOINT: server.endpoint, HF_HUB_OFFLINE: '' };
  const path = (await example('pull', ['org/name'], { env })).trim().split('\n').at(-1)!;
  assert.ok(path.endsWith(commit));
  for (const name of names) assert.deepEqual(readFileSync(join(path, name)), readFileSync(join(model, name)), name);
  const fetched = () => server.requests.filter((request) => request.includes('/resolve/')).length;
  const before = fetched();
  assert.equal((await example('pull', ['org/name'], { env })).trim(), path);
  assert.equal(fetched(), before);
});

test('doctor: rates of both types', async () => {
  const rates = numbers(await example('doctor', []), /^(?:float32|bfloat16): (\d+) GFLOP\/s$/gm);
  assert.ok(rates.length === 2 && rates.every((rate) => rate > 0));
});

test('loop and adapters: a loop of one’s own learns, and switching adapters changes the model and back', async () => {
  const learned = await example('loop', [model, at('own')]);
  const losses = numbers(learned, /loss ([\d.]+)/g);
  assert.ok(losses.length === 5 && losses.at(-1)! < losses[0]! / 4, learned);
  const out = await example('adapters', [model, at('own'), adapter]);
  const scores = Array.from(out.matchAll(/: (yes \S+, no \S+) \(\d+ ms\)/g), ([, score]) => score);
  assert.equal(scores.length, 4);
  assert.equal(scores[3], scores[0], 'the base as before');
  assert.equal(new Set(scores).size, 3, out);
});

test('every example was run, says how it is used, and is short', async (t) => {
  const files = readdirSync(join(packageRoot, 'examples')).filter((file) => file.endsWith('.ts'));
  const names = files
    .map((file) => file.replace('.ts', ''))
    .filter((name) => name !== 'quickstart' && name !== 'service');
  assert.deepEqual(names.sort(), [...ran].sort());
  for (const name of names) {
    const text = readFileSync(join(packageRoot, 'examples', `${name}.ts`), 'utf8');
    assert.ok(text.split('\n').length <= 41, `${name} is long`);
    assert.match(text, /^\/\*\*/);
  }
  for (const name of names.filter((name) => name !== 'doctor')) {
    const { code, err } = await node([join('examples', `${name}.ts`)]);
    assert.equal(code, 2);
    assert.ok(err.startsWith(`usage: node tools/run.cjs examples/${name}.ts `), err);
  }
  t.diagnostic(`${names.length} examples run`);
});

/** What is put in for the data of a recipe of several tasks. */
const several: Readonly<Record<string, { model: string; data: Readonly<Record<string, string>> }>> = {
  'several-tasks.yaml': { model: at('bert'), data: { spam: at('labelled.jsonl'), names: at('tags.conll') } },
};

test('every recipe runs with a model and data put in', async (t) => {
  const recipes = readdirSync(join(packageRoot, 'recipes')).filter((name) => name.endsWith('.yaml'));
  for (const name of recipes) {
    const full = ['full.yaml', 'digits-base.yaml'].includes(name);
    const [head, tasks] = [heads[name], Object.entries(several[name]?.data ?? {})];
    const filled = tasks.flatMap(([task, file]) =>
      [...['train', 'eval'].map((part) => [part, file]), ['max_length', 32]].map(([field, value]) => [
        `tasks.${task}.data.${field}`,
        value,
      ]),
    );
    const given = {
      model: several[name]?.model ?? head?.model ?? model,
      ...Object.fromEntries(filled),
      ...(tasks.length === 0 && { 'data.train': head?.data ?? at(full ? 'text.jsonl' : 'rows.jsonl') }),
      ...(head && { 'data.eval': head.data, 'data.max_length': 32 }),
      ...(head?.labels && { labels: head.labels }),
      // The tiny model has a layer of 44, which GGUF's blocks do not divide.
      ...(name === 'phone.yaml' && { 'method.1.exclude_modules': '[down_proj]' }),
      'train.steps': 3,
      'run.dir': at(name),
    };
    const set = Object.entries(given).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
    const { code, out, err } = await node(['bin/graft.js', 'train', join('recipes', name), ...set, '--json']);
    assert.equal(code, 0, err);
    const { losses, adapter: written } = JSON.parse(out.trim().split('\n').at(-1)!) as {
      losses: number[];
      adapter: string;
    };
    assert.ok(losses.length === 3 && losses.every((loss) => loss > 0 && loss < 20), `${name}: ${losses}`);
    assert.equal(written, at(name, full ? 'model' : 'adapter'));
    for (const folder of tasks.length > 0 ? tasks.map(([task]) => join(written, task)) : [written]) {
      assert.ok(existsSync(join(folder, full ? 'model.safetensors' : 'adapter_model.safetensors')), folder);
    }
  }
  assert.ok(recipes.length >= 8);
  t.diagnostic(`${recipes.length} recipes run`);
});
