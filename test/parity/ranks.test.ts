/** Runs of several processes against the same run in one: losses, parameters, metrics; killed, stopped and gone on with. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import test, { after, before } from 'node:test';
import { type GraftError, packageRoot } from '../../src/base/index.ts';
import { startEngine } from '../../src/engine/index.ts';
import type { LaunchOptions } from '../../src/session/index.ts';
import type { RecipeInput } from '../../src/train/index.ts';
import { mails } from '../e2e/workspace.ts';
import {
  alone,
  assertLosses,
  assertWeights,
  close,
  interruptedAt,
  launched,
  longRun,
  lora,
  methods,
  processOf,
  recipe,
  together,
} from '../samples/ranks-runs.ts';
import { tinyModel } from '../samples/tiny.ts';
import { temporary } from '../support.ts';

before(() => startEngine());
after(close);

const isSetting = (name: string) =>
  !['lora', 'full', 'prefix', 'bottleneck', 'layers in turn', 'qat and lora'].includes(name);

let [weights, cases] = [0, 0];
for (const [name, more, train] of methods) {
  test(`${name}: several processes have the losses and the weights of one`, async () => {
    using dir = temporary();
    const single = await alone(recipe(join(dir.path, 'one'), more, train));
    assert.equal(single.losses.length, 20);
    assert.equal(single.ranks, undefined);
    for (const ranks of isSetting(name) ? [2] : [2, 4]) {
      const stages = ranks === 2 || name === 'lora' || name === 'full' ? [0, 1, 2] : [2];
      for (const stage of name === 'adalora' ? [0, 1] : stages) {
        const what = `${name}, ${ranks} processes, stage ${stage}`;
        const input = recipe(join(dir.path, `${ranks}-${stage}`), more, { ...train, zero: { stage } });
        const { result: several, events } = await together(ranks, input);
        const switches = events.filter(({ type }) => type === 'layers').length;
        assert.ok(name === 'layers in turn' ? switches >= 3 : switches === 0, `${switches} switches`);
        assertLosses(several, single, what);
        // AdamW makes steps of one length out of gradients of any size, so last bits of the smallest count: 3.0e-5 on Zen 3.
        weights += assertWeights(several.adapter, single.adapter, what, name === 'bottleneck' ? 5e-5 : 1e-5);
        assert.deepEqual(
          several.ranks!.map(({ rank }) => rank),
          Array.from({ length: ranks }, (_, rank) => rank),
        );
        for (const { peakRssMb, sentMb, receivedMb, waitS } of several.ranks!)
          assert.ok(peakRssMb > 50 && sentMb > 0 && receivedMb > 0 && waitS > 0);
        cases++;
      }
    }
  });
}
test('all of them were compared', () => {
  // Six methods with 2 processes in each stage and with 4 in stage 2; two of them with 4 in each; three settings with 2 in each stage;
  // AdaLoRA with 2 in stages 0 and 1.
  assert.equal(cases, 6 * 4 + 2 * 2 + 3 * 3 + 2);
  assert.ok(weights > 150_000, `${weights} numbers`);
});

test('what reads all gradients is refused where each process keeps a share of them', async () => {
  using dir = temporary();
  const adalora = { type: 'adalora', init_r: 4, target_r: 2, tinit: 1, tfinal: 2, target_modules: 'all-linear' };
  const input = (stage: number) => recipe(join(dir.path, `${stage}`), { method: adalora }, { zero: { stage } });
  await assert.rejects(launched({ recipe: input(2), ranks: 2 }), (error: GraftError) => {
    assert.match(error.message, /^train\.zero\.stage: the method reads all gradients after each update.*Set it to 1/);
    return error.kind === 'usage';
  });
  assertLosses((await together(2, input(1))).result, await alone(input(0)), 'adalora, stage 1');
});

test('a loss that is not finite ends the run of all in stage 2, with the reason', async () => {
  using dir = temporary();
  const input = recipe(join(dir.path, 'run'), { method: { type: 'full' } }, { lr: 1e30, zero: { stage: 2 } });
  await assert.rejects(launched({ recipe: input, ranks: 2 }), (error: GraftError) => {
    assert.match(error.message, /is not finite/);
    return error.kind === 'numeric';
  });
});

test('rows that are held out are measured by all, with the metrics of one', async () => {
  using dir = temporary();
  const input = (name: string): RecipeInput => ({
    model: tinyModel(join(dir.path, 'model')),
    task: 'sequence-classification',
    method: lora,
    data: { train: mails(30), held_out: 7 },
    train: { lr: 1e-3, steps: 6, batch_size: 5, micro_tokens: 9, threads: 1, precision: 'float32' },
    eval: { every: 2 },
    run: { dir: join(dir.path, name) },
  });
  const single = await alone(input('one'));
  const { result: several, events } = await together(4, input('four'));
  assertLosses(several, single, 'classification');
  assert.ok(Math.abs(several.evalLoss! / single.evalLoss! - 1) < 1e-5);
  assert.deepEqual(several.evalMetrics, single.evalMetrics);
  assert.equal(several.evalMetrics[0]!.count, 7);
  assert.deepEqual(
    events.filter(({ type }) => type === 'eval').map((event) => 'step' in event && event.step),
    [2, 4, 6],
  );
});

test('a rank that is killed: the run ends with its name, and goes on with the losses of a run that was never killed', async () => {
  using dir = temporary();
  const at = (name: string) => join(dir.path, name);
  const { result: whole } = await together(2, longRun(at('whole')));
  assert.equal(whole.losses.length, 80);
  // In another order of sums: stage 2 adds up each pass over the processes first.
  const { result: stage2 } = await together(2, longRun(at('whole-2'), { zero: { stage: 2 } }));
  assertLosses(stage2, whole, 'stage 2');
  for (const rank of [0, 1]) {
    const killed = longRun(at(`killed-${rank}`), { zero: { stage: 2 * rank } });
    let killedAt = 0;
    const kill = interruptedAt(25, () => {
      process.kill(processOf(rank), 'SIGKILL');
      killedAt = performance.now();
    });
    await assert.rejects(launched({ recipe: killed, ranks: 2 }, kill), (error: GraftError) => {
      assert.match(error.message, new RegExp(`^rank ${rank} was ended by SIGKILL`));
      return error.kind === 'state';
    });
    const seconds = (performance.now() - killedAt) / 1e3;
    assert.ok(seconds < 20, `all ended after ${seconds} s`);
    const resumed = await launched({ recipe: killed, ranks: 2 });
    assert.ok(resumed.resumedFrom >= 20 && resumed.resumedFrom < 80, `${resumed.resumedFrom}`);
    assert.deepEqual(resumed.losses, (rank === 0 ? whole : stage2).losses);
  }
  // The launcher starts all again by itself.
  const lines: string[] = [];
  const restarted = await launched(
    {
      recipe: longRun(at('restarted'), { zero: { stage: 1 } }),
      ranks: 2,
      maxRestarts: 1,
      log: (line) => lines.push(line),
    },
    interruptedAt(25, () => process.kill(processOf(1), 'SIGKILL')),
  );
  assert.deepEqual(restarted.losses, whole.losses);
  assert.ok(lines.some((line) => /rank 1 was ended by SIGKILL.* started again \(1 of 1 restarts left\)/.test(line)));
  // With other numbers of processes.
  for (const [ranks, stage] of [
    [3, 1],
    [1, 0],
  ] as const) {
    const stop = new AbortController();
    const running = launched(
      { recipe: longRun(at('stopped'), { zero: { stage } }), ranks, signal: stop.signal },
      interruptedAt(ranks === 3 ? 20 : 45, () => stop.abort()),
    );
    await assert.rejects(running, (error: GraftError) => error.kind === 'interrupted');
  }
  const { result: resumed } = await together(2, longRun(at('stopped'), { zero: { stage: 2 } }));
  assertLosses(resumed, whole, 'resumed with 3, 1 and 2 processes');
});

test('when the launcher is killed, its processes stop with a checkpoint', async () => {
  using dir = temporary();
  const file = join(dir.path, 'recipe.json');
  const input = longRun(join(dir.path, 'run'), { steps: 4000 });
  writeFileSync(file, JSON.stringify(input));
  const launcher = spawn(
    process.execPath,
    [join(packageRoot, 'bin', 'graft.js'), 'launch', '--nproc', '2', '--json', file],
    {
      stdio: ['ignore', 'pipe', 'ignore'],
    },
  );
  const ranks: number[] = [];
  for await (const line of createInterface(launcher.stdout)) {
    if (!line.includes('"type":"step"')) continue;
    ranks.push(...[0, 1].map((rank) => processOf(rank, launcher.pid)));
    break;
  }
  launcher.kill('SIGKILL');
  const runs = () => ranks.filter((pid) => existsSync(`/proc/${pid}`));
  for (let i = 0; i < 200 && runs().length > 0; i++) await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(ranks.length, 2);
  assert.deepEqual(runs(), []);
  assert.ok(readdirSync(join(dir.path, 'run', 'checkpoints')).some((name) => name.startsWith('step-')));
});

test('a port that another program takes before the processes meet there: they meet at another one', async () => {
  using dir = temporary();
  const running = launched({ recipe: recipe(join(dir.path, 'run'), {}, { steps: 2 }), ranks: 2 });
  /** The port that rank 0 is told, as soon as it exists. */
  const portOfRank0 = async (): Promise<number> => {
    for (;;) {
      try {
        const variables = readFileSync(`/proc/${processOf(0)}/environ`, 'utf8').split('\0');
        const port = variables.find((text) => text.startsWith('MASTER_PORT='))?.slice(12);
        if (port) return Number(port);
      } catch {} // not yet
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  const port = await portOfRank0();
  const other = createServer().listen(port);
  await new Promise((resolve) => other.once('listening', resolve));
  const { losses } = await running;
  other.close();
  assert.equal(losses.length, 2);
  assert.ok(port > 0);
});

