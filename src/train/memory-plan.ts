/** What a run takes in memory, computed from shapes before anything is loaded. */
import { microBatches } from '../data/index.ts';
import { currentEngine } from '../engine/index.ts';
import { headsOf, type Model, type ModelPart, modelParts, namedTensors, type Precision } from '../nn/index.ts';
import { isDivisible, type Optimizer } from '../optim/index.ts';
import type { Task } from '../tasks/index.ts';
import { freeDeviceMemory, type Tensor } from '../tensor/index.ts';
import { activeLayers } from './active.ts';
import { optimizerFor } from './attach.ts';
import { activationBytes, microTokensFor } from './budget.ts';
import { bufferBytesOf } from './cluster-plan.ts';
import { ownersOf } from './owners.ts';
import type { Plan } from './plan.ts';
import { isTableTied, unitsOf } from './planned-model.ts';
import type { Recipe } from './recipe.ts';
import type { TaskModels } from './task-models.ts';

/** What a run takes in memory at most, in MiB. */
export interface RunMemory {
  /** Of the process before, which is not in the total. */
  readonly processMb: number;
  /** The base as it is held, and what the methods add to it. */
  readonly weightsMb: number;
  /** Gradients of all that is trained at a time. */
  readonly gradientsMb: number;
  /** What the optimizer keeps for all that is trained at a time. */
  readonly optimizerMb: number;
  /** Of frozen weights that stay in files: not in the total. */
  readonly weightsOnDiskMb: number;
  /** Of what the optimizer keeps in a file: not in the total. */
  readonly optimizerOnDiskMb: number;
  /** Activations and temporary tensors of the largest micro-batch. */
  readonly activationsMb: number;
  /** Of the engine once it computes: its code, buffers of matrix products and of what processes send each other, gaps between tensors. */
  readonly engineMb: number;
  /** Of gradients and activations, what is never there at the same time: gradients come while activations go, where a step is one micro-batch. */
  readonly apartMb: number;
  /** At the peak of a step: the parts above that are in memory, less `apartMb`. */
  readonly totalMb: number;
}

/**
 * Bytes of what only a step of full size brings: buffers of larger products, the code of the backward pass and the update, gaps of the
 * heap. Measured: 30 to 65 MiB with 2 threads, in runs of 14 methods on models of 30 and of 100 million parameters.
 */
const laterBytes = 50 * 2 ** 20;

/** Steps of an epoch whose micro-batches are looked at. */
const maxSteps = 1000;

/** Returns the largest micro-batch of a task's first epoch. */
export function largestBatch(
  { plan, task, model }: { readonly plan: Plan; readonly task: Task; readonly model: Model },
  microTokens: number,
): LargestBatch {
  let [tokens, rows, several] = [0, 0, false];
  for (let step = 0; step < Math.min(plan.stepsPerEpoch, maxSteps); step++) {
    const all = plan.rowsOf(step);
    const batches = task.comparesRows ? [all] : microBatches(all, microTokens, model.ports.promptLength);
    several ||= batches.length > 1;
    for (const batch of batches) {
      const parts = batch.flatMap((row) => (row.pair ? [row, row.pair] : [row]));
      const length = parts.reduce((sum, { ids }) => sum + ids.length, 0);
      if (length > tokens) [tokens, rows] = [length, parts.length];
    }
  }
  return { model, tokens, rows, several };
}

/** Bytes of the gradients that exist before those of the blocks: of the head's layers. A table of embeddings that they share adds to theirs. */
function gradientsOfHead({ root, sites }: Model, trained: ReadonlySet<unknown>): number {
  const paths = headsOf(sites);
  const inside = [...namedTensors(root)].filter(([key]) => paths.some((path) => key.startsWith(`${path}.`)));
  const tensors = new Set(inside.map(([, tensor]) => tensor).filter((tensor) => trained.has(tensor)));
  return [...tensors].reduce((sum, { nbytes }) => sum + nbytes, 0);
}

