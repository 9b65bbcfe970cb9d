/** Adapters from format to format: what comes out computes what went in, and what cannot be said is refused. */
import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { before } from 'node:test';
import { type AdapterFormat, convertAdapter, formatOf, loadAdapter } from '../../src/adapters/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import { openSafetensors, readJsonObject } from '../../src/io/index.ts';
import { loadModel } from '../../src/models/index.ts';
import { scope } from '../../src/tensor/index.ts';
import { assertRefused, graft } from '../e2e/cli.ts';
import { golden, integers, logitsOf, numbers, readTensors, relativeError, temporary } from '../support.ts';

before(() => startEngine());

/** Converts by turns; the directory of the last. */
function convertedBy(root: string, from: string, ...formats: AdapterFormat[]): string {
  return formats.reduce((dir, format, i) => {
    const to = join(root, `task${i}`);
    const { layers } = convertAdapter(dir, to, format);
    assert.ok(layers > 0);
    assert.equal(formatOf(to), format);
    return to;
  }, from);
}

const contents = (file: string) => {
  using source = openSafetensors(file);
  return new Map(
    [...source.entries].map(([name, { bytes, shape }]) => {
      const into = new Uint8Array(bytes);
      source.read(name, into);
      return [name, { shape, bytes: Buffer.from(into).toString('base64') }] as const;
    }),
  );
};

for (const name of ['lora-all-llama3', 'lora-bert', 'lora-gpt2', 'ia3-llama3']) {
  test(`${name} of AdapterHub, as PEFT's and back: the same logits, and the same function`, () => {
    using _ = scope();
    using out = temporary();
    const dir = golden('adapterhub', name);
    const { tensors, metadata } = readTensors(join(dir, 'golden.safetensors'));
    const { tolerance } = JSON.parse(String(metadata.get('provenance'))) as { tolerance: { logits: number } };
    const { base } = readJsonObject(join(dir, 'golden.json')) as { base: string };
    const logits = (adapter: string) => {
      using model = loadModel(golden(...base.split('/')));
      using _adapter = loadAdapter(model, adapter, 'own');
      return [0, 1].map((r) => logitsOf(model, integers(tensors.get(`ids.${r}`)!)));
    };
    const peft = convertedBy(out.path, join(dir, 'task'), 'peft');
    logits(peft).forEach((got, r) => {
      const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
      assert.ok(error <= tolerance.logits, `logits of row ${r} differ by ${error}`);
    });

    const back = join(out.path, 'task');
    convertAdapter(peft, back, 'adapterhub');
    const again = join(out.path, 'again');
    convertAdapter(back, again, 'peft');
    logits(again).forEach((got, r) => {
      const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
      assert.ok(error <= tolerance.logits, `there and back, logits of row ${r} differ by ${error}`);
    });
    // GPT-2's query, key and value come to one update of a higher rank.
    if (name === 'lora-gpt2') return;
    assert.deepEqual(contents(join(back, 'adapter.safetensors')), contents(join(dir, 'task', 'adapter.safetensors')));
    const [mine, theirs] = [back, join(dir, 'task')].map((at) => readJsonObject(join(at, 'adapter_config.json')));
    const facts = { ...theirs!, model_class: mine!.model_class, model_type: mine!.model_type };
    assert.deepEqual({ ...mine, hidden_size: 32 }, facts);
  });
}

for (const name of ['lora-bert-seqcls', 'lora-llama-seqcls']) {
  test(`${name} of PEFT, as AdapterHub's and back: head and all, bit for bit`, () => {
    using out = temporary();
    const dir = golden('peft', name);
    const peft = convertedBy(out.path, dir, 'adapterhub', 'peft');
    const [mine, theirs] = [peft, dir].map((at) => contents(join(at, 'adapter_model.safetensors')));
    assert.deepEqual(mine, theirs);
    assert.ok([...mine!.keys()].some((key) => /(classifier|score)\.weight$/.test(key)));
  });
}

const throughMlx = ['llama3-all-linear', 'llama3-patterns', 'llama3-rslora', 'qwen2-patterns', 'qwen2-rslora'];

for (const name of throughMlx) {
  test(`${name} of PEFT, as mlx-lm's and back: the same logits`, () => {
    using _ = scope();
    using out = temporary();
    const dir = golden('lora', name);
    const { tensors } = readTensors(join(dir, 'golden.safetensors'));
    const { base } = readJsonObject(join(dir, 'golden.json')) as { base: string };
    const mlx = join(out.path, 'mlx');
    convertAdapter(dir, mlx, 'mlx');
    using weights = openSafetensors(join(mlx, 'adapters.safetensors'));
    const { rank, keys } = readJsonObject(join(mlx, 'adapter_config.json')).lora_parameters as {
      rank: number;
      keys: string[];
    };
    for (const [key, { shape }] of weights.entries) {
      const [, path, what] = /^model\.layers\.\d+\.(.+)\.lora_([ab])$/.exec(key)!;
      assert.ok(keys.includes(path!));
      assert.equal(shape[what === 'a' ? 1 : 0], rank, 'the rank is inside: a [in, r], b [r, out]');
    }
    const peft = join(out.path, 'peft');
    convertAdapter(mlx, peft, 'peft');
    using model = loadModel(golden('models', base));
    using _adapter = loadAdapter(model, peft);
    for (const r of [0, 1]) {
      const got = logitsOf(model, integers(tensors.get(`ids.${r}`)!));
      const error = relativeError(got, numbers(tensors.get(`logits.${r}`)!));
      assert.ok(error <= 2e-5, `logits of row ${r} differ by ${error}`);
    }
  });
}

