/** A group of any number of processes, of which one is there: it does and counts what a process would, and the others send it what it has. */
import type { Group } from '../../src/distributed/index.ts';
import { detachFromScopes, dtypes, noGrad, ops, scope, type Tensor } from '../../src/tensor/index.ts';

/** Returns the group of the process `rank` of `size`, with what it sent so far, by the volumes that `ConnectedGroup` counts. */
export function countingGroup(rank: number, size: number): Group {
  let sent = 0;
  const others = size - 1;
  const gather = (tensor: Tensor) => {
    sent += others * tensor.nbytes;
    const { shape, numel } = tensor;
    const copies = ops.expand(ops.view(ops.detach(tensor), [1, numel]), [size, numel]);
    return noGrad(() => ops.reshape(copies, [size * shape[0]!, ...shape.slice(1)]));
  };
  const exchange = (tensor: Tensor, sends: readonly number[], receives: readonly number[]) => {
    sent += dtypes[tensor.dtype].bytes * sends.reduce((sum, count, to) => sum + (to === rank ? 0 : count), 0);
    return ops.zeros([receives.reduce((a, b) => a + b, 0)], { dtype: tensor.dtype });
  };
  const broadcast = (tensor: Tensor, from = 0) => {
    if (from === rank) sent += others * tensor.nbytes;
    else ops.fill_(tensor, 0.01);
  };
  return {
    rank,
    size,
    localSize: size,
    sum(tensor) {
      sent += (2 * others * tensor.nbytes) / size;
    },
    gather,
    beginGather: (bytes, into) => {
      using _ = scope();
      noGrad(() => ops.copy_(into, gather(bytes)));
      return () => {};
    },
    scatter: (tensor) => ops.narrow(tensor, 0, 0, tensor.size(0) / size),
    exchange,
    beginExchange: (...given) => {
      const received = detachFromScopes(exchange(...given));
      return () => received;
    },
    broadcast,
    beginBroadcast: (tensor, from) => {
      broadcast(tensor, from);
      return () => {};
    },
    agree: (values) =>
      Object.fromEntries(
        Object.entries<number>(values).map(([name, value]) => [name, Array(size).fill(value)]),
      ) as never,
    collect: (value) => Array(size).fill(value),
    share: (make) => make(),
    barrier() {},
    get traffic() {
      return { sent, received: 0, waited: 0 };
    },
  };
}
