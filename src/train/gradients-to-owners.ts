/**
 * Gradients that leave a process while its backward pass runs (ZeRO stages 2 and 3): in buckets, each sent to the processes that update its
 * parameters as soon as all of its gradients are complete, and freed.
 */
import { GraftError } from '../base/index.ts';
import {
  bucketSize,
  buckets,
  concatenated,
  type Group,
  gradientBucketSize,
  type Piece,
  parts,
  size,
} from '../distributed/index.ts';
import { detachFromScopes, noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/** What this process updates of a parameter. */
interface Own {
  readonly parameter: Tensor;
  readonly tensor: Tensor;
}

/** Parameters whose gradients are sent together. */
interface Bucket {
  /** In an order in which what each process updates is one after the other, by their ranks. */
  readonly parameters: readonly Tensor[];
  readonly own: readonly Own[];
  /** How many numbers go to each process. */
  readonly sends: readonly number[];
  /** The gradients of `own` so far, of all processes. */
  sum?: Tensor;
}

/** A bucket that is being sent, or a part of a large one. */
interface Sent {
  readonly bucket: Bucket;
  /** From which number of those that this process updates. */
  readonly from: number;
  /** How many of them this process receives from each. */
  readonly count: number;
  /** How many numbers are sent. */
  readonly numel: number;
  readonly finish: () => Tensor;
}

/** Buckets of a step at least, where it has so many numbers: what is not sent before the backward pass ends, the processes wait for. */
const bucketsOfPass = 16;
/** Numbers of a bucket at least, for which a collective is worth its time. */
const leastBucket = 1 << 15;

export class GradientsToOwners {
  readonly #group: Group;
  readonly #parameters: ReadonlyMap<string, Tensor>;
  readonly #pieces: ReadonlyMap<Tensor, readonly Piece[]>;
  /** Of the step that runs. The same on all processes, which send them in this order. */
  #buckets: readonly Bucket[] | undefined;
  /** As well, of parameters that were sent together at a place of the pass that all processes come to. */
  readonly #atPlaces = new Map<readonly Tensor[], readonly Bucket[]>();
  /** Parameters that had a gradient in this step. */
  readonly #present = new Set<Tensor>();
  /** Those of which no process had a gradient in some step, such as the heads of other tasks: sent last, so that nothing waits for them. */
  readonly #oftenAbsent = new Set<Tensor>();
  /** What is being sent, the first first: buckets, or parts of large ones. Together no more than `gradientBucketSize`, or a single one. */
  readonly #underWay: Sent[] = [];

  /** @param pieces of each parameter, in the order of the ranks that update them */
  constructor(group: Group, parameters: ReadonlyMap<string, Tensor>, pieces: ReadonlyMap<Tensor, readonly Piece[]>) {
    this.#group = group;
    this.#parameters = parameters;
    this.#pieces = pieces;
  }

  /**
   * Sends the gradients of a backward pass while it runs. Every process has to call this as often as the others.
   * @param run the pass; undefined where this process has none, and sends zeros
   * @throws GraftError 'usage' where a pass completes the gradient of a parameter twice
   */
  during(run: (() => void) | undefined): void {
    this.#buckets ??= this.#bucketsOfStep();
    const all = this.#buckets;
    let next = 0;
    const sendNext = () => this.#send(all[next++]!);
    if (run) {
      const missing = all.map(({ parameters }) => parameters.length);
      const complete = new Set<Tensor>();
      const ofBucket = new Map(all.flatMap(({ parameters }, i) => parameters.map((parameter) => [parameter, i])));
      try {
        for (const [parameter, bucket] of ofBucket) {
          parameter.onGradient(() => {
            if (complete.has(parameter)) throw this.#secondGradient(parameter);
            complete.add(parameter);
            missing[bucket]!--;
            while (missing[next] === 0) sendNext();
          });
        }
        run();
      } finally {
        for (const parameter of ofBucket.keys()) parameter.onGradient(undefined);
      }
    }
    while (next < all.length) sendNext();
  }

  /**
   * Sends the gradients of some parameters of which no more comes in this pass, zeros where this process has none. Every process has to
   * call it with the same parameters, in the same order, instead of `during`.
   */
  send(parameters: readonly Tensor[]): void {
    const all =
      this.#atPlaces.get(parameters) ?? this.#bucketsOf(parameters.filter(({ requiresGrad }) => requiresGrad));
    this.#atPlaces.set(parameters, all);
    // What was sent at the place before had time to travel. More would not be in the plan of memory.
    noGrad(() => this.#receiveAll());
    for (const bucket of all) this.#send(bucket);
  }

  /** Adds up the gradients of parameters that some process has: afterwards their owners have the sums, and nobody else anything. */
  sum(parameters: readonly Tensor[]): void {
    noGrad(() => {
      using _ = scope();
      const all = this.#bucketsOf(parameters);
      for (const bucket of all) this.#send(bucket);
      this.#receiveAll();
      this.#give(all, () => true);
      this.#present.clear();
    });
  }

  /** Gives the parameters of this process the sums of the step. @returns the parameters of which any process had a gradient */
  finish(): readonly Tensor[] {
    const sent = [this.#buckets ?? [], ...this.#atPlaces.values()].flat();
    const all = sent.flatMap(({ parameters }) => parameters);
    return noGrad(() => {
      using _ = scope();
      this.#receiveAll();
      const processes = Tensor.from(Float32Array.from(all, (parameter) => (this.#present.has(parameter) ? 1 : 0)));
      this.#group.sum(processes);
      const counts = processes.data();
      const shared = new Set(all.filter((_, i) => Number(counts[i]) > 0));
      for (const parameter of all) if (!shared.has(parameter)) this.#oftenAbsent.add(parameter);
      this.#give(sent, (parameter) => shared.has(parameter));
      this.#buckets = undefined;
      this.#atPlaces.clear();
      this.#present.clear();
      return [...shared];
    });
  }

  #give(all: readonly Bucket[], has: (parameter: Tensor) => boolean): void {
    for (const { own, sum } of all) {
      if (!sum) continue;
      const gradients = parts(
        sum,
        own.map(({ tensor }) => tensor),
      );
      for (const [i, { parameter, tensor }] of own.entries()) if (has(parameter)) tensor.grad = gradients[i]!;
      sum.dispose();
    }
  }

  /** The last parameters first, as backward passes complete them. */
  #bucketsOfStep(): readonly Bucket[] {
    const trained = [...this.#parameters.values()].filter(({ requiresGrad }) => requiresGrad).reverse();
    const { true: last = [], false: first = [] } = Object.groupBy(trained, (parameter) =>
      this.#oftenAbsent.has(parameter) ? 'true' : 'false',
    );
    const limit = Math.max(leastBucket, Math.ceil(size(trained) / bucketsOfPass));
    return [first, last].flatMap((some) => this.#bucketsOf(some, limit));
  }

  #bucketsOf(parameters: readonly Tensor[], limit = Number.POSITIVE_INFINITY): readonly Bucket[] {
    const piecesOf = (parameter: Tensor) => this.#pieces.get(parameter)!;
    // What several processes update in parts goes to all of them at once: of each part some.
    const isDivided = parameters.some((parameter) => piecesOf(parameter).length > 1);
    // Else a quarter, so that some are on their way while the next one fills.
    const all = isDivided ? [parameters] : buckets(parameters, Math.min(limit, this.#limit >> 2));
    return all.map((bucket) => {
      const [first, last] = [0, -1].map((at) => (parameter: Tensor) => piecesOf(parameter).at(at)!.owner);
      const byOwner = bucket.toSorted((a, b) => first!(a) - first!(b) || last!(a) - last!(b));
      const sends = Array.from({ length: this.#group.size }, () => 0);
      const own: Own[] = [];
      for (const parameter of byOwner)
        for (const { owner, count, own: tensor } of piecesOf(parameter)) {
          sends[owner]! += count;
          if (tensor) own.push({ parameter, tensor });
        }
      return { parameters: byOwner, own, sends };
    });
  }

  /** Numbers that are under way at most. */
  get #limit(): number {
    return gradientBucketSize(this.#group.size);
  }

  #send(bucket: Bucket): void {
    noGrad(() => {
      using _ = scope();
      const gradients = this.#taken(bucket.parameters);
      const { sends } = bucket;
      let numbers = 0;
      const begins = sends.map((count) => {
        const begin = numbers;
        numbers += count;
        return begin;
      });
      // More than may be under way goes in rounds: in each, every owner receives some from every process.
      const owners = sends.filter((count) => count > 0).length;
      // Where all processes own some, none receives more than it sends.
      const limit = owners > 1 ? bucketSize : this.#limit;
      const most = numbers > limit ? Math.ceil((limit >> 2) / owners) : Math.max(...sends);
      for (let from = 0; sends.some((count) => count > from); from += most) {
        const counts = sends.map((count) => Math.max(0, Math.min(most, count - from)));
        const numel = counts.reduce((a, b) => a + b, 0);
        this.#makeRoom(numel);
        const sent = concatenated(counts.flatMap((count, rank) => numbersIn(gradients, begins[rank]! + from, count)));
        const count = counts[this.#group.rank]!;
        const finish = this.#group.beginExchange(
          sent,
          counts,
          counts.map(() => count),
        );
        this.#underWay.push({ bucket, from, count, numel, finish });
      }
    });
  }

  /** Returns the gradients of parameters, zeros where there is none, and frees what the parameters have. */
  #taken(parameters: readonly Tensor[]): readonly Tensor[] {
    return parameters.map((parameter) => {
      const { grad } = parameter;
      if (grad) this.#present.add(parameter);
      parameter.grad = undefined;
      return grad ?? ops.zeros(parameter.shape, { dtype: parameter.dtype });
    });
  }

  /** Waits for what was sent first until so many numbers more may be under way. */
  #makeRoom(numel: number): void {
    let under = this.#underWay.reduce((sum, sent) => sum + sent.numel, numel);
    while (under > this.#limit && this.#underWay.length > 0) {
      const sent = this.#underWay.shift()!;
      under -= sent.numel;
      this.#receive(sent);
    }
  }

  #receiveAll(): void {
    for (const sent of this.#underWay.splice(0)) this.#receive(sent);
  }

  /** Waits for what is being sent, and adds what came to the sums. */
  #receive({ bucket, from, count, finish }: Sent): void {
    using _ = scope();
    using received = finish();
    if (count === 0) return;
    const sum = ops.sumDim(ops.view(received, [this.#group.size, count]), [0]);
    bucket.sum ??= detachFromScopes(ops.zeros([bucket.sends[this.#group.rank]!]));
    ops.add_(ops.narrow(bucket.sum, 0, from, count), sum);
  }

  #secondGradient(parameter: Tensor): GraftError {
    const [key] = [...this.#parameters].find(([, each]) => each === parameter)!;
    return new GraftError('usage', `${key} gets a second gradient in a backward pass, after the first was sent`, {
      place: 'train.zero.stage',
      hint: 'Set train.gradient_checkpointing: false where several blocks share a parameter, or train.zero.stage: 1',
    });
  }
}

/** Some numbers of tensors that follow each other, as views. */
function numbersIn(tensors: readonly Tensor[], from: number, count: number): Tensor[] {
  const found: Tensor[] = [];
  let begin = 0;
  for (const tensor of tensors) {
    const [first, last] = [Math.max(from, begin) - begin, Math.min(from + count, begin + tensor.numel) - begin];
    begin += tensor.numel;
    if (first >= last) continue;
    const all = last - first === tensor.numel;
    found.push(all ? tensor : ops.narrow(ops.reshape(tensor, [tensor.numel]), 0, first, last - first));
  }
  return found;
}
