/** The policy `schedule`: every part trains until rules freeze it, by step, where the loss stays as it is, or where gradients are small. */
import type { ModelPart } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { LayerPolicy, PolicyRun } from '../shared/index.ts';
import { nameOfPart, partsNamed, type Rule, refuse } from './config.ts';
import { ScheduleState } from './schedule-state.ts';

/** A rule with its parts, and what errors call it. */
interface PlacedRule extends Rule {
  readonly parts: readonly ModelPart[];
  readonly place: string;
}

const defaultWindow = 10;
const defaultFall = 0.01;

/** Returns the 2-norm of a part's gradient; undefined where it has none. */
type GradientNorm = (part: ModelPart) => number | undefined;

/** The rules of a run at work. */
class Schedule {
  readonly #rules: readonly PlacedRule[];
  readonly #plateaus: readonly PlacedRule[];
  readonly #state: ScheduleState;
  readonly #run: PolicyRun;
  readonly #onlyOne: (part: ModelPart, step: number) => void;

  /** @param onlyOne is called where a rule would freeze the only part that trains, which is then not frozen */
  constructor(
    rules: readonly PlacedRule[],
    state: ScheduleState,
    run: PolicyRun,
    onlyOne: (part: ModelPart, step: number) => void,
  ) {
    this.#rules = rules;
    this.#plateaus = rules.filter(({ plateau }) => plateau !== undefined);
    this.#state = state;
    this.#run = run;
    this.#onlyOne = onlyOne;
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
    const norm = this.#state.trains(part) ? gradientNorm(part) : undefined;
    if (norm === undefined) return;
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

/** @throws GraftError 'usage' for rules that cannot come within the run, that name nothing that trains, or that leave nothing to train */
function requireRules(rules: readonly PlacedRule[], layers: number, run: PolicyRun): void {
  for (const { place, parts, step, plateau, window = defaultWindow, gradient_norm } of rules) {
    const needed = step ?? (plateau ? 2 * plateau : window);
    if (needed >= run.steps)
      refuse(
        `${place} comes after ${needed} steps at the earliest, and the run has ${run.steps}`,
        'Lower its numbers, or train longer',
      );
    if (step === undefined && run.severalTasks)
      refuse(`${place} compares steps, and those of several tasks are not comparable`, 'Use rules with step');
    if (!parts.some((part) => run.parts.has(part)))
      refuse(
        `${place} names ${parts.map(nameOfPart).join(', ')}, of which no parameter is trained`,
        `Parts with trained parameters: ${[...run.parts].join(', ')}`,
      );
    const other = rules.find((each) => each.place !== place && each.gradient_norm && gradient_norm);
    const twice = other && parts.find((part) => other.parts.includes(part));
    if (twice !== undefined)
      refuse(
        `${place} and ${other!.place} both watch the gradient_norm of ${nameOfPart(twice)}`,
        'Name it in one of them',
      );
  }
  const bySteps = rules.filter(({ step }) => step !== undefined);
  const trial = new Schedule(bySteps, new ScheduleState(layers), run, (part, step) =>
    refuse(
      `after ${step} steps nothing trains: the rules freeze ${nameOfPart(part)} too`,
      'Let one part train, or end the run there',
    ),
  );
  const times = new Set(bySteps.flatMap(({ step, for: duration = 0 }) => [step!, step! + duration]));
  for (const step of [...times].sort((a, b) => a - b)) if (step < run.steps) trial.advance(step);
}

/**
 * Returns the policy of these rules.
 * @param memory float64 [stateSize(layers)]: what a resumed run has to know
 * @throws GraftError 'usage' for layers that the model does not have
 */
export function scheduled(given: readonly Rule[], layers: number, memory: Tensor): LayerPolicy {
  const rules = given.map((rule, i): PlacedRule => {
    const place = `rule ${i + 1}`;
    return { ...rule, place, parts: partsNamed((rule.freeze ?? rule.train)!, layers, place) };
  });
  const state = new ScheduleState(layers, new Float64Array(memory.memory().buffer));
  const notes: string[] = [];
  let schedule: Schedule | undefined;
  return {
    begin(run) {
      requireRules(rules, layers, run);
      schedule = new Schedule(rules, state, run, (part, step) =>
        notes.push(`layerwise: after ${step} steps only ${nameOfPart(part)} trains, and is not frozen`),
      );
      return rules.flatMap(({ place, parts }) => {
        const missing = parts.filter((part) => !run.parts.has(part)).map(nameOfPart);
        return missing.length > 0
          ? [`layerwise: ${place} names ${missing.join(', ')}, of which no parameter is trained`]
          : [];
      });
    },
    at(step) {
      schedule!.advance(step);
      return (part) => ({ trains: state.trains(part), since: state.of(part).since });
    },
    neverTrains(part) {
      const concerned = rules.filter(({ parts }) => parts.includes(part));
      const isFrozen = concerned.some(
        ({ freeze, step, for: duration }) => freeze !== undefined && step === 0 && !duration,
      );
      return isFrozen && concerned.every(({ train }) => train === undefined);
    },
    observe: (step, loss, gradientNorm) => schedule!.observe(step, loss, gradientNorm),
    takeNotes: () => notes.splice(0),
  };
}
