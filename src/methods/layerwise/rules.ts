/** The policy `schedule`: every part trains until rules freeze it, by step, where the loss stays as it is, or where gradients are small. */
import type { Tensor } from '../../tensor/index.ts';
import type { LayerPolicy, PolicyRun } from '../shared/index.ts';
import { nameOfPart, partsNamed, type Rule, refuse } from './config.ts';
import { defaultWindow, type PlacedRule, Schedule } from './schedule.ts';
import { ScheduleState } from './schedule-state.ts';

/** @throws GraftError 'usage' for rules that cannot come within the run, that name nothing that trains, or that leave nothing to train */
function requireRules(rules: readonly PlacedRule[], layers: number, run: PolicyRun): void {
  for (const { place, parts, step, plateau, window = defaultWindow, gradient_norm } of rules) {
    const needed = step ?? 2 * (plateau ?? window);
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
      const unwatched = new Set<string>();
      schedule = new Schedule(
        rules,
        state,
        run,
        (part, step) => notes.push(`layerwise: after ${step} steps only ${nameOfPart(part)} trains, and is not frozen`),
        ({ place }, part) => {
          if (!unwatched.has(place))
            notes.push(
              `layerwise: ${place} watches ${nameOfPart(part)}, which has no gradient, so the rule does not come`,
            );
          unwatched.add(place);
        },
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
