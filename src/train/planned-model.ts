/** What a plan for many processes needs to know about a model: from a sketch of it, or from the shape of a common one. */
import { GraftError, nearest } from '../base/index.ts';
import { type MethodChoice, methods } from '../methods/index.ts';
import { heldBytes } from '../models/index.ts';
import { headsOf, heldTensors, type Model } from '../nn/index.ts';
import { isDivisible, isInBackward, optimizers } from '../optim/index.ts';
import { dtypes } from '../tensor/index.ts';
import { optimizerFor } from './attach.ts';
import { activationBytes, bytesPerToken } from './budget.ts';
import type { PlannedModel, PlannedUnit } from './cluster-plan.ts';
import { type LlamaShape, llamaShapes, tensorsOf } from './llama-shapes.ts';
import type { Recipe } from './recipe.ts';
import type { TaskModels } from './task-models.ts';

/** Rows of logits that the fused cross-entropy holds at a time (native/ops/cross_entropy.cc). */
const logitsRows = 256;

/** The parts that stage 3 gathers at once: what comes before the blocks, each block, and what comes after them. */
class Units {
  readonly #blocks: { frozenBytes: number; trained: number[] }[];
  #isBehind = false;

  constructor(layers: number) {
    this.#blocks = Array.from({ length: layers + 2 }, () => ({ frozenBytes: 0, trained: [] }));
  }

  /** The unit of a tensor. Keys come in the order of the modules. @param block the number of its block, where it is in one */
  at(block: number | undefined): { frozenBytes: number; trained: number[] } {
    if (block !== undefined) this.#isBehind = true;
    return this.#blocks[block !== undefined ? block + 1 : this.#isBehind ? this.#blocks.length - 1 : 0]!;
  }

  get all(): readonly PlannedUnit[] {
    return this.#blocks;
  }
}

/** Operations for a token: two for each weight of a product and pass; a gradient of the inputs, and one of each trained weight. */
const operations = (weights: number, trained: number, isOfBase: boolean) => ({
  flopsPerToken: 4 * weights + (isOfBase ? 2 : 6) * trained,
  replayedFlopsPerToken: 2 * (weights + (isOfBase ? 0 : trained)),
});

/** Returns the parts of a recipe's models that stage 3 gathers. */
export function unitsOf({ host, parameters }: Pick<TaskModels, 'host' | 'parameters'>): readonly PlannedUnit[] {
  const trained = new Map([...parameters.values()].map((parameter) => [parameter.id, parameter]));
  const units = new Units(host.layers);
  const seen = new Set<number>();
  const prefix = host.sites.block.split('*')[0]!;
  for (const [path, tensor] of heldTensors(host.root)) {
    if (seen.has(tensor.id)) continue;
    seen.add(tensor.id);
    const unit = units.at(path.startsWith(prefix) ? Number.parseInt(path.slice(prefix.length), 10) : undefined);
    if (trained.has(tensor.id)) unit.trained.push(tensor.numel);
    else unit.frozenBytes += tensor.nbytes;
  }
  // What is trained outside of the tree: prompts, prefixes, the heads of other tasks.
  for (const [id, { numel }] of trained) if (!seen.has(id)) units.at(undefined).trained.push(numel);
  return units.all;
}

/** Whether the output layer has the table of the embeddings. */
export function isTableTied({ root, sites }: Model): boolean {
  const idsAt = (paths: readonly string[]) =>
    new Set([...heldTensors(root)].filter(([path]) => paths.includes(path)).map(([, { id }]) => id));
  return !idsAt([sites.embeddings]).isDisjointFrom(idsAt(headsOf(sites)));
}

/**
 * Returns what a plan needs to know about the models of a recipe.
 * @param sketch models that have the shapes of those that would be loaded
 */
export function plannedFromSketch(recipe: Recipe, sketch: TaskModels): PlannedModel {
  const { host, models, adapter, parameters } = sketch;
  const trainsBase = adapter.writes === 'model';
  using optimizer = optimizerFor(sketch, recipe);
  const measured = new Map([...new Set(models)].map((model) => [model, activationBytes(model)]));
  const checkpointed = new Map([...measured].map(([model, of]) => [model, { on: of(true), off: of(false) }]));
  const numbers = [...parameters.values()].reduce((sum, { numel }) => sum + numel, 0);
  const isTied = isTableTied(host);
  // Embeddings are looked up, unless the output layer has the same table.
  const lookedUp = isTied ? 0 : host.vocabSize * host.width;
  return {
    name: recipe.model,
    units: unitsOf(sketch),
    trainsBase,
    isTied,
    isDivisible: isDivisible(recipe.train.optimizer),
    optimizerBytes: optimizer.stateBytes(parameters.keys()),
    ...operations(host.parameters - lookedUp, numbers, trainsBase),
    freesGradients: optimizer.inBackward !== undefined,
    wholeGradients: adapter.readsGradients ?? false,
    notes: adapter.layerPolicy ? ['layers in turn are planned as if all of them trained at once'] : [],
    activationBytes: (tokens, rows, replays) =>
      Math.max(...[...checkpointed.values()].map(({ on, off }) => (replays ? on : off).peak(tokens, rows))),
  };
}

/** Fields of LoRA that change no size, or that are read here. */
const plannedFields = ['type', 'train', 'r', 'target_modules', 'lora_alpha', 'lora_dropout', 'use_rslora'];

