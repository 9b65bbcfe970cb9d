/** What goes wrong in a run or with the machine, made to happen for real, through the command line. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test, { after } from 'node:test';
import { setTimeout as wait } from 'node:timers/promises';
import { engineStatus } from '../../src/engine/index.ts';
import { openSafetensors } from '../../src/io/index.ts';
import { tinyClassifier } from '../samples/tiny.ts';
import { golden } from '../support.ts';
import { assertRefused, entry, graft } from './cli.ts';

const dir = mkdtempSync(join(tmpdir(), 'graft-failures-'));
after(() => rmSync(dir, { recursive: true }));
const at = (...parts: string[]) => join(dir, ...parts);
const torch = engineStatus().torch!.root;

const rows = Array.from({ length: 16 }, (_, i) => JSON.stringify({ ids: [1, 2, 3, 4 + i, 5] }));
writeFileSync(at('rows.jsonl'), rows.join('\n'));
writeFileSync(at('ids.json'), '[[1, 2]]');
writeFileSync(at('a-file'), 'kept');

/** Writes a recipe on the tiny model; returns the command. */
function train(run: string, change: object = {}, settings: object = {}): string[] {
  const recipe = {
    model: golden('models', 'llama3'),
    method: { type: 'lora', target_modules: 'all-linear' },
    data: { train: 'rows.jsonl', format: 'tokens' },
    train: { batch_size: 2, ...settings },
    run: { dir: run, checkpoint_every: 1 },
    ...change,
  };
  writeFileSync(at(`${run.replaceAll('/', '-')}.yaml`), JSON.stringify(recipe));
  return ['train', `${run.replaceAll('/', '-')}.yaml`];
}

/** A tokenizer of a few words for the tiny model in this directory. */
function writeTokenizer(model: string): void {
  const words = ['[UNK]', 'a', 'b', 'c', 'A', 'B', 'C', 'user', 'assistant'];
  const vocab = Object.fromEntries(words.map((word, i) => [word, i]));
  const tokenizer = {
    version: '1.0',
    added_tokens: [],
    pre_tokenizer: { type: 'Whitespace' },
    model: { type: 'WordLevel', vocab, unk_token: '[UNK]' },
  };
  writeFileSync(at(model, 'tokenizer.json'), JSON.stringify(tokenizer));
}

const logits = ['logits', '--model', golden('models', 'llama3'), '--ids', 'ids.json', '--out'];
const checkpoints = (run: string) => (existsSync(at(run, 'checkpoints')) ? readdirSync(at(run, 'checkpoints')) : []);

test('a learning rate that is too high: step, rows, cause, and a good checkpoint', () => {
  assertRefused(
    graft(dir, train('diverged', {}, { lr: 1e30 })),
    1,
    /step 2: the loss is not finite\. Its rows are \S+rows\.jsonl:\d+, \S+rows\.jsonl:\d+\. The likely cause: the learning rate of 1e\+30 is too high: .* The last good checkpoint is \S+step-0000001\. Lower train\.lr/,
  );
  assert.deepEqual(checkpoints('diverged'), ['step-0000001']);
  using saved = openSafetensors(at('diverged', 'checkpoints', 'step-0000001', 'parameters.safetensors'));
  let numbers = 0;
  for (const [name, { bytes }] of saved.entries) {
    const values = new Float32Array(bytes / 4);
    saved.read(name, new Uint8Array(values.buffer));
    assert.ok(values.every(Number.isFinite), name);
    numbers += values.length;
  }
  assert.equal(numbers, 10_848);
  assert.ok(!existsSync(at('diverged', 'adapter')));
});

test('an update that leaves what float32 holds is not saved', () => {
  const ended = graft(dir, train('overflow', { method: { type: 'full' } }, { lr: 1e38 }));
  assertRefused(
    ended,
    1,
    /step 1: after the optimizer's update \S+ is NaN or infinite.*overflows float32\. There is no checkpoint yet/,
  );
  assert.deepEqual(checkpoints('overflow'), []);
});