test('what a format cannot say exactly is refused with the reason', () => {
  using out = temporary();
  const refused: readonly [string, AdapterFormat, RegExp][] = [
    [golden('lora', 'llama3-all-linear'), 'peft', /already in the format peft/],
    [golden('lora', 'llama3-all-linear'), 'adapterhub', /AdapterHub cannot update the layer .*(gate|o)_proj/],
    [golden('lora', 'llama2-embed-tokens'), 'mlx', /no other format supports the tensor .*embed_tokens/],
    [
      golden('lora', 'llama2-modules-to-save'),
      'mlx',
      /holds whole modules \(modules_to_save: lm_head\), which no other format supports/,
    ],
    [golden('lora', 'qwen2-bias-lora-only'), 'mlx', /no other format supports the tensor .*bias/],
    [golden('peft', 'dora-llama3'), 'mlx', /DoRA, which no other format supports/],
    [golden('peft', 'lora-bias-llama3'), 'adapterhub', /biases of updates/],
    [golden('peft', 'ia3-llama3'), 'adapterhub', /scales the input of .*, and other formats scale outputs only/],
    [golden('peft', 'lora-gpt2'), 'mlx', /differently from transformer\.h/],
    [golden('peft', 'lora-llama-seqcls'), 'mlx', /does not support a task's head/],
    [golden('peft', 'prefix-llama3'), 'adapterhub', /counts the positions of a text after its prefix/],
    [golden('peft', 'prompt-llama3'), 'adapterhub', /no other format supports adapters of the type PROMPT_TUNING/],
    [golden('adapterhub', 'prefix-llama3', 'task'), 'peft', /the same prefix acts differently/],
    [golden('adapterhub', 'seq-bn-llama3', 'task'), 'peft', /no other format supports AdapterHub's bottleneck adapter/],
    [golden('adapterhub', 'fuse-llama3', 'fusion'), 'peft', /a fusion of bottleneck adapters/],
    [golden('adapterhub', 'ia3-llama3', 'task'), 'mlx', /mlx-lm supports LoRA only/],
    [golden('models', 'llama3'), 'peft', /not an adapter of PEFT, AdapterHub, mlx-lm or llama\.cpp/],
  ];
  for (const [from, to, why] of refused) {
    assert.throws(() => convertAdapter(from, join(out.path, 'x'), to), why, `${from} to ${to}`);
  }
  assert.equal(refused.length, 17);
  // Other ways to train of mlx-lm.
  const mlx = join(out.path, 'mlx');
  convertAdapter(golden('lora', 'llama3-patterns'), mlx, 'mlx');
  for (const kind of ['full', 'dora']) {
    const dir = join(out.path, kind);
    cpSync(mlx, dir, { recursive: true });
    const file = join(dir, 'adapter_config.json');
    writeFileSync(file, readFileSync(file, 'utf8').replace('"fine_tune_type": "lora"', `"fine_tune_type": "${kind}"`));
    assert.throws(() => convertAdapter(dir, join(out.path, 'y'), 'peft'), new RegExp(`mlx-lm's ${kind} has no`));
  }
});

test('by command: what came out, a refusal, and what reads the result', () => {
  using out = temporary();
  const hub = golden('adapterhub', 'lora-all-llama3', 'task');
  const mlx = join(out.path, 'mlx');
  const { status, stdout } = graft(out.path, ['convert', hub, '--to', 'mlx', '--out', mlx, '--json']);
  assert.equal(status, 0);
  assert.deepEqual(JSON.parse(stdout), { from: 'adapterhub', to: 'mlx', out: mlx, layers: 15, left_out: [] });
  assertRefused(graft(out.path, ['convert', hub, '--to', 'peft', '--out', mlx]), 2, /already/);
  assertRefused(graft(out.path, ['inspect', mlx]), 1, /mlx-lm's format, .* graft convert --to peft/);
  const seq = golden('adapterhub', 'seq-bn-llama3', 'task');
  assertRefused(graft(out.path, ['convert', seq, '--to', 'peft', '--out', 'x']), 2, /no other format supports/);
  const fused = graft(out.path, ['inspect', golden('adapterhub', 'fuse-llama3', 'fusion'), '--json']);
  const { tensors, about } = JSON.parse(fused.stdout) as { tensors: number; about: { method: string } };
  assert.deepEqual([tensors, about.method], [51, 'fusion']);
});

test('settings of quantisation-aware training, which no other format has a place for, are named', () => {
  using dir = temporary();
  const from = join(dir.path, 'from');
  cpSync(golden('lora', 'llama3-all-linear'), from, { recursive: true });
  writeFileSync(join(from, 'graft.json'), JSON.stringify({ settings: [{ type: 'qat', weight: 'q4_0' }] }));
  const { leftOut } = convertAdapter(from, join(dir.path, 'mlx'), 'mlx');
  assert.deepEqual(leftOut, ['qat']);
  const { status, stdout, stderr } = graft(dir.path, ['convert', from, '--to', 'mlx', '--out', 'again']);
  assert.equal(status, 0, stderr);
  assert.match(stdout, /Left out, since mlx has no place for them: the settings of qat\n/);
  const combined = graft(dir.path, ['combine', from, from, '--weights', '1', '1', '--out', 'both']);
  assert.equal(combined.status, 0, combined.stderr);
  assert.match(combined.stdout, /Left out, since they are for one adapter: the settings of qat\n/);
});
