/**
 * AdaLoRA's rank allocation (arXiv 2303.10512, §3.2 and §3.3, eq. 8 to 12). A rank is a triplet: a row of A, a value of E, a column of
 * B. Its importance is the sensitivity |w · ∂loss/∂w| of its values, smoothed over steps, times the uncertainty of that sensitivity.
 * Of all triplets of all layers only the most important keep their value of E, fewer with every step down to a target. Details as in
 * PEFT (tuners/adalora/layer.py RankAllocator).
 */
import { GraftError } from '../../base/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';

/** Fields of AdaLoRA's config that decide the budget, under PEFT's names. */
export interface Schedule {
  readonly target_r: number;
  readonly tinit: number;
  readonly tfinal: number;
  readonly deltaT: number;
  readonly beta1: number;
  readonly beta2: number;
}

/** The triplets of one layer: A [r, in], E [r, 1] and B [out, r]. */
export interface Triplets {
  readonly path: string;
  readonly a: Tensor;
  readonly e: Tensor;
  readonly b: Tensor;
}

/** Checks that the phases leave a step in which ranks are pruned. @throws GraftError 'usage' */
export function requirePhases({ tinit, tfinal }: Schedule, steps: number | null | undefined): void {
  if (steps == null || tinit < steps - tfinal) return;
  throw new GraftError(
    'usage',
    `tinit ${tinit} and tfinal ${tfinal} leave no step to prune ranks: the run has ${steps}`,
    {
      place: 'method',
      hint: 'Reduce them, or train for more steps',
    },
  );
}

const zeros = (shape: readonly number[]): Tensor => detachFromScopes(noGrad(() => ops.zeros(shape)));

export class RankBudget {
  readonly #layers: readonly Triplets[];
  readonly #schedule: Schedule;
  readonly #initialRanks: number;
  readonly #targetRanks: number;
  /** Smoothed sensitivity and uncertainty of every value of a parameter. */
  readonly #statistics: Map<Tensor, { sensitivity: Tensor; uncertainty: Tensor }>;
  /** Masks by path: 1 for a rank that is kept. All 0 before the first choice. */
  readonly #masks: Map<string, Tensor>;
  /** The tensors that a checkpoint saves. */
  readonly state: ReadonlyMap<string, Tensor>;
  /** Optimizer steps of the whole run. */
  steps: number | undefined;

  constructor(layers: readonly Triplets[], schedule: Schedule, steps: number | undefined) {
    this.#layers = layers;
    this.#schedule = schedule;
    this.#initialRanks = layers.reduce((sum, { a }) => sum + a.size(0), 0);
    this.#targetRanks = schedule.target_r * layers.length;
    const parameters = layers.flatMap(({ path, a, e, b }) => [
      [`${path}.lora_A`, a] as const,
      [`${path}.lora_E`, e] as const,
      [`${path}.lora_B`, b] as const,
    ]);
    this.#statistics = new Map(
      parameters.map(([, t]) => [t, { sensitivity: zeros(t.shape), uncertainty: zeros(t.shape) }]),
    );
    this.#masks = new Map(layers.map(({ path, a }) => [path, zeros([a.size(0)])]));
    this.state = new Map([
      ...parameters.flatMap(([key, t]) =>
        (['sensitivity', 'uncertainty'] as const).map(
          (name) => [`${key}.${name}`, this.#statistics.get(t)![name]] as const,
        ),
      ),
      ...[...this.#masks].map(([path, mask]) => [`${path}.kept`, mask] as const),
    ]);
    this.begin(steps);
  }

  /** Sets the number of steps of the run, once. @throws GraftError 'usage' where they leave no step to prune ranks */
  begin(steps: number | undefined): void {
    this.steps ??= steps;
    requirePhases(this.#schedule, this.steps);
  }

  /** Returns how many ranks are kept after step `step`, counted from 1, and whether they are chosen again then. */
  budget(step: number): { ranks: number; choose: boolean } {
    const { tinit, tfinal, deltaT } = this.#schedule;
    const lastChoice = this.steps! - tfinal;
    if (step <= tinit) return { ranks: this.#initialRanks, choose: false };
    if (step >= lastChoice) return { ranks: this.#targetRanks, choose: step === lastChoice };
    const remaining = 1 - (step - tinit) / (lastChoice - tinit);
    const ranks = Math.trunc((this.#initialRanks - this.#targetRanks) * remaining ** 3 + this.#targetRanks);
    return { ranks, choose: step % deltaT === 0 };
  }

  /** Called after the optimizer's update of step `step`, counted from 1, while its gradients still exist. */
  after(step: number): void {
    if (this.steps === undefined) throw new GraftError('state', 'beforeStep was not called with the number of steps');
    const lastChoice = this.steps - this.#schedule.tfinal;
    noGrad(() => {
      using _ = scope();
      if (step < lastChoice) this.#updateStatistics();
      const { ranks, choose } = this.budget(step);
      if (choose) this.#choose(ranks);
      // A pruned E may grow again with the next update; after the last choice it stays zero.
      if (choose || step > lastChoice) {
        for (const { path, e } of this.#layers) ops.mul_(e, ops.view(this.#masks.get(path)!, e.shape));
      }
    });
  }

  #updateStatistics(): void {
    const { beta1, beta2 } = this.#schedule;
    for (const [tensor, { sensitivity, uncertainty }] of this.#statistics) {
      const { grad } = tensor;
      if (!grad) continue;
      const current = ops.abs(ops.mul(tensor, grad));
      ops.add_(ops.mulScalar_(sensitivity, beta1), current, { alpha: 1 - beta1 });
      ops.add_(ops.mulScalar_(uncertainty, beta2), ops.abs(ops.sub(current, sensitivity)), { alpha: 1 - beta2 });
    }
  }

  #choose(ranks: number): void {
    const importance = (tensor: Tensor) => {
      const { sensitivity, uncertainty } = this.#statistics.get(tensor)!;
      return ops.mul(sensitivity, uncertainty);
    };
    const scores = this.#layers.map(({ a, e, b }) => {
      const vectors = ops.add(ops.meanDim(importance(a), [1]), ops.meanDim(importance(b), [0]));
      return ops.add(ops.view(importance(e), [e.numel]), vectors);
    });
    const pruned = this.#initialRanks - ranks;
    const [ascending] = ops.sort(ops.cat(scores));
    this.#layers.forEach(({ path }, i) => {
      const mask = this.#masks.get(path)!;
      if (pruned > 0) ops.copy_(mask, ops.gt(scores[i]!, ops.select(ascending, 0, pruned - 1)));
      else ops.fill_(mask, 1);
    });
  }

  /** The ranks that were chosen last, by path; undefined before any choice. */
  get kept(): ReadonlyMap<string, boolean[]> | undefined {
    const kept = [...this.#masks].map(
      ([path, mask]) => [path, Array.from(mask.data() as Float32Array, (value) => value > 0)] as const,
    );
    return kept.some(([, ranks]) => ranks.includes(true)) ? new Map(kept) : undefined;
  }
}
