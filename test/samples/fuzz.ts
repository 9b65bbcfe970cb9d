/**
 * Damaged files over every reader of what comes from elsewhere. A process of its own reads them one after the other and tells about
 * each, so that one that hangs, ends the process or takes memory can be named.
 */
import { fork } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { isAdapter, readAdapterConfig, storedTensors } from '../../src/adapters/index.ts';
import { GraftError } from '../../src/base/index.ts';
import {
  ChatTemplate,
  decodeImage,
  imageProcessorOf,
  loadTokenizer,
  readRecords,
  toExample,
  tokenizerIfAny,
} from '../../src/data/index.ts';
import { openTorch, openWeights, type WeightSource } from '../../src/io/index.ts';
import { openModel } from '../../src/models/index.ts';
import { readRecipe } from '../../src/train/index.ts';
import { golden, temporary } from '../support.ts';
import { randomFrom } from './io.ts';
import { torchFile } from './torch.ts';

/** What is told about a file that was read. */
interface Told {
  readonly n: number;
  readonly outcome: 'read' | 'refused' | 'crashed';
  /** Bytes of memory above those before, at most; and the error, where it crashed. */
  readonly peakBytes: number;
  readonly bytes: number;
  readonly problem?: string;
}

/** What came of all files of a reader. */
export interface Tally {
  readonly reader: string;
  files: number;
  read: number;
  refused: number;
  /** Of one file, at most. */
  slowestMs: number;
  peakMb: number;
  readonly problems: string[];
}

/** Milliseconds between two looks at how long a file takes. */
const tickMs = 200;
/** A file may take so long, and so much memory: four times its size and 200 MB. */
const [maxMs, memoryBase, memoryFactor] = [10_000, 200 * 2 ** 20, 4];

interface Reader {
  readonly name: string;
  /** The name of the file that is damaged, below the folder that is read. */
  readonly file: string;
  readonly seed: () => Buffer;
  /** Other files that the reader needs beside it, by name. */
  readonly beside?: () => Readonly<Record<string, Buffer>>;
  readonly read: (file: string, dir: string) => unknown;
}

const text = (value: string) => Buffer.from(value);
const stored = (...parts: string[]) => readFileSync(golden(...parts));

/** Reads every tensor of a file. */
function readAll(source: WeightSource): void {
  using _ = source;
  for (const { name, bytes } of source.entries.values()) source.read(name, new Uint8Array(bytes));
}

const rows = [
  '{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo","tool_calls":[{"function":{"name":"f","arguments":{"x":1.0}}}]}]}',
  '{"prompt":"a","completion":"b é 👩🏽‍💻","id":9007199254740993}',
  '{"text":"a","label":1}',
  '{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}]}',
].join('\n');
const csv = 'text,label,more\r\n"a ""b""\r\nc",x,1\r\nd;e,y,2\r\n';
const recipe = `model: m
task: sequence-classification
data: { train: rows.jsonl, columns: { text: body }, held_out: 0.1 }
method: { type: lora, r: 4, target_modules: all-linear }
train: { lr: 1e-3, epochs: 2, optimizer: { type: adamw, weight_decay: 0.1 } }
run: { dir: out }
`;
const template = `{% macro f(x, y=1) %}{{ x ~ y }}{% endmacro %}{%- for m in messages if m.content -%}{{ f(m.role) | trim | upper }}{{ m['content'][:3] | tojson }}{% if loop.last and m.role in ['user'] %}{{ raise_exception('no') }}{% endif %}{%- endfor %}{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 ** 3 %}{{ '%s' % ns.n }}`;

const examplesOf = async (file: string) => {
  for (const record of await readRecords(file)) toExample(record, 'auto');
};
const rowFile = (name: string, file: string, seed: () => Buffer): Reader => ({ name, file, seed, read: examplesOf });
const image = (file: string, ...path: string[]): Reader => ({
  name: file.split('.')[1]!,
  file,
  seed: () => stored('images', 'files', ...path),
  read: async (name) => decodeImage(readFileSync(name), name),
});
const tokenizer = (name: string): Reader => ({
  name: `tokenizer-${name}`,
  file: 'tokenizer.json',
  seed: () => stored('tokenizer', `${name}.json`),
  read: (file) => loadTokenizer(file).encode('A text, and 12 more: é 👩🏽‍💻\n'),
});

