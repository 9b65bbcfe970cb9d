/** The methods that a recipe chooses, and which of them can stand together: what cannot be saved is refused before it is trained. */
import { GraftError } from '../base/index.ts';
import { methods } from './registry.ts';
import type { Adapter, Method, TrainedCopies, Written } from './shared/index.ts';

/** A method and its fields, as in a recipe, with the defaults filled in. */
export interface MethodChoice {
  /** The name of the method. */
  readonly type: keyof typeof methods;
  /** Directory of a saved adapter to begin from; its config counts then, and the fields here do not. */
  readonly adapter?: string | undefined;
  /** false: the adapter is enabled and saved with the others, but frozen, as the lower adapters of a stack. */
  readonly train?: boolean | undefined;
  /** The other fields of the method. */
  readonly [field: string]: unknown;
}

const writes = ({ type }: Pick<MethodChoice, 'type'>): Written =>
  (methods[type] as Method<unknown>).writes ?? 'adapter';

/** Returns what a run of these methods leaves on disk. */
export const writtenBy = (choices: readonly Pick<MethodChoice, 'type'>[]): 'model' | 'adapter' =>
  choices.some((choice) => writes(choice) === 'model') ? 'model' : 'adapter';

/**
 * Whether a method is no adapter, but settings of the others or of their training. It is attached after them, because it works on what
 * they make of a layer.
 */
export const isSettings = (choice: Pick<MethodChoice, 'type'>): boolean =>
  ['settings', 'nothing'].includes(writes(choice));

/** The methods in the order in which they are attached. */
export const attachOrder = <C extends Pick<MethodChoice, 'type'>>(choices: readonly C[]): C[] => [
  ...choices.filter((choice) => !isSettings(choice)),
  ...choices.filter(isSettings),
];

/**
 * Refuses what could be trained and then not be saved: a method that writes a whole model stands alone, trains, begins from the base,
 * and has one task.
 * @param run whether the run has several tasks, whether it begins from a saved adapter, and what errors call its methods
 * @throws GraftError 'usage'
 */
export function requireSavable(
  choices: readonly MethodChoice[],
  run: { readonly severalTasks?: boolean; readonly fromAdapter?: boolean; readonly place?: string } = {},
): void {
  const refuse = (problem: string, hint: string): never => {
    throw new GraftError('usage', problem, { place: run.place ?? 'method', hint });
  };
  const settings = choices.filter(isSettings);
  for (const { type, adapter, train } of settings) {
    if (settings.length === choices.length && !run.fromAdapter)
      refuse(`${type} trains no weights of its own`, 'Add a method that trains to the list: full, lora or another');
    if (adapter !== undefined || train === false)
      refuse(`${type} is not an adapter: it has no fields adapter and train`, 'Give its settings in the recipe');
  }
  requireOnePolicy(choices, refuse);
  const choice = choices.find((each) => writes(each) === 'model');
  if (!choice) return;
  const { type } = choice;
  const others = choices.filter((each) => each !== choice && !isSettings(each)).map((other) => other.type);
  if (others.length > 0) {
    refuse(
      `${type} trains the base and writes a whole model, so an adapter of ${others.join(', ')} beside it would be for a base that no file holds`,
      `Run ${type} alone; then, for an adapter, a recipe with its model/ as the base`,
    );
  }
  if (choice.train === false) refuse(`${type} with train: false trains nothing`, 'Remove train: false');
  if (run.fromAdapter || choice.adapter !== undefined) {
    refuse(
      `${type} writes a whole model, so it cannot begin from an adapter`,
      'Merge the adapter (graft merge), and give the merged model as the base',
    );
  }
  if (run.severalTasks) {
    refuse(`tasks share an adapter, and ${type} writes a whole model`, 'Use another method, or a recipe for each task');
  }
}

/** What decides when the others train stands once, and only beside methods whose parameters may be frozen for a while. */
function requireOnePolicy(choices: readonly MethodChoice[], refuse: (problem: string, hint: string) => never): void {
  const [policy, second] = choices.filter((each) => writes(each) === 'nothing');
  if (!policy) return;
  if (second) refuse(`${policy.type} stands twice, and one of them decides what trains`, 'Leave one of them');
  const whole = choices.find(
    ({ type, train }) => train !== false && (methods[type] as Method<unknown>).needsAllGradients,
  );
  if (whole)
    refuse(
      `${whole.type} compares the gradients of all its parameters in every step, and ${policy.type} freezes some of them`,
      `Use another method than ${whole.type}, or leave out ${policy.type}`,
    );
}

/**
 * Refuses adapters that train or change the same tensor of the base: only one of them would count, and the other would be lost
 * without a word. What changes a weight has to lie below the other adapters of its layer, whose files are for the unchanged base.
 * @throws GraftError 'usage'
 */
export function requireDisjoint(parts: readonly Adapter[], head: TrainedCopies | undefined): void {
  const owners = new Map<string, string>();
  const claim = (keys: Iterable<string>, owner: string) => {
    for (const key of keys) {
      const other = owners.get(key);
      if (other !== undefined) {
        throw new GraftError('usage', `${other} and ${owner} both train or change '${key}' of the base`, {
          place: 'method',
          hint: 'Name it under modules_to_save, bias or target_modules of one method only',
        });
      }
      owners.set(key, owner);
    }
  };
  parts.forEach((part, i) => {
    claim(part.replaces ?? [], `method ${i + 1} (${part.method})`);
    for (const key of part.changes ?? []) {
      const layer = key.slice(0, key.lastIndexOf('.') + 1);
      const below = parts.findIndex(
        (other, j) => j < i && [...other.parameters.keys()].some((k) => k.startsWith(layer)),
      );
      if (below < 0) continue;
      throw new GraftError(
        'usage',
        `method ${i + 1} (${part.method}) changes '${key}' of the base, which method ${below + 1} (${parts[below]!.method}) adapts`,
        { place: 'method', hint: `List method ${i + 1} before it` },
      );
    }
  });
  claim(head?.replaces ?? [], "the task's head");
}