/** A micro-batch of one of the models: the largest of a run. */
export interface LargestBatch {
  readonly model: Model;
  /** Without virtual tokens. */
  readonly tokens: number;
  readonly rows: number;
  /** Whether its step has several micro-batches, so that gradients exist beside its activations. */
  readonly several: boolean;
}

/**
 * Sets the sketch's parameters as they are when the most is in memory, where a policy of layers has turns: those train whose lowest layer
 * is nearest to the inputs. What happens by losses and gradients is not foreseen.
 * @param processes of the run: from ZeRO's stage 1 on each keeps the optimizer's state of a share, from stage 2 on the gradients too; at
 *   stage 3 only those of the base's own weights, and these weights
 * @returns what trains then, and the most bytes of gradients and of the optimizer that any turn has in any process
 */
function largestTurn(
  recipe: Recipe,
  { host, adapter, parameters }: TaskModels,
  optimizer: Optimizer,
  steps: number,
  processes: number,
) {
  adapter.beforeStep?.(0, steps);
  const [severalTasks, { seed }] = [recipe.tasks !== undefined, recipe.train];
  const layers = activeLayers({ model: host, adapter, parameters, optimizer, steps, severalTasks, seed });
  const order = modelParts(host);
  const { stage } = recipe.train.zero;
  const sharesGradients = stage === 2 || (stage === 3 && adapter.writes === 'model');
  const isEven = stage === 3 && adapter.writes === 'model' && isDivisible(recipe.train.optimizer);
  const owners = stage > 0 && processes > 1 && !isEven ? ownersOf(parameters, processes) : undefined;
  /** The most that a process has of something that is divided by owners. */
  const largestShare = (trained: ReadonlyMap<string, Tensor>, bytes: (part: ReadonlyMap<string, Tensor>) => number) =>
    owners
      ? Math.max(
          ...Map.groupBy(trained, ([, tensor]) => owners.get(tensor))
            .values()
            .map((part) => bytes(new Map(part))),
        )
      : bytes(trained) / (isEven ? processes : 1);
  const sumOf = (part: ReadonlyMap<string, Tensor>) => part.values().reduce((sum, { nbytes }) => sum + nbytes, 0);
  const turnOf = (parts: readonly ModelPart[]) => {
    const trained = new Map([...parameters].filter(([, { requiresGrad }]) => requiresGrad));
    // Updated in the backward pass, parameters have their gradients one after the other.
    const gradients = optimizer.inBackward
      ? Math.max(0, ...trained.values().map(({ nbytes }) => nbytes))
      : sharesGradients
        ? largestShare(trained, sumOf)
        : sumOf(trained);
    const state = largestShare(trained, (part) => optimizer.stateBytes(part.keys()));
    return { lowest: order.indexOf(parts[0]!), trained, gradients, state };
  };
  const turns = layers ? [] : [turnOf([])];
  for (let step = 0; layers && step < Math.min(steps, maxSteps); step++) {
    const active = layers.begin(step);
    if (active) turns.push(turnOf(active.parts));
  }
  const { trained } = turns.reduce((lowest, turn) => (turn.lowest < lowest.lowest ? turn : lowest));
  for (const [key, parameter] of parameters) parameter.requiresGrad = trained.has(key);
  return {
    trained: new Set(trained.values()),
    weights: largestShare(parameters, sumOf),
    gradients: Math.max(...turns.map((turn) => turn.gradients)),
    state: Math.max(...turns.map((turn) => turn.state)),
  };
}

/**
 * Returns what a run will take in memory, and the tokens of its micro-batches. It disposes of the sketch.
 * @param sketch models that have the shapes of those that will be loaded
 * @param batchesOf the largest micro-batch of each task, where one has so many tokens at most
 * @param measure what activations are computed from
 */