/** Every reader, with a good file. */
export const readers: readonly Reader[] = [
  {
    name: 'safetensors',
    file: 'model.safetensors',
    seed: () => stored('families', 'bert', 'model.safetensors'),
    read: (file) => readAll(openWeights(file)),
  },
  {
    name: 'gguf',
    file: 'model.gguf',
    seed: () => stored('gguf', 'llama.gguf'),
    read: (file) => readAll(openWeights(file)),
  },
  {
    name: 'gguf-model',
    file: 'model.gguf',
    seed: () => stored('gguf', 'qwen2.gguf'),
    read(file) {
      openModel(file).source[Symbol.dispose]();
      tokenizerIfAny(file)?.encode('A text, and 12 more');
    },
  },
  {
    name: 'pickle',
    file: 'model.bin',
    seed: () =>
      torchFile(
        new Map([
          ['a.weight', { shape: [2, 3], bytes: new Uint8Array(24) }],
          ['b', { shape: [4], bytes: new Uint8Array(16) }],
        ]),
      ),
    read: (file) => readAll(openTorch(file)),
  },
  rowFile('jsonl', 'rows.jsonl', () => text(rows)),
  rowFile('json', 'rows.json', () => text(`[${rows.replaceAll('\n', ',')}]`)),
  rowFile('csv', 'rows.csv', () => text(csv)),
  rowFile('tsv', 'rows.tsv', () => text(csv.replaceAll(',', '\t'))),
  rowFile('conll', 'rows.conll', () => text('-DOCSTART- O\n\nAda NNP B-PER\nwas\tVBD\tO\n\n# a comment\nin IN O\n')),
  rowFile('gzip', 'rows.jsonl.gz', () => gzipSync(rows)),
  rowFile('zstd', 'rows.jsonl.zst', () => zstdCompressSync(rows)),
  ...['plain', 'zstd', 'gzip', 'brotli', 'lz4', 'nested', 'stored', 'second'].map((name) =>
    rowFile(`parquet-${name}`, 'rows.parquet', () => stored('data', `${name}.parquet`)),
  ),
  image('a.png', 'rgb.png'),
  image('a.jpg', 'turned-6.jpg'),
  { ...image('a.webp', 'rgb.png'), seed: () => stored('data', 'photo.webp') },
  ...['bert', 'llama2', 'qwen2', 'unigram'].map(tokenizer),
  {
    name: 'template',
    file: 'chat_template.jinja',
    seed: () => text(template),
    read: (file) => new ChatTemplate(readFileSync(file, 'utf8')).render([{ role: 'assistant', content: 'a text' }], {}),
  },
  { name: 'recipe', file: 'recipe.yaml', seed: () => text(recipe), read: (file) => readRecipe(file) },
  {
    name: 'config',
    file: 'config.json',
    seed: () => stored('families', 'bert', 'config.json'),
    beside: () => ({ 'model.safetensors': stored('families', 'bert', 'model.safetensors') }),
    read: (_, dir) => openModel(dir).source[Symbol.dispose](),
  },
  {
    name: 'adapter',
    file: 'adapter_config.json',
    seed: () => stored('lora', 'llama2-modules-to-save', 'adapter_config.json'),
    beside: () => ({
      'adapter_model.safetensors': stored('lora', 'llama2-modules-to-save', 'adapter_model.safetensors'),
    }),
    read(_, dir) {
      if (!isAdapter(dir)) throw new GraftError('input', 'no adapter');
      readAdapterConfig(dir);
      storedTensors(dir);
    },
  },
  {
    name: 'preprocessor',
    file: 'preprocessor_config.json',
    seed: () => stored('images', 'vit-bilinear', 'preprocessor_config.json'),
    read: (_, dir) => imageProcessorOf(dir),
  },
];

const pieces = [
  '{',
  '}',
  '[',
  ']',
  '"',
  '\\',
  ',',
  ':',
  '\n',
  '\0',
  'null',
  '-1',
  '1e999',
  '{{',
  '{%',
  '%}',
  '🙂',
  '9'.repeat(25),
  '\uFEFF',
];

/** A copy of a file with one to four changes: bits, bytes, numbers that become large, pieces taken out, put in or doubled. */
function damaged(good: Buffer, random: () => number): Buffer {
  const below = (n: number) => Math.floor(random() * n);
  let bytes = Buffer.from(good);
  for (let change = 0; change <= below(4); change++) {
    const at = below(bytes.length + 1);
    switch (below(8)) {
      case 0:
        if (at < bytes.length) bytes[at]! ^= 1 << below(8);
        break;
      case 1:
        bytes.fill([0, 0xff, 0x7f, 0x80][below(4)]!, at, Math.min(bytes.length, at + 1 + below(8)));
        break;
      case 2:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + below(16))]);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), text(pieces[below(pieces.length)]!), bytes.subarray(at)]);
        break;
      case 4: {
        const end = at + below(64);
        bytes = Buffer.concat([bytes.subarray(0, Math.min(end, bytes.length)), bytes.subarray(at)]);
        break;
      }
      case 5:
        if (below(4) === 0) bytes = bytes.subarray(0, at);
        break;
      case 6:
        if (at + 4 <= bytes.length) bytes.writeUInt32LE(below(2 ** 32) >>> 0, at);
        break;
      default:
        if (at + 8 <= bytes.length) bytes.writeBigUInt64LE(BigInt(below(2 ** 32)) << BigInt(below(33)), at);
    }
  }
  return bytes;
}

/** Damaged file number `n`: the readers take turns. */
const caseOf = (n: number, seed: number) => {
  const reader = readers[n % readers.length]!;
  return { reader, bytes: damaged(goodFile(reader), randomFrom(seed + n)) };
};

const goodFiles = new Map<string, Buffer>();
function goodFile({ name, seed }: Reader): Buffer {
  const known = goodFiles.get(name) ?? seed();
  goodFiles.set(name, known);
  return known;
}

