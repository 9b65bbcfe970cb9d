/**
 * Two machines with addresses of their own (network namespaces), 2 processes each, against 4 processes on one machine: the same losses,
 * whatever the master's name means on its own machine; and what comes of a run when a process is cut off, stopped, slowed, killed, has no
 * port, or differs from the others. Then the same run under other launchers. Needs Linux, root and iproute2; for the launchers a Python with
 * PyTorch (GRAFT_PEER) and OpenMPI's mpirun.
 *   npm run proof:hosts -- [--only PART OF A NAME] [--minute 60]
 */
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { startEngine } from '../src/engine/index.ts';
import type { TrainEvent } from '../src/train/index.ts';
import { interruptedAt, launched, processOf, recipe } from '../test/samples/ranks-runs.ts';
import { golden } from '../test/support.ts';
import { peerPython, report, round, workFolder } from './support.ts';
import { type Ended, type Host, type Run, run, twoHosts } from './two-hosts.ts';

const { values: args } = parseArgs({
  options: { only: { type: 'string' }, minute: { type: 'string', default: '60' } },
});
const minute = 1000 * Number(args.minute);
const steps = 10;
/** The step after which something happens. */
const when = 3;
const folder = workFolder();
await startEngine();

let files = 0;
/** Writes a recipe, with a run directory of its own unless one is given. */
function recipeFile(train: object = {}, more: object = {}, name = `run-${files}`): string {
  const file = join(folder, `recipe-${files++}.json`);
  const { run, ...fields } = recipe(join(folder, name), more, { steps, ...train });
  writeFileSync(file, JSON.stringify({ ...fields, run: { ...run, checkpoint_every: 2 } }));
  return file;
}

/** What is different on one of the machines. */
interface Start {
  readonly file?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly root?: string;
}

interface Setting {
  /** Where the processes meet. Default: at an address of machine 0. */
  readonly master?: string;
  /** Seconds. */
  readonly timeout?: number;
  readonly options?: readonly string[];
  readonly starts?: readonly [Start, Start];
  readonly act?: (hosts: readonly [Host, Host], runs: readonly [Run, Run]) => unknown;
}

let port = 29_600;

/** Runs a recipe on both machines. @param act is called once, after step `when` */
async function onBoth(setting: Setting): Promise<readonly [Ended, Ended]> {
  const { timeout = 120, options = [], starts = [{}, {}], act } = setting;
  const master = setting.master ?? hosts[0].addresses[0];
  const file = recipeFile();
  let runs: readonly [Run, Run] | undefined;
  const onEvent = interruptedAt(when, () => act?.(hosts, runs!));
  const meeting = `${master}:${++port}`;
  const started = hosts.map((host, i) => {
    const where = ['--nproc', '2', '--nnodes', '2', '--node-rank', String(i), '--master', meeting];
    const all = ['launch', ...where, '--timeout', String(timeout), '--json', ...options, starts[i]!.file ?? file];
    return host.graft(all, { ...starts[i]!, ...(i === 0 && { onEvent }) });
  });
  runs = started as unknown as readonly [Run, Run];
  return (await Promise.all(runs.map(({ ended }) => ended))) as unknown as readonly [Ended, Ended];
}

/** What came of a row: that it finished, and how far its losses are from those of one machine; or what it said, in how many seconds. */
type Outcome =
  | { readonly losses: number }
  | { readonly seconds: number; readonly said: readonly string[]; readonly right: boolean };

const lossesOf = ({ document }: Ended) => (document.losses as number[] | undefined) ?? [];

function finished(...all: readonly Ended[]): Outcome {
  const apart = all.map((ended) => {
    const losses = lossesOf(ended);
    if (ended.code !== 0 || losses.length !== steps) {
      console.log(ended.stderr);
      return Number.POSITIVE_INFINITY;
    }
    return Math.max(...losses.map((loss, i) => Math.abs(loss / reference[i]! - 1)));
  });
  return { losses: Math.max(...apart) };
}

/** Each launcher has to say one sentence. */
function stopped(all: readonly Ended[], patterns: readonly RegExp[], since = 0): Outcome {
  const said = all.flatMap(({ sentences }) => sentences);
  const right = all.every(
    ({ code, sentences }, i) => code !== 0 && sentences.length === 1 && patterns[i]!.test(sentences[0]!),
  );
  return { seconds: Math.max(...all.map(({ seconds }) => seconds)) - since, said, right };
}

const rankOn = (runs: readonly [Run, Run], host: 0 | 1, rank: number) => processOf(rank, runs[host].child.pid!);

/** Lets a process run a fifth of the time until it ends. */
async function slowed(pid: number): Promise<void> {
  try {
    for (;;) {
      process.kill(pid, 'SIGSTOP');
      await wait(400);
      process.kill(pid, 'SIGCONT');
      await wait(100);
    }
  } catch {} // it has ended
}

