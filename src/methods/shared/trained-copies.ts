import { type Model, type Module, namedModules, unwrapped } from '../../nn/index.ts';
import { ops, Tensor } from '../../tensor/index.ts';
import { inTrainedHead } from './candidates.ts';
import { type CopiedBias, type Slot, type SlotCopy, switchedCopies, type TrainedCopies } from './copies.ts';
import { requireOwnBias } from './folds.ts';
import { trainable } from './parameter-init.ts';
import { type SaveModulesOptions, saveModules } from './saved-modules.ts';

/** Fields of a config that ask for copies of parts of the base. */
export interface CopiesConfig {
  readonly modules_to_save?: readonly string[] | null | undefined;
  readonly bias?: 'none' | 'all' | 'lora_only' | undefined;
}

const slots = new WeakMap<Module, Slot<Tensor>>();

const hasBias = (module: Module): module is Module & { bias: Tensor } =>
  'bias' in module && module.bias instanceof Tensor;

/**
 * Returns trained copies of the biases of the modules that `isTrained` picks. The task's head is left out: it is trained whole.
 * @param isTarget picks modules that get a wrapper: PEFT puts `base_layer.` into their keys
 */
function trainBiases(
  model: Model,
  isTrained: (path: string) => boolean,
  isTarget: (path: string) => boolean,
): TrainedCopies {
  const parameters = new Map<string, Tensor>();
  const copies: SlotCopy<Tensor>[] = [];
  const copied: CopiedBias[] = [];
  const inHead = inTrainedHead(model);
  for (const [path, outer] of namedModules(model.root)) {
    const module = unwrapped(outer);
    if (!hasBias(module) || !isTrained(path) || inHead(path)) continue;
    requireOwnBias(module, path);
    const slot = slots.get(module) ?? {
      original: module.bias,
      active: [],
      put: (bias) => {
        module.bias = bias;
      },
    };
    slots.set(module, slot);
    const copy = trainable(() => ops.clone(slot.original));
    parameters.set(isTarget(path) ? `${path}.base_layer.bias` : `${path}.bias`, copy);
    copied.push({ path, module, original: slot.original, copy });
    copies.push({ slot, copy });
  }
  const replaces = copied.map(({ path }) => `${path}.bias`);
  return switchedCopies(parameters, copies, replaces, { biases: copied });
}

/**
 * Returns the trained copies that `modules_to_save` and `bias` ask for, switched on.
 * @param targets paths of the modules that get a wrapper
 * @throws GraftError 'usage' for a name in `modules_to_save` that matches no module
 */
export function trainedCopies(
  model: Model,
  { modules_to_save: names, bias = 'none' }: CopiesConfig,
  targets: readonly string[],
  ties?: SaveModulesOptions['ties'],
): TrainedCopies[] {
  const copies = names?.length ? [saveModules(model, names, { ties })] : [];
  if (bias === 'none') return copies;
  const isTarget = (path: string) => targets.includes(path);
  return [...copies, trainBiases(model, (path) => bias === 'all' || isTarget(path), isTarget)];
}
