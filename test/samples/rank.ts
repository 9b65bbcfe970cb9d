/** One process of a group, for src/distributed/group.test.ts: joins, does what its argument says, and prints what came of it as JSON. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { GraftError } from '../../src/base/index.ts';
import { pack } from '../../src/data/index.ts';
import { joinGroup, launchEnvironment } from '../../src/distributed/index.ts';
import { currentEngine, startEngine, useThreads } from '../../src/engine/index.ts';
import { LaterWeights } from '../../src/models/index.ts';
import { useGates, useGradientCheckpointing } from '../../src/nn/index.ts';
import { checkpoint, noGrad, ops, scope, Tensor } from '../../src/tensor/index.ts';
import {
  gatheredSharding,
  openTaskModels,
  optimizerFor,
  parseRecipe,
  type Sharding,
  shardingOf,
  shareOut,
  trainStep,
} from '../../src/train/index.ts';

const floats = (...values: number[]) => Tensor.from(new Float32Array(values));
const numbers = (tensor: Tensor) => Array.from(tensor.data(), Number);

type Stage = Parameters<typeof shardingOf>[2];

/** Sets parameters to their gradients, as an update by their owners. */
function update(sharding: Sharding): void {
  for (const parameter of sharding.owned.values())
    if (parameter.grad) noGrad(() => ops.copy_(parameter, parameter.grad!));
  sharding.shareUpdates();
}

/** Bytes that this process has read from files and connections. */
const bytesRead = () => Number(/^rchar: (\d+)/m.exec(readFileSync('/proc/self/io', 'utf8'))![1]);