async function paused(pid: number, milliseconds: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  await wait(milliseconds);
  process.kill(pid, 'SIGCONT');
}

/** A copy of the package that says it is another version. */
function otherVersion(): string {
  const root = join(folder, 'other-version');
  mkdirSync(root);
  for (const name of ['src', 'native', 'bin']) cpSync(join(packageRoot, name), join(root, name), { recursive: true });
  symlinkSync(join(packageRoot, 'node_modules'), join(root, 'node_modules'));
  const manifest = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as object;
  writeFileSync(join(root, 'package.json'), JSON.stringify({ ...manifest, version: '99.0.0' }));
  return root;
}

/** A launch of 4 processes on the machine that this program runs on. */
const onOne = (options: readonly string[] = [], onEvent?: (event: TrainEvent) => void): Run =>
  run(
    process.execPath,
    [join(packageRoot, 'bin', 'graft.js'), 'launch', '--nproc', '4', '--json', ...options, recipeFile()],
    {
      ...(onEvent && { onEvent }),
    },
  );

const graftTrain = (file: string) => [process.execPath, join(packageRoot, 'bin', 'graft.js'), 'train', '--json', file];

using network = twoHosts();
const { hosts } = network;
/** On machine 0 the name of the master means the machine itself, as in the /etc/hosts of many distributions. */
hosts[0].names({ node0: '127.0.1.1', nowhere: hosts[0].addresses[0] });
hosts[1].names({ node0: hosts[0].addresses[0], nowhere: '127.0.1.1' });
const { losses: reference } = await launched({
  recipe: recipe(join(folder, 'reference'), {}, { steps }),
  ranks: 4,
  timeout: 300,
});

const differing = { file: recipeFile({ lr: 2e-3 }) };
const reversed = join(folder, 'reversed.jsonl');
writeFileSync(
  reversed,
  readFileSync(golden('train', 'batches.jsonl'), 'utf8').trim().split('\n').toReversed().join('\n'),
);
const otherRows = { file: recipeFile({}, { data: { train: reversed, format: 'batches' } }) };

