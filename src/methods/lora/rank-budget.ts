/**
 * How AdaLoRA shares its ranks out (arXiv 2303.10512, §3.2 and §3.3, eq. 8 to 12): a rank's importance is what the loss would feel
 * without its triplet, smoothed over steps and weighted with its uncertainty; of all triplets of all layers only the most important
 * keep their singular value, fewer and fewer until a target. Details as in PEFT (tuners/adalora/layer.py RankAllocator).
 */
import { GraftError } from '../../base/index.ts';
import { detachFromScopes, noGrad, ops, scope, type Tensor } from '../../tensor/index.ts';

export interface Schedule {
  readonly target_r: number;
  readonly tinit: number;
  readonly tfinal: number;
  readonly deltaT: number;
  readonly beta1: number;
  readonly beta2: number;
}

/** One layer's A [r, in], E [r, 1] and B [out, r]. */
export interface Triplets {
  readonly path: string;
  readonly a: Tensor;
  readonly e: Tensor;
  readonly b: Tensor;
}

/** @throws GraftError 'usage' where the phases do not fit into the steps */
export function requirePhases({ tinit, tfinal }: Schedule, steps: number | null | undefined): void {
  if (steps == null || tinit < steps - tfinal) return;
  throw new GraftError('usage', `tinit ${tinit} and tfinal ${tfinal} leave no step of ${steps} to cut ranks in`, {
    place: 'method',
    hint: 'Make them smaller, or train longer',
  });
}

const zeros = (shape: readonly number[]): Tensor => detachFromScopes(noGrad(() => ops.zeros(shape)));

export class RankBudget {
  readonly #layers: readonly Triplets[];
  readonly #schedule: Schedule;
  readonly #ranks: number;
  readonly #target: number;
  /** Smoothed sensitivity and uncertainty of every number. */
  readonly #seen: Map<Tensor, { sensitivity: Tensor; uncertainty: Tensor }>;
  /** 1 where a rank is kept, by path; before the first choice all 0. */
  readonly #kept: Map<string, Tensor>;
  readonly state: ReadonlyMap<string, Tensor>;
  /** Optimizer steps of the whole run. */
  steps: number | undefined;

  constructor(layers: readonly Triplets[], schedule: Schedule, steps: number | undefined) {
    this.#layers = layers;
    this.#schedule = schedule;
    this.#ranks = layers.reduce((sum, { a }) => sum + a.size(0), 0);
    this.#target = schedule.target_r * layers.length;
    const all = layers.flatMap(({ path, a, e, b }) => [
      [`${path}.lora_A`, a] as const,
      [`${path}.lora_E`, e] as const,
      [`${path}.lora_B`, b] as const,
    ]);
    this.#seen = new Map(all.map(([, t]) => [t, { sensitivity: zeros(t.shape), uncertainty: zeros(t.shape) }]));
    this.#kept = new Map(layers.map(({ path, a }) => [path, zeros([a.size(0)])]));
    this.state = new Map([
      ...all.flatMap(([key, t]) =>
        (['sensitivity', 'uncertainty'] as const).map((what) => [`${key}.${what}`, this.#seen.get(t)![what]] as const),
      ),
      ...[...this.#kept].map(([path, kept]) => [`${path}.kept`, kept] as const),
    ]);
    this.begin(steps);
  }

  /** @throws GraftError 'usage' where the phases do not fit into the steps */
  begin(steps: number | undefined): void {
    this.steps ??= steps;
    requirePhases(this.#schedule, this.steps);
  }

  /** Ranks that are kept after step `step`, counted from 1, and whether they are chosen anew then. */
  budget(step: number): { ranks: number; choose: boolean } {
    const { tinit, tfinal, deltaT } = this.#schedule;
    const last = this.steps! - tfinal;
    if (step <= tinit) return { ranks: this.#ranks, choose: false };
    if (step >= last) return { ranks: this.#target, choose: step === last };
    const left = 1 - (step - tinit) / (last - tinit);
    return { ranks: Math.trunc((this.#ranks - this.#target) * left ** 3 + this.#target), choose: step % deltaT === 0 };
  }

  /** After the optimizer's update of step `step`, counted from 1; the gradients are still there. */
  after(step: number): void {
    if (this.steps === undefined) throw new GraftError('state', 'beforeStep has not said how many steps the run has');
    const last = this.steps - this.#schedule.tfinal;
    noGrad(() => {
      using _ = scope();
      if (step < last) this.#observe();
      const { ranks, choose } = this.budget(step);
      if (choose) this.#choose(ranks);
      // A choice lasts until the next update, and in the end for good.
      if (choose || step > last) {
        for (const { path, e } of this.#layers) ops.mul_(e, ops.view(this.#kept.get(path)!, e.shape));
      }
    });
  }

  #observe(): void {
    const { beta1, beta2 } = this.#schedule;
    for (const [tensor, { sensitivity, uncertainty }] of this.#seen) {
      const { grad } = tensor;
      if (!grad) continue;
      const now = ops.abs(ops.mul(tensor, grad));
      ops.add_(ops.mulScalar_(sensitivity, beta1), now, { alpha: 1 - beta1 });
      ops.add_(ops.mulScalar_(uncertainty, beta2), ops.abs(ops.sub(now, sensitivity)), { alpha: 1 - beta2 });
    }
  }

  #choose(ranks: number): void {
    const score = (tensor: Tensor) => {
      const { sensitivity, uncertainty } = this.#seen.get(tensor)!;
      return ops.mul(sensitivity, uncertainty);
    };
    const scores = this.#layers.map(({ a, e, b }) => {
      const ends = ops.add(ops.meanDim(score(a), [1]), ops.meanDim(score(b), [0]));
      return ops.add(ops.view(score(e), [e.numel]), ends).data() as Float32Array;
    });
    const drop = this.#ranks - ranks;
    const threshold = drop > 0 ? scores.flatMap((s) => [...s]).sort((x, y) => x - y)[drop - 1]! : -1;
    this.#layers.forEach(({ path }, i) => {
      const kept = this.#kept.get(path)!;
      new Float32Array(kept.memory().buffer).set(scores[i]!.map((s) => (s > threshold ? 1 : 0)));
    });
  }

  /** What was chosen last, by path; undefined before any choice. */
  get kept(): ReadonlyMap<string, boolean[]> | undefined {
    const kept = [...this.#kept].map(
      ([path, t]) => [path, Array.from(t.data() as Float32Array, (x) => x > 0)] as const,
    );
    return kept.some(([, ranks]) => ranks.includes(true)) ? new Map(kept) : undefined;
  }

  dispose(): void {
    for (const tensor of this.state.values()) tensor.dispose();
  }
}
