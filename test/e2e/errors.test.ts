import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { after } from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { golden } from '../support.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-errors-'));
after(() => rmSync(dir, { recursive: true }));

const write = (name: string, text: string) => {
  writeFileSync(join(dir, name), text);
  return name;
};

/** A recipe on the tiny model; `change` replaces parts of it. */
const recipe = (change: object = {}) =>
  write(
    'recipe.yaml',
    JSON.stringify({
      model: golden('models', 'llama3'),
      method: { type: 'lora', target_modules: 'all-linear' },
      data: { train: 'rows.jsonl', format: 'tokens' },
      run: { dir: 'out' },
      ...change,
    }),
  );

const damaged = () => {
  cpSync(golden('models', 'llama3'), join(dir, 'cut'), { recursive: true });
  truncateSync(join(dir, 'cut', 'model.safetensors'), 5000);
  return 'cut';
};

const otherConfig = () => {
  cpSync(golden('models', 'llama3'), join(dir, 'mixed'), { recursive: true });
  cpSync(golden('models', 'qwen3', 'config.json'), join(dir, 'mixed', 'config.json'));
  return 'mixed';
};

/** Training on a file of these lines. */
const trainOn = (rows: string, change: object = {}) => {
  write('rows.jsonl', rows);
  return ['train', recipe(change)];
};

const tokens = '{"ids": [1, 2, 3]}\n';