test('a base that holds Infinity', () => {
  cpSync(golden('models', 'llama3'), at('infinite'), { recursive: true });
  const file = readFileSync(at('infinite', 'model.safetensors'));
  const length = Number(file.readBigUInt64LE(0));
  const header = JSON.parse(file.toString('utf8', 8, 8 + length));
  file.writeFloatLE(Number.POSITIVE_INFINITY, 8 + length + header['model.norm.weight'].data_offsets[0]);
  writeFileSync(at('infinite', 'model.safetensors'), file);
  assertRefused(
    graft(dir, train('from-infinite', { model: at('infinite') })),
    1,
    /step 1: the loss is not finite.*the base model holds NaN or infinite values, in model\.norm\.weight/,
  );
  writeTokenizer('infinite');
  writeFileSync(at('asked.jsonl'), '{"prompt": "a b", "completion": "c"}\n');
  assertRefused(
    graft(dir, ['eval', '--model', 'infinite', '--data', 'asked.jsonl']),
    1,
    /infinite: the loss .* not finite: there are NaN or infinite values in model\.norm\.weight\. Check the model/,
  );
  for (const temperature of ['0', '1'])
    assertRefused(
      graft(dir, ['generate', '--model', 'infinite', '--prompt', 'a', '--temperature', temperature]),
      1,
      /the logit of token \d+ is (infinite|not a number)\. Check the weights/,
    );
});

test('eval tells what of the rows it cuts, leaves out and does not use', () => {
  cpSync(golden('models', 'llama3'), at('telling'), { recursive: true });
  writeTokenizer('telling');
  const lines = ['{"prompt": "a b", "completion": "c d e f", "source": "web"}', '{"prompt": "a", "completion": "b"}'];
  writeFileSync(at('told.jsonl'), lines.join('\n'));
  const command = ['eval', '--model', 'telling', '--data', 'told.jsonl', '--max-length', '5'];
  const { stdout, stderr } = graft(dir, command);
  assert.match(stdout, /^loss /);
  assert.match(stderr, /^note: told\.jsonl: \d rows? .*longer than max_length/m);
  assert.match(stderr, /^note: told\.jsonl: the column 'source' is not used \(1 row\)/m);
  assert.equal(JSON.parse(graft(dir, [...command, '--json']).stdout).notes.length >= 2, true);
});

test('a file that may not grow further: nothing half-written under a final name', () => {
  const command = train('limited', { run: { dir: 'limited', checkpoint_every: 1 } });
  const limited = spawnSync('bash', ['-c', 'ulimit -f 16; exec "$0" "$@"', process.execPath, entry, ...command], {
    cwd: dir,
    encoding: 'utf8',
  });
  assertRefused(
    limited,
    1,
    /checkpoints\/step-0000001\/\w+\.safetensors: The file is larger than .*could not be written/,
  );
  assert.deepEqual(checkpoints('limited'), []);
  assert.ok(!existsSync(at('limited', 'adapter')));
});

test('a full disk: nothing half-written under a final name', (t) => {
  const command = train('full', { run: { dir: '/mnt/full', checkpoint_every: 1, keep_checkpoints: 9 } });
  const script = 'mount -t tmpfs -o size=300k none /mnt && "$0" "$@"; echo "code $?"; find /mnt/full';
  const inside = spawnSync('unshare', ['-Urm', 'sh', '-c', script, process.execPath, entry, ...command], {
    cwd: dir,
    encoding: 'utf8',
  });
  if (!inside.stdout.includes('/mnt/full')) return t.skip('no user namespaces here');
  assertRefused(
    { ...inside, status: 1 },
    1,
    /checkpoints\/step-000000\d\/\w+\.safetensors: The disk is full \(0 MB free\): .*Free some space/,
  );
  assert.match(inside.stdout, /code 1\n/);
  const left = inside.stdout.split('\n').filter((line) => line.includes('checkpoints/'));
  const whole = new Set(left.map((line) => /step-\d+/.exec(line)?.[0]));
  assert.ok(whole.size >= 1 && !left.some((line) => line.includes('.new')), inside.stdout);
  for (const name of whole)
    assert.equal(left.filter((line) => line.includes(`/${name}`)).length, 4, `${name} has its three files`);
  assert.ok(!inside.stdout.includes('/adapter'));
});

