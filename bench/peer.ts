/**
 * Installs the Python environment of the peer (Hugging Face PEFT, transformers, torch: about 5 GB), and writes the benchmark model
 * in a format that it loads.
 *   npm run proof:peer
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { cacheDir, packageRoot } from '../src/base/index.ts';
import { bothModels, peerPython } from './support.ts';

const venv = cacheDir('peer', 'venv');
const python = join(venv, 'bin', 'python');

function run(command: string, ...args: string[]): void {
  const { status } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}

if (!process.env.GRAFT_PEER) {
  mkdirSync(cacheDir('peer'), { recursive: true });
  if (!existsSync(python)) run('python3', '-m', 'venv', venv);
  run(python, '-m', 'pip', 'install', '--quiet', '-r', join(packageRoot, 'tools', 'golden', 'requirements.txt'));
}
console.log(JSON.stringify({ python: peerPython(), ...bothModels(process.argv[2]) }));
