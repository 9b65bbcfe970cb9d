import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';

export const entry = join(packageRoot, 'bin', 'graft.js');

export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line; `env` is added to this process's, `undefined` takes a variable away. Ended after a minute. */
export function graft(cwd: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Ended {
  return spawnSync(process.execPath, [entry, ...args], {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    timeout: 60_000,
  });
}

/** It ended with this code and, last on stderr, one line that says `sentence`; no stack trace. */
export function assertRefused({ status, stderr }: Ended, code: number, sentence: RegExp): void {
  const said = stderr.split('\n').filter((line) => line.startsWith('graft: '));
  assert.equal(said.length, 1, `one sentence in: ${stderr}`);
  assert.match(said[0]!, sentence);
  assert.match(said[0]!, /[.?]$/);
  assert.doesNotMatch(stderr, /\n\s+at .*:\d+:\d+/, 'no stack trace');
  assert.equal(status, code, stderr);
}
