import { currentEngine } from '../engine/index.ts';
import { type KvPool, type Model, packTokens, useRowWiseProducts } from '../nn/index.ts';
import { inType, noGrad, ops, scope, Tensor } from '../tensor/index.ts';
import { PassThreads } from './pass-threads.ts';
import type { RowSampler, Sampled } from './row-sampler.ts';
import { requireFiniteLogit } from './sampling.ts';
import type { StepRow } from './scheduler.ts';

/** A row of a step with what a pass needs besides. */
export interface RunnerRow extends StepRow {
  readonly sampler: RowSampler;
  readonly taskNumber: number | undefined;
}

/**
 * Computes steps: one pass through the model, logits where a token is sampled, one read-back for the rows that take the likeliest token
 * and one for those that draw. The only owner of tensors.
 */
export class Runner implements Disposable {
  readonly #pool: KvPool;

  constructor(pool: KvPool) {
    this.#pool = pool;
  }

  /**
   * Runs the model on the rows.
   * @param inBanks whether the rows' adapters are in the model's banks; else all rows use what is enabled
   * @returns what each row sampled; undefined for rows that do not sample
   * @throws GraftError 'numeric' for a logit that is NaN or infinite
   */
  run(model: Model, rows: readonly RunnerRow[], inBanks: boolean): (Sampled | undefined)[] {
    const { native } = currentEngine();
    const most = native.threads(undefined);
    const choice = threadsOf(model).of(
      rows.reduce((tokens, { count }) => tokens + count, 0),
      most,
    );
    if (!choice) return this.#run(model, rows, inBanks);
    const start = performance.now();
    native.threads(choice.threads);
    try {
      return this.#run(model, rows, inBanks);
    } finally {
      native.threads(most);
      choice.took(performance.now() - start);
    }
  }

  #run(model: Model, rows: readonly RunnerRow[], inBanks: boolean): (Sampled | undefined)[] {
    return noGrad(() => {
      using _ = scope();
      using _rowWise = useRowWiseProducts();
      const tokens = packTokens(
        rows.map(({ sequence, start, count }) => sequence.ids.slice(start, start + count)),
        rows.map(({ taskNumber }) => taskNumber),
        inBanks ? rows.map(({ sequence }) => sequence.adapter) : undefined,
      );
      try {
        const hidden = model.hidden(tokens, {
          pool: this.#pool,
          blocks: rows.map(({ sequence }) => sequence.blocks),
          filled: rows.map(({ sequence }) => sequence.filled),
        });
        return this.#sample(model, rows, hidden, tokens.rowStarts, inBanks);
      } finally {
        model.ports.selectRuns();
      }
    });
  }

  #sample(model: Model, rows: readonly RunnerRow[], hidden: Tensor, rowStarts: readonly number[], inBanks: boolean) {
    const sampled = new Array<Sampled | undefined>(rows.length).fill(undefined);
    const sampling = rows.flatMap((row, r) => (row.samples ? [{ row, r, last: rowStarts[r + 1]! - 1 }] : []));
    if (sampling.length === 0) return sampled;
    const isAll = sampling.length === hidden.size(0);
    const lasts = isAll ? hidden : ops.indexSelect(hidden, 0, indexOf(sampling.map(({ last }) => last)));
    const starts = Array.from({ length: sampling.length + 1 }, (_, i) => i);
    model.ports.selectRuns(starts, inBanks ? sampling.map(({ row }) => row.sequence.adapter) : undefined);
    const logits = model.logits(lasts, starts);
    const greedy = sampling.flatMap(({ row }, i) => (row.sampler.takesLikeliest ? [i] : []));
    if (greedy.length > 0) {
      const [largest, ids] = ops.maxDim(selected(logits, greedy), 1);
      // Read together: float64 holds both exactly.
      const found = ops.cat([largest, ids].map((t) => inType(t, 'float64'))).data() as Float64Array;
      greedy.forEach((i, at) => {
        const id = found[greedy.length + at]!;
        requireFiniteLogit(found[at]!, id);
        sampled[sampling[i]!.r] = { id };
      });
    }
    const drawn = sampling.flatMap(({ row }, i) => (row.sampler.takesLikeliest ? [] : [i]));
    if (drawn.length === 0) return sampled;
    const values = selected(logits, drawn).data() as Float32Array;
    drawn.forEach((i, at) => {
      const { row, r } = sampling[i]!;
      sampled[r] = row.sampler.pick(values.subarray(at * model.vocabSize, (at + 1) * model.vocabSize));
    });
    return sampled;
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}

const knownThreads = new WeakMap<Model, PassThreads>();

function threadsOf(model: Model): PassThreads {
  const known = knownThreads.get(model) ?? new PassThreads();
  knownThreads.set(model, known);
  return known;
}

const indexOf = (rows: readonly number[]) => Tensor.from(BigInt64Array.from(rows, BigInt));

/** The given rows of logits, in float32. */
function selected(logits: Tensor, rows: readonly number[]): Tensor {
  const chosen = rows.length === logits.size(0) ? logits : ops.indexSelect(logits, 0, indexOf(rows));
  return inType(chosen, 'float32');
}