const rows: Readonly<Record<string, () => Promise<Outcome>>> = {
  'two machines that meet at an address': async () => finished(...(await onBoth({}))),
  'the name of the master is 127.0.1.1 on its own machine': async () =>
    finished(...(await onBoth({ master: 'node0' }))),
  async 'GLOO_SOCKET_IFNAME names the other cable'() {
    const env = { GLOO_SOCKET_IFNAME: 'eth1' };
    const before = hosts.map((host) => host.sent(1));
    const outcome = finished(...(await onBoth({ starts: [{ env }, { env }] })));
    const sent = hosts.map((host, i) => host.sent(1) - before[i]!);
    return Math.min(...sent) > 1e5 ? outcome : { losses: Number.POSITIVE_INFINITY };
  },
  async 'GLOO_SOCKET_IFNAME names an interface that is not there'() {
    const says = /has no network interface eth9 with an address\. Name one of lo, eth0, eth1/;
    return stopped(await onBoth({ starts: [{}, { env: { GLOO_SOCKET_IFNAME: 'eth9' } }] }), [says, says]);
  },
  async 'the name of the master means the wrong machine'() {
    const ends = await onBoth({ master: 'nowhere', timeout: 10 });
    return stopped(ends, [
      /ranks 2 and 3 of 4 did not start within 10 s/,
      /on this machine nowhere is this machine itself/,
    ]);
  },
  async 'a cable is out for 5 seconds'() {
    const act: Setting['act'] = async ([, second]) => {
      second.plug('down');
      await wait(5000);
      second.plug('up');
    };
    return finished(...(await onBoth({ act })));
  },
  async 'a cable is out for good'() {
    let at = 0;
    const act: Setting['act'] = ([, second]) => {
      at = performance.now();
      second.plug('down');
    };
    const start = performance.now();
    const ends = await onBoth({ act, timeout: 15 });
    hosts[1].plug('up');
    const says = /ranks? .* took no part within 15 s, and do(es)? not answer: stopped, or cut off from the network/;
    return stopped(ends, [says, says], (at - start) / 1e3);
  },
  async 'rank 0 is stopped for a minute'() {
    return finished(...(await onBoth({ timeout: 300, act: (_, runs) => paused(rankOn(runs, 0, 0), minute) })));
  },
  async 'rank 3 is stopped for a minute'() {
    return finished(...(await onBoth({ timeout: 300, act: (_, runs) => paused(rankOn(runs, 1, 3), minute) })));
  },
  async 'rank 3 is slowed 5 times'() {
    return finished(...(await onBoth({ timeout: 300, act: (_, runs) => slowed(rankOn(runs, 1, 3)) })));
  },
  async 'rank 3 is killed, and both launchers start again'() {
    const act: Setting['act'] = (_, runs) => process.kill(rankOn(runs, 1, 3), 'SIGKILL');
    return finished(...(await onBoth({ act, options: ['--max-restarts', '2'] })));
  },
  async 'another recipe on the second machine'() {
    const says = /rank [23] has another run than rank 0: train\.lr was 0\.001 and is 0\.002/;
    return stopped(await onBoth({ starts: [{}, differing] }), [says, says]);
  },
  async 'other rows on the second machine'() {
    const says = /rank [23] has another run than rank 0: data\.train was .* which holds something else/;
    return stopped(await onBoth({ starts: [{}, otherRows] }), [says, says]);
  },
  async 'another version of Graft on the second machine'() {
    const says = /rank 0 has Graft \d+\.\d+\.\d+ .*, but rank 2 has Graft 99\.0\.0 /;
    return stopped(await onBoth({ starts: [{}, { root: otherVersion() }] }), [says, says]);
  },
  async 'the port of the master is in use'() {
    const server = createServer().listen(0);
    await new Promise((resolve) => server.once('listening', resolve));
    const { port: busy } = server.address() as { port: number };
    const ended = await onOne(['--master', `127.0.0.1:${busy}`]).ended;
    server.close();
    return stopped([ended], [new RegExp(`^127\\.0\\.0\\.1:${busy}: the port is in use on this machine`)]);
  },
  async 'two launches at once on one machine'() {
    return finished(...(await Promise.all([onOne().ended, onOne().ended])));
  },
  async 'two launches at once with one port: the second is refused, the first goes on'() {
    const meeting = ['--master', `127.0.0.1:${++port}`];
    let second: Run | undefined;
    const first = await onOne(meeting, (event) => {
      if (event.type === 'start') second = onOne(meeting);
    }).ended;
    const refused = stopped([await second!.ended], [/: the port is in use on this machine/]);
    const whole = finished(first);
    return 'losses' in whole && whole.losses <= 1e-5 ? refused : whole;
  },
  async 'torchrun, 2 processes, one of them killed, one restart'() {
    const file = recipeFile();
    const torchrun = [
      '-m',
      'torch.distributed.run',
      '--nproc-per-node',
      '2',
      '--standalone',
      '--max-restarts',
      '1',
      '--no-python',
    ];
    const job: Run = run(peerPython(), [...torchrun, ...graftTrain(file)], {
      onEvent: interruptedAt(when, () => process.kill(processOf(1, job.child.pid), 'SIGKILL')),
    });
    const ended = await job.ended;
    return Number(ended.document.resumed_from) > 0 ? finished(ended) : { losses: Number.POSITIVE_INFINITY };
  },
  async 'mpirun, 2 processes'() {
    const options = ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '-np', '2'];
    return finished(await run('mpirun', [...options, ...graftTrain(recipeFile())]).ended);
  },
  async 'the variables of a Slurm step, 2 tasks'() {
    const file = recipeFile();
    const tasks = [0, 1].map((task) => {
      const env = {
        SLURM_PROCID: `${task}`,
        SLURM_LOCALID: `${task}`,
        SLURM_NODEID: '0',
        SLURM_NTASKS: '2',
        SLURM_STEP_NUM_TASKS: '2',
        SLURM_STEP_TASKS_PER_NODE: '2',
        SLURM_JOB_ID: `${process.pid}`,
        SLURM_STEP_ID: '0',
        SLURM_STEP_NODELIST: 'localhost',
      };
      return run(graftTrain(file)[0]!, graftTrain(file).slice(1), { env }).ended;
    });
    return finished((await Promise.all(tasks))[0]!);
  },
};

const chosen = Object.entries(rows).filter(([name]) => !args.only || name.includes(args.only));
const outcomes: { readonly name: string; readonly outcome: Outcome }[] = [];
for (const [name, act] of chosen) {
  outcomes.push({ name, outcome: await act() });
  console.log(JSON.stringify(outcomes.at(-1)));
}
const all = outcomes.map(({ outcome }) => outcome);
const ends = all.filter((outcome) => 'losses' in outcome);
const stops = all.filter((outcome) => 'said' in outcome);
report(
  'hosts',
  [
    { what: 'rows', got: all.length, bar: chosen.length, better: 'more' },
    {
      what: 'finished: relative difference of the losses',
      got: Math.max(0, ...ends.map(({ losses }) => losses)),
      bar: 1e-5,
      better: 'less',
    },
    {
      what: 'stopped: without one sentence that says why',
      got: stops.filter(({ right }) => !right).length,
      bar: 0,
      better: 'less',
    },
    {
      what: 'stopped: seconds until all had ended, at most',
      got: round(Math.max(0, ...stops.map(({ seconds }) => seconds))),
      bar: 60,
      better: 'less',
    },
  ],
  {
    finished: ends.length,
    stopped: stops.length,
    outcomes,
    ip: spawnSync('ip', ['-V'], { encoding: 'utf8' }).stdout.trim(),
  },
);
