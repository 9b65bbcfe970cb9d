/** The policy `schedule`: every part trains until rules freeze it, by step, where the loss stays as it is, or where gradients vanish. */
import { type ModelPart, modelParts } from '../../nn/index.ts';
import type { Tensor } from '../../tensor/index.ts';
import type { LayerPolicy, PolicyRun } from '../shared/index.ts';
import { partsNamed, type Rule, refuse } from './config.ts';

const nameOf = (part: ModelPart) => (typeof part === 'number' ? `layer ${part}` : part);

/** A rule with the parts that it is for, and what errors call it. */
interface PlacedRule extends Rule {
  readonly parts: readonly ModelPart[];
  readonly place: string;
}

/** Numbers of a part: whether it trains, since when, when a rule's time is over (−1: never), and the mean norm of its gradient. */
const ofPart = ['trains', 'since', 'until', 'sum', 'count', 'first'] as const;
/** Numbers of the rules with a plateau: whose turn it is, the losses since then, and the mean before these (NaN: none yet). */
const ofLoss = ['turn', 'sum', 'count', 'before'] as const;

/** How many float64 numbers the state of a schedule has. */
export const stateSize = (layers: number): number => modelParts({ layers }).length * ofPart.length + ofLoss.length;

/** The state of a schedule in the memory of a tensor, so that a checkpoint holds it. */
class Memory {
  readonly #numbers: Float64Array;
  readonly #parts: readonly ModelPart[];

  constructor(numbers: Float64Array, layers: number) {
    this.#numbers = numbers;
    this.#parts = modelParts({ layers });
  }

