/** One process of a group, for src/distributed/group.test.ts: joins, does what its argument says, and prints what came of it as JSON. */
import { GraftError } from '../../src/base/index.ts';
import { joinGroup, launchEnvironment } from '../../src/distributed/index.ts';
import { startEngine, useThreads } from '../../src/engine/index.ts';
import { noGrad, ops, Tensor } from '../../src/tensor/index.ts';
import { shardingOf } from '../../src/train/index.ts';

const floats = (...values: number[]) => Tensor.from(new Float32Array(values));
const numbers = (tensor: Tensor) => Array.from(tensor.data(), Number);

/** What processes do, by name. @param rank that is to fail, where an action has one that fails */
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
  /** Gradients of parameters of different sizes, one of which only rank 1 has and one nobody; then an update by the owners. */
  shard(group, stage) {
    const sizes = [700_000, 4_300_000, 31, 250_000, 9, 64];
    const parameters = new Map(sizes.map((size, i) => [`p${i}`, Tensor.from(new Float32Array(size))]));
    const [all, { rank }] = [[...parameters.values()], group];
    all.forEach((parameter, i) => {
      parameter.requiresGrad = true;
      if (i === 5 || (i === 4 && rank !== 1)) return;
      parameter.grad = Tensor.from(new Float32Array(parameter.numel).fill((i + 1) * (rank + 1)));
    });
    const sharding = shardingOf(group, parameters, stage === 0 ? 0 : 1, false);
    const before = { ...group.traffic };
    sharding.sumGradients();
    const squares = [...sharding.owned.values()].reduce((sum, { grad }) => {
      const values = grad?.data() as Float32Array | undefined;
      return sum + (values?.reduce((total, value) => total + value * value, 0) ?? 0);
    }, 0);
    const norm = sharding.norm(Math.sqrt(squares));
    for (const parameter of sharding.owned.values())
      if (parameter.grad) noGrad(() => ops.copy_(parameter, parameter.grad!));
    sharding.shareUpdates();
    return {
      owned: [...sharding.owned.values()].reduce((sum, { numel }) => sum + numel, 0),
      norm,
      values: all.map((parameter) => [...new Set(numbers(parameter))]),
      sent: group.traffic.sent - before.sent,
      numbers: sizes.reduce((a, b) => a + b),
    };
  },
  kill(group, failing) {
    if (group.rank === failing) process.kill(process.pid, 'SIGKILL');
    group.barrier();
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
await startEngine();
useThreads(1);
let result: object;
const start = performance.now();
const seconds = () => (performance.now() - start) / 1e3;
try {
  using group = joinGroup(launchEnvironment());
  try {
    result = { value: actions[action!]!(group, Number(failing)) };
  } catch (error) {
    result = { error: group.failed(error).toJSON(), seconds: seconds() };
  }
} catch (error) {
  result = { error: GraftError.of(error).toJSON(), seconds: seconds() };
}
console.log(JSON.stringify(result));
process.exit();
