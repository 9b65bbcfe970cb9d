import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { temporary } from '../../test/support.ts';
import { GraftError } from '../base/index.ts';
import { requestError } from './errors.ts';
import { Keys, readKeys } from './keys.ts';
import { defaultLimits } from './limits.ts';

test('a key runs so many requests at a time, whoever else asks; one that has ended makes room once', () => {
  const keys = new Keys(['a'.repeat(16), 'b'.repeat(16)], { ...defaultLimits, requestsPerKey: 2 });
  const first = keys.identify(`Bearer ${'a'.repeat(16)}`);
  const leave = keys.enter(first);
  keys.enter(first);
  assert.throws(() => keys.enter(first), { status: 429, retryAfter: 1 });
  keys.enter(keys.identify(`bearer ${'b'.repeat(16)}`));
  leave();
  leave();
  keys.enter(first);
  assert.throws(() => keys.enter(first), { status: 429 });
});

test('a rate says after how long it is worth to ask again', () => {
  const keys = new Keys([], { ...defaultLimits, requestsPerMinute: 2 });
  for (let i = 0; i < 2; i++) keys.enter(undefined)();
  assert.throws(() => keys.enter(undefined), { status: 429, retryAfter: 30 });
});

test('a file of keys: one a line, remarks left out; one without any is refused', () => {
  using dir = temporary();
  const file = join(dir.path, 'keys');
  writeFileSync(file, '# mine\n  first-key-0123456789 \n\nsecond-key-0123456789\n');
  assert.deepEqual(readKeys(file), ['first-key-0123456789', 'second-key-0123456789']);
  writeFileSync(file, '# none\n');
  assert.throws(() => readKeys(file), { kind: 'input', place: file });
  assert.throws(() => readKeys(join(dir.path, 'absent')));
});

test('an answer tells what its sender can change, without paths; the log has the rest', () => {
  const log: string[] = [];
  const answered = (error: unknown) => requestError(error, (line) => log.push(line));
  const usage = new GraftError('usage', "the adapter /srv/secret/a.bin does not fit '/srv/base'", {
    place: 'adapter',
    hint: 'look at C:\\models\\x',
  });
  const { status, message, param } = answered(usage);
  assert.deepEqual([status, param, message], [400, 'adapter', "The adapter … does not fit '…'. Look at …."]);
  for (const error of [new GraftError('engine', 'at /srv/x: boom'), new TypeError('x is not a function'), 'thrown']) {
    const hidden = answered(error);
    assert.equal(hidden.status, 500);
    assert.doesNotMatch(hidden.message, /srv|function|thrown|boom/);
  }
  assert.equal(log.length, 3);
  assert.equal(answered(new GraftError('state', 'x', { data: { reason: 'queue-full' } })).status, 429);
  assert.equal(answered(new GraftError('state', 'x', { data: { reason: 'closing' } })).status, 503);
  assert.equal(answered(new GraftError('usage', 'x', { data: { reason: 'unknown-adapter' } })).status, 404);
});