  reset(): void {
    this.#numbers.fill(0);
    for (const part of this.#parts) this.set(part, { trains: 1, until: -1 });
    this.setLoss({ before: Number.NaN });
  }

  #view<K extends string>(names: readonly K[], offset: number): Record<K, number> {
    return Object.fromEntries(names.map((name, i) => [name, this.#numbers[offset + i]!])) as Record<K, number>;
  }

  #write<K extends string>(names: readonly K[], offset: number, values: Partial<Record<K, number>>): void {
    for (const [i, name] of names.entries()) this.#numbers[offset + i] = values[name] ?? this.#numbers[offset + i]!;
  }

  #offset = (part: ModelPart) => ofLoss.length + this.#parts.indexOf(part) * ofPart.length;
  of = (part: ModelPart) => this.#view(ofPart, this.#offset(part));
  set = (part: ModelPart, values: Partial<Record<(typeof ofPart)[number], number>>) =>
    this.#write(ofPart, this.#offset(part), values);
  get loss() {
    return this.#view(ofLoss, 0);
  }
  setLoss = (values: Partial<Record<(typeof ofLoss)[number], number>>) => this.#write(ofLoss, 0, values);
}

/** @throws GraftError 'usage' for rules that cannot come within the run, or that would freeze all that trains */
function requireRules(rules: readonly PlacedRule[], layers: number, run: PolicyRun): void {
  for (const { place, parts, step, plateau, window = 10, gradient_norm } of rules) {
    const needed = step === undefined ? (plateau ? 2 * plateau : window) : step;
    if (needed >= run.steps)
      refuse(
        `${place} needs more than ${needed} steps, and the run has ${run.steps}`,
        'Lower its steps, or train longer',
      );
    if (parts.every((part) => !run.parts.has(part)))
      refuse(
        `no parameter is trained of the parts of ${place}`,
        `Parts with trained parameters: ${[...run.parts].join(', ')}`,
      );
    const twice = parts.find((part) =>
      rules.some(
        (other) => other.place !== place && other.gradient_norm && gradient_norm && other.parts.includes(part),
      ),
    );
    if (twice !== undefined) refuse(`two rules with gradient_norm name ${nameOf(twice)}`, 'Name it in one of them');
  }
  // The rules by step alone, as they will come.
  const fixed = rules.filter(({ step }) => step !== undefined);
  const memory = new Memory(new Float64Array(stateSize(layers)), layers);
  memory.reset();
  const schedule = new Schedule(fixed, memory, run);
  schedule.onlyOne = (part, step) =>
    refuse(
      `nothing trains after ${step} steps: the rules freeze ${nameOf(part)} too`,
      'Let one part train, or end the run there',
    );
  const times = new Set(fixed.flatMap(({ step, for: duration = 0 }) => [step!, step! + duration]));
  for (const step of [...times].sort((a, b) => a - b)) if (step < run.steps) schedule.advance(step);
}

/** Rules over a state. */
class Schedule {
  readonly #rules: readonly PlacedRule[];
  readonly #memory: Memory;
  readonly #run: PolicyRun;
  readonly #plateaus: readonly PlacedRule[];
  readonly notes: string[] = [];

  constructor(rules: readonly PlacedRule[], memory: Memory, run: PolicyRun) {
    this.#rules = rules;
    this.#memory = memory;
    this.#run = run;
    this.#plateaus = rules.filter(({ plateau }) => plateau !== undefined);
  }

  /** Called where a rule would freeze the only part that trains, which then goes on training. */
  onlyOne(part: ModelPart, step: number): void {
    this.notes.push(`layerwise: after ${step} steps ${nameOf(part)} is the only part that trains, and is not frozen`);
  }

  /** Does what is due before step number `step`. */
  advance(step: number): void {
    for (const part of this.#run.parts) {
      const { until, trains } = this.#memory.of(part);
      if (until === step) this.#turn([part], trains === 0, step);
    }
    for (const rule of this.#rules) if (rule.step === step) this.#apply(rule, rule.parts, step);
  }

  #apply(rule: PlacedRule, parts: readonly ModelPart[], step: number): void {
    this.#turn(parts, rule.train !== undefined, step, rule.for);
  }

  #turn(parts: readonly ModelPart[], trains: boolean, step: number, duration?: number): void {
    const until = duration === undefined ? -1 : step + duration;
    for (const part of parts) {
      if (!this.#run.parts.has(part)) continue;
      if ((this.#memory.of(part).trains === 1) === trains) {
        this.#memory.set(part, { until });
        continue;
      }
      const others = [...this.#run.parts].some((other) => other !== part && this.#memory.of(other).trains === 1);
      if (!trains && !others && !this.#run.trainsMore) {
        this.onlyOne(part, step);
        this.#memory.set(part, { until: -1 });
      } else this.#memory.set(part, { trains: Number(trains), since: step, until, sum: 0, count: 0 });
    }
  }

  /** Takes the loss and the gradients of a step; what follows of them comes before the next. */
  observe(step: number, loss: number, gradientNorm: (part: ModelPart) => number | undefined): void {
    const rule = this.#plateaus[this.#memory.loss.turn];
    if (rule) this.#observeLoss(rule, step, loss);
    for (const each of this.#rules) if (each.gradient_norm !== undefined) this.#observeNorms(each, step, gradientNorm);
  }

  #observeLoss(rule: PlacedRule, step: number, loss: number): void {
    const state = this.#memory.loss;
    const [sum, count] = [state.sum + loss, state.count + 1];
    if (count < rule.plateau!) {
      this.#memory.setLoss({ sum, count });
      return;
    }
    const mean = sum / count;
    const stays = state.before - mean < (rule.min_fall ?? 0.01) * Math.abs(state.before);
    this.#memory.setLoss({ sum: 0, count: 0, before: stays ? Number.NaN : mean, turn: state.turn + Number(stays) });
    if (stays) this.#apply(rule, rule.parts, step + 1);
  }

  #observeNorms(rule: PlacedRule, step: number, gradientNorm: (part: ModelPart) => number | undefined): void {
    for (const part of rule.parts) {
      const state = this.#memory.of(part);
      const norm = state.trains === 1 && this.#run.parts.has(part) ? gradientNorm(part) : undefined;
      if (norm === undefined) continue;
      const [sum, count] = [state.sum + norm, state.count + 1];
      if (count < (rule.window ?? 10)) {
        this.#memory.set(part, { sum, count });
        continue;
      }
      const mean = sum / count;
      this.#memory.set(part, { sum: 0, count: 0, first: state.first || mean });
      if (mean < rule.gradient_norm! * state.first) this.#apply(rule, [part], step + 1);
    }
  }
}

/**
 * Returns the policy of these rules.
 * @param state float64 [stateSize(layers)]: all that a resumed run has to know
 */
export function scheduled(given: readonly Rule[], layers: number, state: Tensor): LayerPolicy {
  const rules = given.map((rule, i): PlacedRule => {
    const place = `rule ${i + 1}`;
    return { ...rule, place, parts: partsNamed((rule.freeze ?? rule.train)!, layers, place) };
  });
  const memory = new Memory(new Float64Array(state.memory().buffer), layers);
  memory.reset();
  let schedule: Schedule | undefined;
  return {
    begin(run) {
      requireRules(rules, layers, run);
      schedule = new Schedule(rules, memory, run);
      return [];
    },
    at(step) {
      schedule!.advance(step);
      return (part) => {
        const { trains, since } = memory.of(part);
        return { trains: trains === 1, since };
      };
    },
    observe: (step, loss, gradientNorm) => schedule!.observe(step, loss, gradientNorm),
    takeNotes: () => schedule!.notes.splice(0),
  };
}