/** The projections that LoRA trains by default in this family, as PEFT chooses them. */
const defaultTargets = ['q_proj', 'v_proj'];

const onlyByModel = (what: string) =>
  new GraftError('usage', `a shape can be planned with LoRA or full fine-tuning, and not with ${what}`, {
    place: '--shape',
    hint: 'Leave out --shape, so that the recipe’s model is planned, of which only the list of weights is read',
  });

/** Returns the shapes that LoRA trains for a stored matrix. @throws GraftError 'usage' for settings that are not planned */
function loraShapes(method: MethodChoice): (key: string, shape: readonly number[]) => readonly number[][] {
  const defaults: Record<string, unknown> = methods.lora.config.parse({});
  const other = Object.entries(method).find(
    ([name, value]) => !plannedFields.includes(name) && JSON.stringify(value) !== JSON.stringify(defaults[name]),
  );
  if (other) throw onlyByModel(`method.${other[0]}`);
  const [targets, r] = [method.target_modules ?? defaultTargets, method.r as number];
  const isTarget = (layer: string) => (Array.isArray(targets) ? targets.includes(layer) : layer.endsWith('_proj'));
  if (targets !== 'all-linear' && !Array.isArray(targets)) throw onlyByModel(`the pattern target_modules ${targets}`);
  return (key, [out, inside]) =>
    isTarget(key.split('.').at(-2)!)
      ? [
          [r, inside!],
          [out!, r],
        ]
      : [];
}

/** Returns a common shape by its name. @throws GraftError 'usage' with those known */
export function shapeNamed(name: string): LlamaShape {
  const shape = Object.hasOwn(llamaShapes, name) ? llamaShapes[name as keyof typeof llamaShapes] : undefined;
  if (shape) return shape;
  const near = nearest(name, Object.keys(llamaShapes));
  throw new GraftError('usage', `there is no shape '${name}'`, {
    place: '--shape',
    hint: near ? `Did you mean ${near}?` : `Those known: ${Object.keys(llamaShapes).join(', ')}`,
  });
}

/**
 * Returns what a plan needs to know about a model of a common shape, with LoRA or full fine-tuning.
 * @throws GraftError 'usage' for another method, or settings that only a model at hand can be planned with
 */
export function plannedFromShape(recipe: Recipe, shape: LlamaShape): PlannedModel {
  const [method, ...others] = [recipe.method].flat() as [MethodChoice, ...MethodChoice[]];
  if (recipe.tasks) throw onlyByModel('several tasks');
  if (recipe.adapter !== undefined || method.adapter !== undefined) throw onlyByModel('an adapter to begin from');
  if (recipe.task !== undefined && recipe.task !== 'causal-lm') throw onlyByModel(`the task ${recipe.task}`);
  const isWhole = methods[method.type]!.writes === 'model';
  if (others.length > 0 || (method.type !== 'lora' && !isWhole))
    throw onlyByModel([method, ...others].map(({ type }) => type).join(' + '));
  if (isWhole && recipe.quantize !== 'none') {
    throw new GraftError(
      'usage',
      `${method.type} trains dense weights, and the recipe has quantize: ${recipe.quantize}`,
      {
        place: 'quantize',
        hint: 'Remove it, or use lora',
      },
    );
  }

  const trainedShapes = isWhole ? (_key: string, whole: readonly number[]) => [whole] : loraShapes(method);
  const { type, ...settings } = recipe.train.optimizer;
  const optimizer = optimizers[type as keyof typeof optimizers];
  const product = (sizes: readonly number[]) => sizes.reduce((a, b) => a * b, 1);
  const units = new Units(shape.layers);
  let [optimizerBytes, weights, numbers] = [0, 0, 0];
  for (const [key, stored] of tensorsOf(shape)) {
    const { entry } = stored;
    const block = /^model\.layers\.(\d+)\./.exec(key)?.[1];
    const unit = units.at(block === undefined ? undefined : Number(block));
    if (entry.shape.length === 2 && (shape.tied || key !== 'model.embed_tokens.weight'))
      weights += product(entry.shape);
    if (!isWhole) {
      unit.frozenBytes += heldBytes({ stored: new Map([[key, stored]]), family: { heads: [] } }, recipe.quantize);
    }
    for (const trained of trainedShapes(key, entry.shape)) {
      unit.trained.push(product(trained));
      numbers += product(trained);
      for (const slot of Object.values(optimizer.slots(trained, settings as never, block !== undefined)))
        optimizerBytes += product(slot.shape) * dtypes[slot.dtype].bytes;
    }
  }
  if (numbers === 0)
    throw new GraftError('usage', 'target_modules matches no module of the shape', { place: 'method' });
  return {
    name: `${shape.title}, ${method.type}${recipe.quantize === 'none' ? '' : ` on ${recipe.quantize}`}`,
    units: units.all,
    trainsBase: isWhole,
    isTied: shape.tied,
    isDivisible: isDivisible(recipe.train.optimizer),
    optimizerBytes,
    ...operations(weights, numbers, isWhole),
    freesGradients: isInBackward(recipe.train.optimizer),
    wholeGradients: false,
    activationBytes: (tokens, _rows, checkpointed) =>
      tokens * bytesPerToken({ ...shape, checkpointed }) + Math.min(tokens, logitsRows) * 4 * shape.vocab,
  };
}
