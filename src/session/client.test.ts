/** The session's promises: who is stopped, how many threads a job has, and what is said when the engine thread is gone. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { tinyModel } from '../../test/samples/tiny.ts';
import { temporary } from '../../test/support.ts';
import { parseRecipe } from '../train/index.ts';
import { Session } from './index.ts';

const row = { ids: [1, 2, 3, 4], labels: [1, 2, 3, 4] };

test('stop ends the job that runs and none behind it; threads are as before when a job says nothing', async () => {
  using dir = temporary();
  await using session = new Session();
  const model = tinyModel(join(dir.path, 'model'));
  const data = join(dir.path, 'rows.jsonl');
  writeFileSync(data, `${JSON.stringify(row)}\n`.repeat(8));
  const train = (name: string, steps: number, threads?: number) => {
    const recipe = parseRecipe({
      ...{ model, method: { type: 'lora' }, data: { train: data }, run: { dir: join(dir.path, name) } },
      train: { lr: 1e-3, steps, batch_size: 2, ...(threads && { threads }) },
    });
    const seen = { threads: 0 };
    const done = session.run('train', { recipe }, (event) => {
      if (event.type === 'start') seen.threads = event.threads;
      if (event.type === 'step' && name === 'long' && event.step === 3) session.stop();
    });
    return { seen, done };
  };
  const usual = train('usual', 1);
  await usual.done;
  const one = train('one', 1, 1);
  await one.done;
  const long = train('long', 100_000);
  const behind = train('behind', 5);
  await assert.rejects(long.done, /interrupted|stopped/);
  assert.equal((await behind.done).losses.length, 5);
  assert.equal(one.seen.threads, 1);
  assert.equal(behind.seen.threads, usual.seen.threads);
});

test('a session that has ended says so at once', async () => {
  const session = new Session();
  await session[Symbol.asyncDispose]();
  await assert.rejects(session.run('doctor', {}), /engine thread has ended/);
});