test('a full disk while a quantised model is written: nothing is left of it', (t) => {
  for (const [to, out] of [
    ['float32', '/mnt/m.gguf'],
    ['int8', '/mnt/int8'],
  ] as const) {
    const command = ['quantize', '--model', golden('models', 'llama2'), '--to', to, '--out', out];
    const script = 'mount -t tmpfs -o size=16k none /mnt && "$0" "$@"; echo "code $?"; find /mnt';
    const inside = spawnSync('unshare', ['-Urm', 'sh', '-c', script, process.execPath, entry, ...command], {
      cwd: dir,
      encoding: 'utf8',
    });
    if (!inside.stdout.includes('/mnt')) return t.skip('no user namespaces here');
    assertRefused(
      { ...inside, status: 1 },
      1,
      /(m\.gguf|int8\/model\.safetensors): The disk is full \(.*Free some space/,
    );
    assert.equal(inside.stdout, 'code 1\n/mnt\n');
  }
});

test('a full disk while predictions are written: the file and its disk are named, and the retry finds nothing in its way', (t) => {
  const model = tinyClassifier(at('classifier'));
  writeFileSync(at('texts.jsonl'), '{"text": "free cash"}\n'.repeat(300));
  writeFileSync(at('few.jsonl'), '{"text": "free cash"}\n'.repeat(3));
  const predict = (data: string) =>
    `"$0" "$1" predict --model ${model} --data ${data} --out /mnt/out.jsonl; echo "code $?"; find /mnt`;
  const script = `mount -t tmpfs -o size=16k none /mnt && ${predict('texts.jsonl')}; ${predict('few.jsonl')}`;
  const inside = spawnSync('unshare', ['-Urm', 'sh', '-c', script, process.execPath, entry], {
    cwd: dir,
    encoding: 'utf8',
  });
  if (!inside.stdout.includes('/mnt')) return t.skip('no user namespaces here');
  assertRefused(
    { ...inside, status: 1 },
    1,
    /^graft: \/mnt\/out\.jsonl: The disk is full \(0 MB free\): it could not be written\. Free some space/,
  );
  assert.equal(inside.stdout, 'code 1\n/mnt\nWrote 3 predictions to /mnt/out.jsonl\ncode 0\n/mnt\n/mnt/out.jsonl\n');
});

test('a directory in use; Ctrl-C leaves a checkpoint, and the run goes on from it as if never stopped', async () => {
  const long = { epochs: 30, lr: 1e-3 };
  const stopped = train('stopped', {}, long);
  const first = spawn(process.execPath, [entry, ...stopped, '--json'], { cwd: dir });
  let [stdout, stderr] = ['', ''];
  first.stdout.on('data', (chunk) => (stdout += chunk));
  first.stderr.on('data', (chunk) => (stderr += chunk));
  while (!stdout.includes('"step":5,')) {
    assert.equal(first.exitCode, null, stderr);
    await wait(10);
  }
  first.kill('SIGSTOP'); // or it would end before the second has started
  assertRefused(graft(dir, stopped), 1, new RegExp(`stopped: This directory is in use by process ${first.pid} since`));
  first.kill('SIGINT');
  first.kill('SIGCONT');
  const [status] = (await once(first, 'close')) as [number];
  assertRefused({ status, stdout, stderr }, 130, /step-\d+: stopped after step \d+ of 240.*Run the same command again/);
  assert.ok(checkpoints('stopped').length > 0 && !existsSync(at('stopped', 'adapter')));

  const losses = (command: string[]) => {
    const { stdout: out } = graft(dir, [...command, '--json']);
    return JSON.parse(out.trim().split('\n').at(-1)!) as { losses: number[]; resumed_from: number };
  };
  const resumed = losses(stopped);
  assert.ok(resumed.resumed_from >= 5);
  assert.deepEqual(resumed.losses, losses(train('whole', {}, long)).losses);
});

/** Starts a command, does `act` once its output has `text`, and returns how it ended. */
async function interrupted(command: readonly string[], text: string, act: (child: ChildProcess) => void) {
  const child = spawn(process.execPath, [entry, ...command, '--json'], { cwd: dir });
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (chunk) => (stdout += chunk));
  child.stderr.on('data', (chunk) => (stderr += chunk));
  while (!stdout.includes(text)) {
    assert.equal(child.exitCode, null, stderr);
    await wait(10);
  }
  act(child);
  const [status] = (await once(child, 'close')) as [number];
  return { status, stdout, stderr };
}

const signals = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
for (const [signal, code] of Object.entries(signals)) {
  test(`${signal} during training: a checkpoint, one sentence, exit code ${code}`, async () => {
    const command = train(signal, {}, { steps: 100_000 });
    const ended = await interrupted(command, '"step":3,', (child) => child.kill(signal as NodeJS.Signals));
    assertRefused(
      ended,
      code,
      /step-\d+: stopped after step \d+ of 100000; a checkpoint was saved\. Run the same command/,
    );
    assert.ok(checkpoints(signal).length > 0);
  });
}

test('an output that is closed during training: a checkpoint, exit code 141', async () => {
  const command = train('closed', {}, { steps: 100_000 });
  const ended = await interrupted(command, '"step":3,', (child) => child.stdout!.destroy());
  assertRefused(ended, 141, /stopped after step \d+ of 100000; a checkpoint was saved/);
  assert.ok(checkpoints('closed').length > 0);
});

