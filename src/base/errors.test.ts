import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statfsSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { type ErrorJson, type ErrorKind, errorKinds, fileError, GraftError } from './index.ts';

const kinds = Object.keys(errorKinds) as ErrorKind[];

/** An error with every detail, caused by another GraftError, which a Node error with a code caused. */
const failure = (kind: ErrorKind) => {
  const disk = Object.assign(new TypeError('ENOSPC: no space left on device, write'), { code: 'ENOSPC', errno: -28 });
  const cause = new GraftError('environment', 'the disk is full', {
    place: 'out/adapter',
    data: { free: 0 },
    cause: disk,
  });
  return new GraftError(kind, 'the adapter could not be written', {
    place: 'step 7',
    hint: 'Free some space',
    data: { step: 7, shapes: [[2, 3], []], nested: { rows: ['a.jsonl:1', null] } },
    cause,
  });
};

const crossings: Record<string, (json: ErrorJson) => ErrorJson> = {
  'structured clone': (json) => structuredClone(json),
  'JSON text': (json) => JSON.parse(JSON.stringify(json)),
};

for (const [name, cross] of Object.entries(crossings)) {
  test(`an error comes out of a ${name} as it went in: kind, problem, place, hint, data, causes`, () => {
    for (const kind of kinds) {
      const before = failure(kind);
      const after = GraftError.from(cross(before.toJSON()));
      for (const field of ['name', 'message', 'kind', 'problem', 'place', 'hint', 'data', 'exitCode'] as const)
        assert.deepEqual(after[field], before[field], `${kind}: ${field}`);
      assert.deepEqual(after.toJSON(), before.toJSON());
      assert.equal(after.at('elsewhere').message, before.at('elsewhere').message);
      const cause = after.cause;
      assert.ok(cause instanceof GraftError);
      assert.equal(cause.message, 'out/adapter: the disk is full.');
      assert.deepEqual(cause.data, { free: 0 });
      assert.ok(cause.cause instanceof Error && !(cause.cause instanceof GraftError));
      const { name: className, message, code } = cause.cause as NodeJS.ErrnoException;
      assert.deepEqual(
        { className, message, code },
        {
          className: 'TypeError',
          message: 'ENOSPC: no space left on device, write',
          code: 'ENOSPC',
        },
      );
    }
    assert.equal(kinds.length, 8);
  });

  test(`an error without details comes out of a ${name} without them`, () => {
    const before = new GraftError('state', 'it has ended');
    assert.deepEqual(before.toJSON(), { kind: 'state', message: 'it has ended.', problem: 'it has ended' });
    const after = GraftError.from(cross(before.toJSON()));
    assert.deepEqual(after.toJSON(), before.toJSON());
    assert.deepEqual([after.place, after.hint, after.data, after.cause], [undefined, undefined, {}, undefined]);
    assert.ok(!('cause' in after));
  });
}

test('the message is place, problem and hint, each sentence closed once', () => {
  const message = (problem: string, details = {}) => new GraftError('input', problem, details).message;
  assert.equal(message('broken'), 'broken.');
  assert.equal(message('broken.', { place: 'a.json:3', hint: 'Fetch it again ' }), 'a.json:3: broken. Fetch it again.');
  assert.equal(message('is it broken?', { hint: 'One of:' }), 'is it broken? One of:');
});

test('exit codes follow from the kind', () => {
  const codes = kinds.map((kind) => new GraftError(kind, 'x').exitCode);
  assert.deepEqual(Object.fromEntries(kinds.map((kind, i) => [kind, codes[i]])), {
    usage: 2,
    input: 1,
    mismatch: 1,
    environment: 1,
    state: 1,
    interrupted: 130,
    numeric: 1,
    engine: 1,
  });
});

test('an error of another class, and a value that is no error, cross as kind engine with themselves as the cause', () => {
  const known = GraftError.of(new RangeError('out of range', { cause: 'a typo' }));
  assert.equal(known.kind, 'engine');
  assert.match(String(known.data.stack), /^RangeError: out of range\n\s+at /);
  assert.deepEqual(known.toJSON().cause, { name: 'RangeError', message: 'out of range', cause: 'a typo' });
  assert.deepEqual(GraftError.from(structuredClone(known.toJSON())).toJSON(), known.toJSON());
  assert.equal(GraftError.of(known), known);
  for (const thrown of ['words', 7, null]) {
    const { message, data, cause } = GraftError.of(thrown).toJSON();
    assert.deepEqual([message, data, cause], [`${thrown}.`, undefined, thrown]);
  }
});

test('a chain of causes that leads in a circle ends', () => {
  const first = new Error('first');
  const second = new GraftError('state', 'second', { cause: first });
  first.cause = second;
  let { cause }: { cause?: ErrorJson['cause'] } = structuredClone(second.toJSON());
  let length = 0;
  for (; typeof cause === 'object' && cause !== null; cause = cause.cause) length++;
  assert.equal(length, 16);
});

test('a full disk is the one that the path leads to', (t) => {
  const [linked, shared] = ['/dev/shm', tmpdir()];
  const free = (path: string) => Math.floor((statfsSync(path).bavail * statfsSync(path).bsize) / 1e6);
  if (!existsSync(linked) || Math.abs(free(linked) - free(shared)) < 1000) return t.skip('there is one disk');
  const dir = mkdtempSync(join(shared, 'graft-disk-'));
  try {
    symlinkSync(linked, join(dir, 'out'));
    const full = Object.assign(new Error('ENOSPC'), { code: 'ENOSPC', syscall: 'write' });
    const shown = (path: string) =>
      Number(/\((\d+) MB free\)/.exec((fileError(full, path, 'written') as Error).message)![1]);
    assert.ok(Math.abs(shown(join(dir, 'out')) - free(linked)) < 500);
    assert.ok(Math.abs(shown(join(dir, 'out', 'new.jsonl')) - free(linked)) < 500);
    assert.ok(Math.abs(shown(join(dir, 'new.jsonl')) - free(shared)) < 500);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