/** What goes wrong, the command, its exit code, and what the one sentence must say. */
const cases: [string, () => string[], 1 | 2, RegExp][] = [
  [
    'all mistakes of a recipe at once',
    () => ['train', recipe({ method: { type: 'lora', target_moduls: 'x' }, trian: 1 })],
    2,
    /unknown key 'target_moduls' \(did you mean 'target_modules'\?\).*unknown key 'trian' \(did you mean 'train'\?\)/,
  ],
  ['a missing key', () => ['train', recipe({ data: {} })], 2, /data\.train is missing/],
  ['an unknown method', () => ['train', recipe({ method: { type: 'lore' } })], 2, /method\.type.*lora/],
  ['bad YAML', () => ['train', write('bad.yaml', 'model: [a\nb: }')], 2, /bad\.yaml:\d+:\d+: this is not valid YAML/],
  [
    'a mapping as the name of a field',
    () => ['train', write('keys.yaml', 'model: m\ndata: { { text: body }: rows.jsonl }')],
    2,
    /keys\.yaml:2:9: the name of a field is a mapping or a list, and not a text/,
  ],
  ['no recipe', () => ['train', 'nowhere.yaml'], 2, /nowhere\.yaml: the recipe file cannot be read/],
  ['no model', () => ['train', recipe({ model: 'nowhere.gguf' })], 2, /nowhere\.gguf/],
  [
    'no data',
    () => ['train', recipe({ data: { train: 'none.jsonl' } })],
    2,
    /none\.jsonl: the data file was not found/,
  ],
  ['a bad line', () => trainOn(`${tokens}{"ids": [1,\n`), 1, /rows\.jsonl:2: the line is not valid JSON/],
  [
    'an id outside the vocabulary',
    () => trainOn('{"ids": [1, 999]}\n'),
    1,
    /rows\.jsonl:1: ids\[1\] is 999, outside the vocabulary of 140/,
  ],
  [
    'a label outside the vocabulary',
    () => trainOn('{"ids": [1, 2], "labels": [-100, 999]}\n'),
    1,
    /labels\[1\] is 999/,
  ],
  [
    'no label',
    () => trainOn('{"ids": [1, 2], "labels": [-100, -100]}\n'),
    1,
    /none of the 1 rows has a token to learn/,
  ],
  [
    'a split with nothing left',
    () => trainOn(tokens, { data: { train: 'rows.jsonl', format: 'tokens', held_out: 5 } }),
    2,
    /held_out 5 of 1 rows leaves 0/,
  ],
  [
    'a target that is not there',
    () => trainOn(tokens, { method: { type: 'lora', target_modules: ['q_prj'] } }),
    2,
    /selects no module.*did you mean 'q_proj'/i,
  ],
  [
    'all targets left out',
    () =>
      trainOn(tokens, { method: { type: 'lora', target_modules: ['q_proj'], exclude_modules: ['q_proj', 'head'] } }),
    2,
    /exclude_modules \["q_proj","head"\] leaves out the 3 modules that target_modules selects: q_proj\. Name fewer/,
  ],
  [
    'layers that are not there',
    () => trainOn(tokens, { method: { type: 'lora', target_modules: ['q_proj'], layers_to_transform: [7] } }),
    2,
    /layers_to_transform \[7\] has none of the 3 modules that target_modules selects.*counted from 0/,
  ],
  [
    'a cut safetensors',
    () => ['logits', '--model', damaged(), '--ids', write('ids.json', '[[1]]'), '--out', 'o'],
    1,
    /model\.safetensors/,
  ],
  [
    'weights of another config',
    () => ['logits', '--model', otherConfig(), '--ids', write('ids.json', '[[1]]'), '--out', 'o'],
    1,
    /the weights do not match the config: .*requires/,
  ],
  [
    'an adapter of another base',
    () => [
      'logits',
      '--model',
      golden('models', 'qwen2'),
      '--adapter',
      golden('lora', 'llama3-all-linear'),
      '--ids',
      write('ids.json', '[[1]]'),
      '--out',
      'o',
    ],
    1,
    /does not fit this base: .*lora_A.*lora_B/,
  ],
  [
    'no adapter',
    () => [
      'logits',
      '--model',
      golden('models', 'qwen2'),
      '--adapter',
      '.',
      '--ids',
      write('ids.json', '[[1]]'),
      '--out',
      'o',
    ],
    1,
    /no adapter/,
  ],
  [
    'ids that are none',
    () => ['logits', '--model', golden('models', 'qwen2'), '--ids', write('ids.json', '{"a": 1}'), '--out', 'o'],
    2,
    /rows of whole numbers/,
  ],
  [
    'an option that is not there',
    () => ['generate', '--model', 'x', '--prompt', 'y', '--adaptor', 'z'],
    2,
    /unknown option '--adaptor'/,
  ],
  [
    'adapters combined with unequal ranks',
    () => [
      'combine',
      ...['a', 'c'].map((name) => golden('peft', 'weighted', name)),
      ...['--weights', '1', '-0.5', '--how', 'ties', '--out', 'o'],
    ],
    2,
    /the adapters have ranks 4, 6, and ties needs equal ranks\. Use cat, svd/,
  ],
  [
    'a weight that is no number',
    () => ['combine', golden('peft', 'weighted', 'a'), '--weights', 'much', '--out', 'o'],
    2,
    /--weights.*must be a number/,
  ],
  [
    'PiSSA on a packed base',
    () =>
      trainOn(tokens, {
        model: golden('gguf', 'llama.gguf'),
        quantize: 'int8',
        method: { type: 'lora', init_lora_weights: 'pissa' },
      }),
    2,
    /is quantised, and pissa needs dense weights\. Load the model with quantize: none/,
  ],
  [
    'a schedule of ranks that does not fit the run',
    () => trainOn(tokens, { method: { type: 'adalora', tinit: 1 }, train: { steps: 1, batch_size: 1 } }),
    2,
    /tinit 1 and tfinal 0 leave no step to prune ranks: the run has 1/,
  ],
  [
    'an option out of range',
    () => ['logits', '--model', 'x', '--ids', 'y', '--out', 'z', '--threads', '0'],
    2,
    /an integer above 0/,
  ],
  [
    'a setting that this way of combining does not read',
    () => ['combine', golden('peft', 'weighted', 'a'), '--weights', '1', '--density', '0.3', '--out', 'o'],
    2,
    /density: cat does not read density\. Leave it out; it is for ties, /,
  ],
  [
    'settings of sampling without sampling',
    () => ['generate', '--model', golden('models', 'qwen2'), '--prompt', 'a', '--top-k', '5'],
    2,
    /top-k is for sampling, and at temperature 0 the likeliest token is always taken/,
  ],
  [
    'a base where none is read',
    () => [
      ...['convert', golden('lora', 'llama3-all-linear'), '--to', 'mlx'],
      ...['--base', golden('models', 'llama3'), '--out', 'o'],
    ],
    2,
    /--base.*base is not read from peft to mlx\. Leave it out: it is for gguf/,
  ],
  [
    'a folder of adapters that is looked at, and not there',
    () => ['serve', '--model', golden('models', 'llama3'), '--rescan-seconds', '5'],
    2,
    /--rescan-seconds.*there is no folder of adapters to look at/,
  ],
  [
    'settings of generation for a model with a head',
    () => ['serve', '--model', golden('families', 'bert-seqcls'), '--max-queue', '5'],
    2,
    /maxQueue: a model of sequence-classification generates no text, and maxQueue is for that/,
  ],
  [
    'a load of no request',
    () => ['bench', 'serve', '--models', 'base', '--seconds', '1e-9'],
    2,
    /--seconds: no request arrives in 1e-9 s at 1 a second\. Raise/,
  ],
];

for (const [name, args, code, sentence] of cases) {
  test(`${name}: exit code ${code} and one clear sentence`, () => {
    const { status, stderr } = spawnSync(process.execPath, [join(packageRoot, 'bin', 'graft.js'), ...args()], {
      cwd: dir,
      encoding: 'utf8',
    });
    assert.match(stderr, sentence);
    assert.doesNotMatch(stderr, /\n\s+at .*:\d+:\d+/, 'no stack trace');
    assert.equal(status, code);
    assert.ok(!existsSync(join(dir, 'o')) && !existsSync(join(dir, 'out')), 'nothing was written');
  });
}

test('every case was looked at', () => assert.equal(cases.length, 33));