test('what cannot be launched', async () => {
  using dir = temporary();
  const input = recipe(join(dir.path, 'run'));
  const refused: [LaunchOptions, RegExp][] = [
    [{ recipe: input }, /nothing says how many processes to start\. Give --nproc/],
    [{ recipe: input, ranks: 2, nodes: 2 }, /several machines need a place to meet/],
    [{ recipe: input, ranks: 2, nodes: 2, nodeRank: 2 }, /this is machine 2, but there are 2/],
    [{ recipe: input, ranks: 2, master: 'host:99999' }, /'host:99999' is not HOST:PORT/],
    [{ recipe: input, ranks: 0 }, /ranks/],
    [
      { recipe: input, ranks: 5 },
      /^train.batch_size: there are 5 processes, but a step has 4 rows\. Start 4 processes at most/,
    ],
    [
      { recipe: recipe(join(dir.path, 'none'), { data: join(dir.path, 'none.jsonl') }), ranks: 2 },
      /none\.jsonl: the data file was not found/,
    ],
  ];
  for (const [options, why] of refused)
    await assert.rejects(launched(options), (error: GraftError) => why.test(error.message));
  assert.equal(refused.length, 7);
});

test('ranks with different recipes: each says what differs', async () => {
  using dir = temporary();
  const port = 20_000 + (process.pid % 10_000);
  const ends = await Promise.all(
    [1e-3, 2e-3].map((lr, rank) => {
      const file = join(dir.path, `${rank}.json`);
      writeFileSync(file, JSON.stringify(recipe(join(dir.path, 'run'), {}, { lr })));
      const env = {
        RANK: `${rank}`,
        WORLD_SIZE: '2',
        LOCAL_RANK: `${rank}`,
        MASTER_ADDR: '127.0.0.1',
        MASTER_PORT: `${port}`,
      };
      return new Promise<string>((resolve) => {
        const child = spawn(process.execPath, [join(packageRoot, 'bin', 'graft.js'), 'train', file], {
          stdio: ['ignore', 'ignore', 'pipe'],
          env: { ...process.env, ...env },
        });
        let text = '';
        child.stderr.on('data', (chunk: Buffer) => {
          text += chunk;
        });
        child.on('close', () => resolve(text));
      });
    }),
  );
  const differs = /rank 1 has another run than rank 0: train\.lr was 0\.001 and is 0\.002/;
  assert.match(ends[1]!, differs);
  assert.match(ends[0]!, /graft: rank 1 failed: /);
  assert.match(ends[0]!, differs);
});

test('rows of a step that a DeepSpeed configuration gives by process: the processes that are launched read them too', async () => {
  using dir = temporary();
  const rows = Array.from({ length: 16 }, (_, i) => ({
    ids: [3, 4 + i, 5, 6 + i, 7],
    labels: [3, 4 + i, 5, 6 + i, 7],
  }));
  const common = { data: { train: rows, format: 'tokens' } };
  const deepspeed = {
    train_micro_batch_size_per_gpu: 1,
    gradient_accumulation_steps: 2,
    zero_optimization: { stage: 2 },
  };
  const input = recipe(join(dir.path, 'two'), { ...common, deepspeed }, { steps: 3 });
  const result = await launched({ recipe: input, ranks: 2 });
  const single = recipe(join(dir.path, 'one'), common, { steps: 3, batch_size: 4 });
  assertLosses(result, await alone(single), 'two processes with two rows each');
});