test('a terminal that is closed during training: a checkpoint', async () => {
  const command = train('terminal', {}, { steps: 100_000 });
  const script = `import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
said = b''
while b'step 1' not in said and b'/100000' not in said: said += os.read(terminal, 9999)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`;
  const closed = spawnSync('python3', ['-c', script, process.execPath, entry, ...command], {
    cwd: dir,
    encoding: 'utf8',
  });
  assert.equal(closed.stdout, '129\n', closed.stderr);
  assert.ok(checkpoints('terminal').length > 0);
});

test('a finished run says so, with exit code 0; --more-epochs goes on with it', () => {
  const command = train('finished', { eval: {}, data: { train: 'rows.jsonl', format: 'tokens', held_out: 4 } });
  const first = graft(dir, command);
  assert.equal(first.status, 0, first.stderr);
  const again = graft(dir, command);
  assert.equal(again.status, 0, again.stderr);
  assert.match(
    again.stderr,
    /This run is finished, after 6 steps\. More train\.steps or --more-epochs go on with it, --fresh starts over/,
  );
  const saved = /Saved \S+adapter \(after step \d of 6: held-out loss [\d.]+, perplexity [\d.]+\)/;
  assert.match(first.stdout, saved);
  assert.equal(saved.exec(again.stdout)?.[0], saved.exec(first.stdout)?.[0]);
  const more = graft(dir, [...command, '--more-epochs', '0.5', '--json']);
  assert.equal(more.status, 0, more.stderr);
  assert.equal(JSON.parse(more.stdout.trim().split('\n').at(-1)!).losses.length, 9);
  const none = graft(dir, [...command, '--more-epochs', '0']);
  assert.ok(none.status === 2 && none.stderr.includes('It must be a number above 0'), none.stderr);
});

test('no compiler', () => {
  mkdirSync(at('bin'), { recursive: true });
  const env = { PATH: at('bin'), CXX: undefined, GRAFT_CACHE: at('empty'), GRAFT_LIBTORCH: torch };
  assertRefused(
    graft(dir, [...logits, 'o'], env),
    1,
    /this machine lacks CMake and a C\+\+ compiler \(c\+\+\)\. Install them.*apt-get install/,
  );
});

test('no network and no LibTorch', () => {
  const env = {
    PATH: `${at('shim')}:${process.env.PATH}`,
    GRAFT_CACHE: at('empty'),
    GRAFT_LIBTORCH: undefined,
    PIP_INDEX_URL: 'http://127.0.0.1:2/simple',
    PIP_EXTRA_INDEX_URL: '',
    PIP_FIND_LINKS: '',
    PIP_NO_INDEX: undefined,
    PIP_RETRIES: '0',
  };
  // A python3 that has pip and no torch, whatever this machine has.
  mkdirSync(at('shim'), { recursive: true });
  const real = spawnSync('sh', ['-c', 'command -v python3'], { encoding: 'utf8' }).stdout.trim();
  writeFileSync(at('shim', 'python3'), `#!/bin/sh\ncase "$1" in -c) exit 0;; esac\nexec ${real} "$@"\n`, {
    mode: 0o755,
  });
  assertRefused(
    graft(dir, ['doctor'], env),
    1,
    /LibTorch could not be downloaded: pip found it in no package index\. Check the network, or install torch 2\.11 yourself/,
  );
  assert.deepEqual(readdirSync(at('empty', 'libtorch')), [], 'nothing of it is left');
});

test('no python3', () => {
  const env = { PATH: at('bin'), GRAFT_CACHE: at('empty'), GRAFT_LIBTORCH: undefined };
  assertRefused(graft(dir, ['doctor'], env), 1, /could not be downloaded: python3 with pip is not on the PATH/);
});

test('another LibTorch, or none, where GRAFT_LIBTORCH points', () => {
  for (const part of ['lib', 'include']) mkdirSync(at('old', part), { recursive: true });
  cpSync(join(torch, 'lib', 'libtorch_cpu.so'), at('old', 'lib', 'libtorch_cpu.so'), { dereference: false });
  const named = { GRAFT_LIBTORCH: at('old') };
  assertRefused(
    graft(dir, ['doctor'], named),
    1,
    /old: GRAFT_LIBTORCH is LibTorch of unknown version, and Graft needs/,
  );
  writeFileSync(at('old', 'version.py'), "__version__ = '2.5.1+cpu'\n");
  assertRefused(graft(dir, ['doctor'], named), 1, /LibTorch 2\.5\.1\+cpu, and Graft needs 2\.11 or later.*unset it/);
  rmSync(at('old'), { recursive: true });
  for (const nonsense of ['/nowhere', dir])
    assertRefused(
      graft(dir, ['doctor'], { GRAFT_LIBTORCH: nonsense }),
      1,
      /names no directory with lib\/libtorch_cpu\.so/,
    );
});

