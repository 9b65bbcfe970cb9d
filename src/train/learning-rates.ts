/** The learning rate of each parameter: that of the head, of each layer, and what the method asks for. */
import { isHeadKey } from '../adapters/index.ts';
import { GraftError } from '../base/index.ts';
import type { AttachedAdapter } from '../methods/index.ts';
import { headsOf, type Model, partsByKey } from '../nn/index.ts';
import type { Tensor } from '../tensor/index.ts';
import type { Recipe } from './recipe.ts';

/** A model with methods attached, and all that is trained, by the keys of a checkpoint. */
export interface TrainedModel {
  readonly host: Model;
  readonly adapter: Pick<AttachedAdapter, 'method' | 'head' | 'learningRate' | 'state'>;
  readonly parameters: ReadonlyMap<string, Tensor>;
}

/** Where parameters are, and how fast they learn. */
export interface LearningRates {
  /** Returns the peak learning rate of the parameter of this key. */
  rateOf(key: string): number;
  /** Returns whether the parameter of this key belongs to a layer. */
  inBlock(key: string): boolean;
  /** Parameters that layer_lr_decay does not reach. */
  readonly warnings: readonly string[];
}

/** Where a parameter is: in a layer by its number, below all layers, above them, in the head, or in no such place. */
type Place = number | 'below' | 'above' | 'head' | undefined;

/** Returns the place of each key. Keys of several methods begin with the number of theirs, those of several tasks' heads with the task. */
function placeOf({ host, adapter }: TrainedModel): (key: string) => Place {
  const partOf = partsByKey(host);
  const isOutput = (path: string) => headsOf(host.sites).some((head) => path.startsWith(`${head}.`));
  return (key) => {
    const path = key.replace(/^\d+\./, '');
    if (adapter.head.has(key) || key.startsWith('tasks.') || isHeadKey(path) || isOutput(path)) return 'head';
    const part = partOf(path);
    return part === 'embeddings' ? 'below' : part === 'head' ? 'above' : part;
  };
}

/**
 * Returns the learning rates of a run. A method's own, such as those of LoRA+, are relative to the rate of the place.
 * @throws GraftError 'usage' where head_lr or layer_lr_decay concerns no parameter that is trained
 */
export function learningRates(trained: TrainedModel, train: Recipe['train']): LearningRates {
  const { lr, head_lr: headRate, layer_lr_decay: decay } = train;
  const { adapter, parameters, host } = trained;
  const place = placeOf(trained);
  const placeByKey = new Map([...parameters.keys()].map((key) => [key, place(key)]));
  const places = [...placeByKey];
  if (headRate !== undefined && !places.some(([, at]) => at === 'head')) {
    throw new GraftError('usage', `no head is trained: ${adapter.method} for ${host.task.name} trains none`, {
      place: 'train.head_lr',
      hint: 'Leave out head_lr; embeddings that are also the output layer learn as embeddings',
    });
  }
  const warnings: string[] = [];
  if (decay !== undefined) {
    if (!places.some(([, at]) => typeof at === 'number')) {
      throw new GraftError('usage', `no trained parameter belongs to a layer: ${adapter.method} trains none of them`, {
        place: 'train.layer_lr_decay',
        hint: 'Leave out layer_lr_decay, or use a method that trains layers, such as full or lora',
      });
    }
    const apart = places.flatMap(([key, at]) => (at === undefined ? [key] : []));
    if (apart.length > 0) {
      const more = apart.length > 3 ? ` and ${apart.length - 3} more` : '';
      warnings.push(
        `train.layer_lr_decay: ${apart.slice(0, 3).join(', ')}${more} belong to no layer, and learn with train.lr`,
      );
    }
  }
  const below = (at: Place) => (at === 'below' ? host.layers : typeof at === 'number' ? host.layers - 1 - at : 0);
  return {
    rateOf(key) {
      const at = placeByKey.get(key);
      const rate = at === 'head' ? (headRate ?? lr) : lr * (decay ?? 1) ** below(at);
      return adapter.learningRate?.(key, rate) ?? rate;
    },
    inBlock: (key) => typeof placeByKey.get(key) === 'number',
    warnings,
  };
}
