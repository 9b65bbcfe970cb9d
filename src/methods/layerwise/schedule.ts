import type { ModelPart } from '../../nn/index.ts';
import type { PolicyRun } from '../shared/index.ts';
import type { Rule } from './config.ts';
import type { ScheduleState } from './schedule-state.ts';

/** A rule with its parts, and what errors call it. */
export interface PlacedRule extends Rule {
  readonly parts: readonly ModelPart[];
  readonly place: string;
}

export const defaultWindow = 10;
const defaultFall = 0.01;

/** Returns the 2-norm of a part's gradient; undefined where it has none. */
type GradientNorm = (part: ModelPart) => number | undefined;

/** The rules of a run at work. */
export class Schedule {
  readonly #rules: readonly PlacedRule[];
  readonly #plateaus: readonly PlacedRule[];
  readonly #state: ScheduleState;
  readonly #run: PolicyRun;
  readonly #onlyOne: (part: ModelPart, step: number) => void;
  readonly #noGradient: (rule: PlacedRule, part: ModelPart) => void;

  /**
   * @param onlyOne is called where a rule would freeze the only part that trains, which is then not frozen
   * @param noGradient is called where a part that trains, and that a rule watches, has no gradient
   */
  constructor(
    rules: readonly PlacedRule[],
    state: ScheduleState,
    run: PolicyRun,
    onlyOne: (part: ModelPart, step: number) => void,
    noGradient: (rule: PlacedRule, part: ModelPart) => void = () => {},
  ) {
    this.#rules = rules;
    this.#plateaus = rules.filter(({ plateau }) => plateau !== undefined);
    this.#state = state;
    this.#run = run;
    this.#onlyOne = onlyOne;
    this.#noGradient = noGradient;
  }

  /** Does what is due before step number `step`. */
  advance(step: number): void {
    for (const part of this.#run.parts) {
      const { passing, until } = this.#state.of(part);
      if (passing >= 0 && until === step) this.#change(part, { passing: -1 }, step);
    }
    for (const rule of this.#rules) if (rule.step === step) this.#apply(rule, rule.parts, step);
  }

  /** Takes the loss and the gradients of a step; what follows of them is done before the next. */
  observe(step: number, loss: number, gradientNorm: GradientNorm): void {
    const next = this.#plateaus[this.#state.loss.turn];
    if (next) this.#observeLoss(next, step, loss);
    for (const rule of this.#rules)
      if (rule.gradient_norm !== undefined)
        for (const part of rule.parts) this.#observeNorm(rule, part, step, gradientNorm);
  }

  #observeLoss(rule: PlacedRule, step: number, loss: number): void {
    const { before, turn, ...current } = this.#state.loss;
    const [sum, count] = [current.sum + loss, current.count + 1];
    this.#state.setLoss({ sum, count });
    if (count < rule.plateau!) return;
    const mean = sum / count;
    const stays = before - mean < (rule.min_fall ?? defaultFall) * Math.abs(before); // false before the first mean
    this.#state.setLoss({ sum: 0, count: 0, before: stays ? Number.NaN : mean, turn: turn + (stays ? 1 : 0) });
    if (stays) this.#apply(rule, rule.parts, step + 1);
  }

  #observeNorm(rule: PlacedRule, part: ModelPart, step: number, gradientNorm: GradientNorm): void {
    if (!this.#run.parts.has(part)) return;
    const { first, ...current } = this.#state.of(part);
    if (!this.#state.trains(part)) return;
    const norm = gradientNorm(part);
    if (norm === undefined) {
      this.#noGradient(rule, part);
      return;
    }
    const [sum, count] = [current.sum + norm, current.count + 1];
    this.#state.set(part, { sum, count });
    if (count < (rule.window ?? defaultWindow)) return;
    const mean = sum / count;
    this.#state.set(part, { sum: 0, count: 0, first: first || mean });
    if (mean < rule.gradient_norm! * first) this.#apply(rule, [part], step + 1);
  }

  #apply(rule: PlacedRule, parts: readonly ModelPart[], step: number): void {
    const trains = rule.train === undefined ? 0 : 1;
    const values =
      rule.for === undefined ? { lasting: trains, passing: -1 } : { passing: trains, until: step + rule.for };
    for (const part of parts) if (this.#run.parts.has(part)) this.#change(part, values, step);
  }

  /** Changes what rules say of a part. */
  #change(part: ModelPart, values: Parameters<ScheduleState['set']>[1], step: number): void {
    const before = this.#state.trains(part);
    this.#state.set(part, values);
    const trains = this.#state.trains(part);
    if (trains === before) return;
    const others = [...this.#run.parts].some((other) => other !== part && this.#state.trains(other));
    if (trains || others || this.#run.trainsMore) this.#state.set(part, { since: step, sum: 0, count: 0 });
    else {
      this.#state.set(part, { lasting: 1, passing: -1 });
      this.#onlyOne(part, step);
    }
  }
}
