import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { packageRoot } from '../../src/base/index.ts';

export const entry = join(packageRoot, 'bin', 'graft.js');

/** A process that has ended. */
export interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line, for at most a minute. `env` is added to the environment; `undefined` removes a variable. */
export function graft(cwd: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Ended {
  return spawnSync(process.execPath, [entry, ...args], {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, ...env },
    timeout: 60_000,
  });
}

/** Asserts that a process ended with this exit code and one `graft: …` line on stderr that matches `sentence`, without a stack trace. */
export function assertRefused({ status, stderr }: Ended, code: number, sentence: RegExp): void {
  const messages = stderr.split('\n').filter((line) => line.startsWith('graft: '));
  assert.equal(messages.length, 1, `one message in: ${stderr}`);
  assert.match(messages[0]!, sentence);
  assert.match(messages[0]!, /[.?]$/);
  assert.doesNotMatch(stderr, /\n\s+at .*:\d+:\d+/, 'no stack trace');
  assert.equal(status, code, stderr);
}