/** What processes do, by name. @param failing rank that is to fail, where an action has one that fails */
const actions: Record<string, (group: ReturnType<typeof joinGroup>, failing: number) => unknown> = {
  collectives(group) {
    const { rank, size } = group;
    const sum = floats(rank + 1, 10);
    group.sum(sum);
    const coded = Tensor.from(new Uint8Array([rank, 200]));
    group.broadcast(coded, 1);
    group.barrier();
    return {
      sum: numbers(sum),
      gather: numbers(group.gather(floats(rank, 7))),
      gatheredBytes: (() => {
        const into = Tensor.empty([2 * size], 'uint8');
        group.beginGather(Tensor.from(new Uint8Array([rank, 7])), into)();
        return [...into.bytes()];
      })(),
      scatter: numbers(group.scatter(floats(...Array.from({ length: 2 * size }, (_, i) => i)))),
      broadcast: numbers(coded),
      // Rank r sends to each process r + 1 numbers.
      exchange: numbers(
        group.exchange(
          floats(...Array.from({ length: size * (rank + 1) }, () => 10 * rank)),
          Array.from({ length: size }, () => rank + 1),
          Array.from({ length: size }, (_, other) => other + 1),
        ),
      ),
      agreed: group.agree({ rank, twice: 2 * rank }),
      collected: group.collect({ of: 'x'.repeat(rank) }),
      shared: group.share(() => ({ rank, text: 'ö', nothing: null })),
      traffic: group.traffic,
    };
  },
  /**
   * Two steps with gradients of parameters of different sizes, one of which only rank 1 has and one nobody, from two backward passes of rank
   * 0 and one of the others; in each an update by the owners.
   */
  shard(group, stage) {
    const sizes = [700_000, 4_300_000, 31, 250_000, 9, 64];
    const parameters = new Map(sizes.map((size, i) => [`p${i}`, Tensor.from(new Float32Array(size))]));
    const [all, { rank }] = [[...parameters.values()], group];
    for (const parameter of all) parameter.requiresGrad = true;
    /** Gives parameter i the gradient (i + 1) · factor. */
    const pass = (factor: number, has: (i: number) => boolean) => {
      using _ = scope();
      const terms = all.flatMap((parameter, i) =>
        has(i) ? [ops.mulScalar(ops.sum(parameter), (i + 1) * factor)] : [],
      );
      terms.reduce((sum, term) => ops.add(sum, term)).backward();
    };
    const sharding = shardingOf(group, parameters, stage as Stage, false);
    const step = () => {
      sharding.during(() => pass(rank + 1, (i) => i < 4 || (i === 4 && rank === 1)));
      sharding.during(rank === 0 ? () => pass(10, (i) => i < 4) : undefined);
      sharding.sumGradients();
    };
    step();
    update(sharding);
    for (const parameter of all) parameter.grad = undefined;
    const before = { ...group.traffic };
    step();
    const keys = ['p1', 'p4', 'p5'];
    const gradNorms = [...keys.map((key) => [key]), keys].map((some) => sharding.gradNorm(some) ?? null);
    const elsewhere = all.filter((parameter) => parameter.grad && ![...sharding.owned.values()].includes(parameter));
    const squares = [...sharding.owned.values()].reduce((sum, { grad }) => {
      const values = grad?.data() as Float32Array | undefined;
      return sum + (values?.reduce((total, value) => total + value * value, 0) ?? 0);
    }, 0);
    const norm = sharding.norm(Math.sqrt(squares));
    update(sharding);
    return {
      gradNorms,
      elsewhere: elsewhere.length,
      owned: [...sharding.owned.values()].reduce((sum, { numel }) => sum + numel, 0),
      norm,
      values: all.map((parameter) => [...new Set(numbers(parameter))]),
      sent: group.traffic.sent - before.sent,
      numbers: sizes.reduce((a, b) => a + b),
    };
  },
  /** Memory and traffic of a step of 32 layers of 4 MiB each. */
  layers(group, stage) {
    const { native } = currentEngine();
    const [count, width] = [32, 1024];
    const layers = Array.from({ length: count }, () => Tensor.empty([width, width]));
    for (const layer of layers) layer.requiresGrad = true;
    const sharding = shardingOf(
      group,
      new Map(layers.map((layer, i) => [`layers.${i}`, layer])),
      stage as Stage,
      false,
    );
    const [traffic, { now }] = [group.traffic.sent, native.allocated()];
    sharding.during(() => {
      using _ = scope();
      ops.sum(layers.reduce((x, layer) => ops.tanh(ops.linear(x, layer)), ops.zeros([2, width]))).backward();
    });
    sharding.sumGradients();
    const memory = native.allocated();
    sharding.shareUpdates();
    return {
      peak: memory.peak - now,
      after: memory.now - now,
      ofUpdates: native.allocated().peak - memory.now,
      sent: group.traffic.sent - traffic,
      bytes: 4 * count * width ** 2,
    };
  },
  /** A parameter that a block uses which runs again in the backward pass, and the loss too. */
  twice(group) {
    const weight = floats(1, 2, 3);
    weight.requiresGrad = true;
    const sharding = shardingOf(group, new Map([['weight', weight]]), 2, false);
    sharding.during(() => {
      using _ = scope();
      const inner = checkpoint((x) => [ops.mul(x!, weight)], [ops.mulScalar(weight, 2)]);
      ops.sum(ops.mul(inner[0]!, weight)).backward();
    });
  },
  /**
   * Loads the model in MODEL, shares its weights out, and takes four steps of one row for each process, with the fields of a recipe in FIELDS;
   * under gradient checkpointing where CHECKPOINTED is "true".
   */
  async sharedOut(group) {
    const { native } = currentEngine();
    const path = process.env.MODEL!;
    const fields = JSON.parse(process.env.FIELDS!) as object;
    const recipe = parseRecipe({ model: path, data: { train: 'none' }, run: { dir: 'none' }, ...fields });
    const { now: before } = native.allocated();
    const readBefore = bytesRead();
    const later = new LaterWeights();
    using models = openTaskModels(recipe, path, [{ name: undefined, head: {} }], false, later);
    const gathered = shareOut(group, models, later, true);
    later[Symbol.dispose]();
    const loadPeak = native.allocated().peak - before;
    // Frees what files were read into.
    for (let i = 0; i < 5; i++) {
      runInNewContext('gc')();
      await setTimeout(5);
    }
    const loaded = native.allocated().now - before;
    const read = bytesRead() - readBefore;
    const { host, adapter, parameters } = models;
    const sharding = gatheredSharding(group, parameters, gathered, false);
    using optimizer = optimizerFor(models, recipe, sharding.owned);
    using _gates = useGates(sharding.gates!);
    using _checkpointing = useGradientCheckpointing(process.env.CHECKPOINTED === 'true');
    const row = (i: number) => {
      const ids = Int32Array.from({ length: 16 }, (_, t) => 3 + ((31 * i + 7 * t) % 90));
      return { ids, labels: ids, place: 'test' };
    };
    const batches = Array.from({ length: group.size }, (_, i) => pack([row(i)]));
    const step = (number: number) => {
      const common = { model: host, parameters, optimizer, adapter, sharding, batches };
      return trainStep({ ...common, lr: 1e-3, maxGradNorm: undefined, seed: 1, step: number }).loss;
    };
    const losses = [step(0)];
    // Threads of the network let go of what they sent when they send something else.
    for (let i = 0; i < 8; i++) group.barrier();
    await setTimeout(5);
    const kept = native.allocated().now - before;
    const { sent } = group.traffic;
    losses.push(step(1));
    const trafficOfStep = group.traffic.sent - sent;
    // What a step needs is the least of three: threads of the network that did not get a core hold blocks of before.
    const peaks = [native.allocated().peak];
    for (const number of [2, 3]) {
      losses.push(step(number));
      peaks.push(native.allocated().peak);
    }
    return {
      losses,
      loadPeak,
      loaded,
      read,
      kept,
      peak: Math.min(...peaks) - before,
      sent: trafficOfStep,
      trained: [...parameters.values()].reduce((sum, { numel }) => sum + numel, 0),
      owned: [...sharding.owned.values()].reduce((sum, { numel }) => sum + numel, 0),
    };
  },
  kill(group, failing) {
    if (group.rank === failing) process.kill(process.pid, 'SIGKILL');
    group.barrier();
  },
  killWhileConnecting(group) {
    for (;;) group.barrier();
  },
  stop(group, failing) {
    if (group.rank === failing) process.kill(process.pid, 'SIGSTOP');
    group.barrier();
  },
  fail(group, failing) {
    if (group.rank === failing) throw new GraftError('input', 'the row has no label', { place: 'rows.jsonl:3' });
    group.barrier();
  },
  failInShare(group) {
    group.share(() => {
      throw new GraftError('state', 'the directory is in use', { place: 'out' });
    });
  },
  slow(group, failing) {
    if (group.rank === failing) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4000);
    group.barrier();
  },
};

const [action, failing] = process.argv.slice(2);
setFlagsFromString('--expose-gc');
await startEngine();
useThreads(1);
if (action === 'killWhileConnecting' && process.env.RANK === failing) {
  const { native } = currentEngine();
  const connect = native.groupConnect;
  native.groupConnect = (...args) => {
    const after = process.env.KILL_AFTER;
    if (after === undefined) process.kill(process.pid, 'SIGKILL');
    spawn('sh', ['-c', `sleep ${after}; kill -9 ${process.pid}`], { stdio: 'ignore' });
    return connect(...args);
  };
}
let result: object;
const start = performance.now();
const seconds = () => (performance.now() - start) / 1e3;
try {
  using group = joinGroup(launchEnvironment());
  try {
    result = { value: await actions[action!]!(group, Number(failing)) };
  } catch (error) {
    result = { error: group.failed(error).toJSON(), seconds: seconds() };
  }
} catch (error) {
  result = { error: GraftError.of(error).toJSON(), seconds: seconds() };
}
console.log(JSON.stringify(result));
process.exit();