export function planMemory(
  recipe: Recipe,
  sketch: TaskModels,
  before: {
    /** Bytes of the process. */
    readonly process: number;
    readonly precision: Precision;
    /** Undefined: as many as fit. */
    readonly microTokens: number | undefined;
    /** Processes of the run, and how many of them share the free memory. Default: 1. */
    readonly processes?: number;
    readonly sharers?: number;
    /** Of the whole run. */
    readonly steps: number;
  },
  batchesOf: (microTokens: number) => readonly LargestBatch[],
  measure = activationBytes,
): { memory: RunMemory; microTokens: number } {
  const { weightBytes, attachedBytes } = sketch;
  const checkpointed = recipe.train.gradient_checkpointing ?? false;
  using optimizer = optimizerFor(sketch, recipe);
  const { processes = 1, steps } = before;
  const { trained, weights: trainedShare, gradients, state } = largestTurn(recipe, sketch, optimizer, steps, processes);
  const numels = [...trained].map(({ numel }) => numel);
  const { stage } = recipe.train.zero;
  const trainsBase = sketch.adapter.writes === 'model';
  const isSharedOut = stage === 3 && processes > 1;
  const units = isSharedOut ? unitsOf(sketch) : [{ frozenBytes: 0, trained: numels }];
  const isTied = isTableTied(sketch.host);
  const division = { units, trainsBase, isTied, isDivisible: isDivisible(recipe.train.optimizer) };
  const exchanged = processes > 1 ? bufferBytesOf(division, processes, stage) : 0;
  const trainedBase = trainsBase ? [...sketch.parameters.values()].reduce((sum, { nbytes }) => sum + nbytes, 0) : 0;
  const trainedHere = isSharedOut && trainsBase ? trainedShare : trainedBase;
  const frozenHere = (weightBytes - trainedBase) / (isSharedOut ? processes : 1);
  const { offload } = recipe.train;
  const heldBytes = trainedHere + (offload.weights ? 0 : frozenHere);
  const stateInMemory = offload.optimizer ? 0 : state;

  const measured = new Map([...new Set(sketch.models)].map((model) => [model, measure(model)(checkpointed)]));
  const activations = (model: Model) => measured.get(model)!;
  // What the methods add exists already, in the sketch.
  const free = Math.max(
    0,
    freeDeviceMemory() / (before.sharers ?? 1) - heldBytes - gradients - stateInMemory - laterBytes,
  );
  const fitting = () =>
    Math.min(
      ...sketch.models.map((m) => microTokensFor(activations(m), trainedHere + frozenHere, free, before.precision)),
    );
  const microTokens = recipe.train.micro_tokens ?? before.microTokens ?? fitting();

  const peaks = batchesOf(optimizer.inBackward ? Number.POSITIVE_INFINITY : microTokens).map(
    ({ model, tokens, rows, several }) => {
      const { peak, end } = activations(model);
      const ofHead = gradientsOfHead(model, trained);
      const beside = several ? gradients + ofHead : ofHead;
      const atEnd = gradients + end(tokens, rows);
      return { activations: peak(tokens, rows), both: Math.max(peak(tokens, rows) + beside, atEnd) };
    },
  );
  sketch[Symbol.dispose]();
  currentEngine().native.trim();
  const engine = Math.max(0, process.memoryUsage.rss() - before.process) + laterBytes + exchanged;
  const most = (of: 'activations' | 'both') => Math.max(...peaks.map((peak) => peak[of]));
  const mebibytes = (bytes: number) => Math.round(bytes / 2 ** 20);
  const weights = heldBytes + attachedBytes;
  const parts = {
    weightsMb: mebibytes(weights),
    gradientsMb: mebibytes(gradients),
    optimizerMb: mebibytes(stateInMemory),
    activationsMb: mebibytes(most('activations')),
    engineMb: mebibytes(engine),
  };
  const sum = Object.values(parts).reduce((a, b) => a + b);
  // The sum of what was rounded: the parts that are shown add up.
  const apartMb = mebibytes(Math.max(0, gradients + most('activations') - most('both')));
  const memory = {
    processMb: mebibytes(before.process),
    ...parts,
    weightsOnDiskMb: mebibytes(offload.weights ? frozenHere : 0),
    optimizerOnDiskMb: mebibytes(state - stateInMemory),
    apartMb,
    totalMb: sum - apartMb,
  };
  return { memory, microTokens };
}
