/**
 * The Python package `openai`, installed into an environment of its own, asks a server on a tiny model.
 *   npm run proof:serve
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDir, GraftError, packageRoot } from '../src/base/index.ts';
import { serve } from '../src/serve/index.ts';
import { servedFolder } from '../test/samples/served.ts';
import { report, workFolder } from './support.ts';

/** The package as it was when its answers were looked at. */
const openai = 'openai==3.57.0';
const python = cacheDir('clients', 'venv', 'bin', 'python');

/** Runs a program to its end. @returns what it printed */
function run(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (status === 0) return stdout;
  throw new GraftError('environment', `${command} ${args.join(' ')} ended with ${status}: ${stderr.slice(-500)}`);
}

if (!existsSync(python)) run('python3', ['-m', 'venv', cacheDir('clients', 'venv')]);
run(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', openai]);
const apiKey = 'proof-key-0123456789abcdef';
const { model, adapters } = await servedFolder(join(workFolder(), 'served'), ['greeter', 'caller']);
await using server = await serve({ model, adapters, port: 0, apiKeys: [apiKey] });
// The server is in this process, so it must not wait for the client.
const client = spawn(python, [join(packageRoot, 'bench', 'clients', 'openai_client.py'), server.url, apiKey], {
  stdio: ['ignore', 'pipe', 'inherit'],
});
let out = '';
client.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
const status = await new Promise<number | null>((resolve) => client.on('close', resolve));
const { checked = 0, ...versions } =
  status === 0 ? (JSON.parse(out.trim().split('\n').at(-1)!) as { checked: number }) : {};
report(
  'serve-clients',
  [{ what: 'answers to the Python client that are right', got: checked, bar: 15, better: 'more' }],
  versions,
);