/** The peak of this process's memory since the last call of `resetPeak`, in bytes; Linux counts it in /proc. */
const peakBytes = () => 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))![1]);
const resetPeak = () => writeFileSync('/proc/self/clear_refs', '5');

/** Reads the files from number `from` to `to`, and tells about each. Runs in a process of its own. */
async function work(from: number, to: number, seed: number): Promise<void> {
  using dir = temporary();
  const read = async ({ name, file, beside, read }: Reader, bytes: Buffer) => {
    const folder = join(dir.path, name);
    const path = join(folder, file);
    mkdirSync(dirname(path), { recursive: true });
    for (const [other, content] of Object.entries(beside?.() ?? {})) writeFileSync(join(folder, other), content);
    writeFileSync(path, bytes);
    await read(path, folder);
  };
  for (const reader of readers) await read(reader, goodFile(reader)); // good files are read, and code is loaded
  for (let n = from; n < to; n++) {
    const { reader, bytes } = caseOf(n, seed);
    (globalThis as { gc?: () => void }).gc?.();
    resetPeak();
    const before = process.memoryUsage.rss();
    process.send!({ begins: n });
    let outcome: Told['outcome'] = 'read';
    let problem: string | undefined;
    try {
      await read(reader, bytes);
    } catch (error) {
      const isRefusal = error instanceof GraftError && error.kind !== 'engine' && error.message.length < 4000;
      outcome = isRefusal ? 'refused' : 'crashed';
      if (!isRefusal) problem = error instanceof Error ? `${error.stack}`.slice(0, 400) : String(error);
    }
    const told: Told = {
      n,
      outcome,
      peakBytes: peakBytes() - before,
      bytes: bytes.length,
      ...(problem && { problem }),
    };
    process.send!(told);
  }
}

/** Damages `count` files and has them read. @param seed of the damage @param told is told how many have been read */
export async function fuzz(count: number, seed: number, told: (files: number) => void = () => {}): Promise<Tally[]> {
  const tallies = new Map(
    readers.map(({ name }): [string, Tally] => [
      name,
      { reader: name, files: 0, read: 0, refused: 0, slowestMs: 0, peakMb: 0, problems: [] },
    ]),
  );
  for (let next = 0; next < count; ) next = await readFrom(next, count, seed, tallies, told);
  return [...tallies.values()];
}

/** Reads files in a new process up to the last, or to one that ends it or hangs. Returns the number of the next. */
function readFrom(
  from: number,
  to: number,
  seed: number,
  tallies: ReadonlyMap<string, Tally>,
  told: (files: number) => void,
): Promise<number> {
  const child = fork(import.meta.filename, [String(from), String(to), String(seed)], {
    execArgv: ['--expose-gc'],
    env: { ...process.env, GRAFT_FUZZ: '1' },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  return new Promise((resolve, reject) => {
    let [next, at, ended, begun] = [from, Number.NaN, false, false];
    // Time in which this process was stopped too (a machine that sleeps, or measures something else) is not the reader's.
    let [awake, looked] = [0, performance.now()];
    const now = () => {
      const since = performance.now() - looked;
      looked += since;
      awake += Math.min(since, tickMs * 5);
      return awake;
    };
    const tallyOf = (n: number) => tallies.get(readers[n % readers.length]!.name)!;
    const fail = (what: string) => {
      const tally = tallyOf(next);
      tally.files++;
      tally.problems.push(`file ${next}: ${what}`);
      next++;
    };
    const timer = setInterval(() => {
      if (!(now() - at > maxMs)) return;
      at = Number.NaN;
      fail('it takes more than 10 seconds');
      ended = true;
      child.kill('SIGKILL');
    }, tickMs);
    child.on('message', (message: Told | { begins: number }) => {
      if ('begins' in message) {
        begun = true;
        at = now();
        return;
      }
      const { n, outcome, peakBytes, bytes, problem } = message;
      const tally = tallyOf(n);
      tally.files++;
      if (outcome !== 'crashed') tally[outcome]++;
      tally.slowestMs = Math.max(tally.slowestMs, Math.round(now() - at));
      tally.peakMb = Math.max(tally.peakMb, Math.round(peakBytes / 2 ** 20));
      if (problem) tally.problems.push(`file ${n}: ${problem}`);
      if (peakBytes > memoryBase + memoryFactor * bytes)
        tally.problems.push(`file ${n}: ${bytes} bytes took ${Math.round(peakBytes / 2 ** 20)} MB`);
      at = Number.NaN;
      next = n + 1;
      told(next);
    });
    child.on('exit', (code, signal) => {
      clearInterval(timer);
      if (!begun) return reject(new Error(`the good files cannot be read: the process ended with ${signal ?? code}`));
      if (!ended && next < to) fail(`the process ended with ${signal ?? code}`);
      resolve(next);
    });
  });
}

if (process.env.GRAFT_FUZZ && process.argv[1] === import.meta.filename)
  await work(...(process.argv.slice(2).map(Number) as [number, number, number]));