test('no network and a hub id', () => {
  const env = { HF_ENDPOINT: 'http://127.0.0.1:2', GRAFT_CACHE: at('empty'), GRAFT_LIBTORCH: torch };
  const ended = graft(dir, ['pull', 'some/model'], env);
  assertRefused(
    ended,
    1,
    /some\/model: http:\/\/127\.0\.0\.1:2 could not be reached: .*give the path of a local directory/,
  );
});

/** The command, its exit code, and what is said. */
const paths: [string, () => string[], number, RegExp][] = [
  [
    'a run directory that is a file',
    () => train('a-file'),
    2,
    /a-file: A file or directory with this name exists already/,
  ],
  ['a run directory in a file', () => train('a-file/run'), 2, /a-file: .*Choose another path/],
  ['a run directory where nothing can be made', () => train('x', { run: { dir: '/proc/x/y' } }), 1, /\/proc\/x: /],
  ['an output in a file', () => [...logits, 'a-file/o'], 2, /a-file: /],
  ['an output that is a directory', () => [...logits, '.'], 2, /exists already and is not a regular file/],
  ['an output where nothing can be made', () => [...logits, '/proc/x/o'], 1, /\/proc\/x: /],
  [
    'a merge into what is there',
    () => [
      'merge',
      '--model',
      golden('models', 'llama3'),
      '--adapter',
      golden('lora', 'llama3-all-linear'),
      '--out',
      '.',
    ],
    2,
    /The path exists already.*Choose another path/,
  ],
  ['a misspelt model', () => ['inspect', join(dirname(golden('models')), 'modles')], 2, /Did you mean \S+models\?/],
  [
    'misspelt data',
    () => train('y', { data: { train: 'row.jsonl' } }),
    2,
    /row\.jsonl: .*Did you mean \S+rows\.jsonl\?/,
  ],
  [
    'a setting under a value',
    () => [...train('s'), '--set', 'model.x=3'],
    2,
    /--set: 'model\.x' names a field inside a value/,
  ],
  [
    'a setting that is no YAML',
    () => [...train('s'), '--set', 'train.lr=[1'],
    2,
    /--set: the value of .* is not valid YAML/,
  ],
  [
    'all tensors of an adapter for another base',
    () => [
      'logits',
      '--model',
      golden('models', 'qwen2'),
      '--adapter',
      golden('lora', 'llama3-all-linear'),
      '--ids',
      'ids.json',
      '--out',
      'o',
      '--json',
    ],
    1,
    /does not fit this base: .*lora_A.*asks for.*; and \d+ more/,
  ],
  ['a misspelt recipe', () => [train('recipe')[0]!, 'recipes.yaml'], 2, /Did you mean recipe\.yaml\?/],
  [
    'an empty data file',
    () => {
      writeFileSync(at('none.jsonl'), '\n');
      return train('z', { data: { train: 'none.jsonl' } });
    },
    1,
    /none\.jsonl: the file has no rows/,
  ],
];
for (const [name, args, code, sentence] of paths) {
  test(name, () => {
    assertRefused(graft(dir, args()), code, sentence);
    assert.equal(readFileSync(at('a-file'), 'utf8'), 'kept');
  });
}

test('a chat template without marks whose turns cannot be told; an answer beyond max_length', () => {
  cpSync(golden('models', 'llama3'), at('chat'), { recursive: true });
  writeTokenizer('chat');
  const template = (text: string) =>
    writeFileSync(at('chat', 'tokenizer_config.json'), JSON.stringify({ chat_template: text }));
  const turns = ['a b c', 'c b'].map((content, i) => ({ role: ['user', 'assistant'][i], content }));
  writeFileSync(at('chat.jsonl'), `${JSON.stringify({ messages: turns })}\n`);
  let runs = 0;
  const run = (data: object) =>
    graft(dir, train(`talk${runs++}`, { model: at('chat'), data: { train: 'chat.jsonl', ...data } }, { steps: 1 }));

  template('{% for m in messages | reverse %}{{ m.content | upper }} {% endfor %}');
  assertRefused(run({}), 1, /chat\.jsonl:1: what the model learns.*in another order.*train on all tokens/);
  assert.equal(run({ train_on: 'all' }).status, 0);
  template('{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}');
  assertRefused(run({ max_length: 4 }), 1, /chat\.jsonl:1: none of the 1 rows has.*Raise max_length above 4/);
  assert.equal(run({}).status, 0);
});
