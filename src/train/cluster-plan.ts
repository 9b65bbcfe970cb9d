/**
 * What each of many processes holds, sends and computes in a step, by formula: nothing is loaded or started. The stages are those of ZeRO
 * (Rajbhandari et al. 2020, arXiv 1910.02054): 0 divides nothing, 1 the state of the optimizer, 2 the gradients too, 3 the parameters too,
 * here with those that are frozen, as they are held.
 */
import { GraftError } from '../base/index.ts';
import { bucketSize, buckets, dealt, gathersInPlace, gradientBucketSize } from '../distributed/index.ts';

export const stages = [0, 1, 2, 3] as const;
/** A stage of ZeRO. */
export type Stage = (typeof stages)[number];

/** A part of a model that stage 3 gathers at once, in the order in which a step needs them: the embeddings, each block, the rest. */
export interface PlannedUnit {
  /** Bytes of what stays frozen, as it is held in memory. */
  readonly frozenBytes: number;
  /** Numbers of each trained tensor; they and their gradients are float32. */
  readonly trained: readonly number[];
}

/** What a plan needs to know about a model with its methods. */
export interface PlannedModel {
  readonly name: string;
  readonly units: readonly PlannedUnit[];
  /** Whether what is trained are the model's own weights, which stage 3 divides, and not small tensors that methods add. */
  readonly trainsBase: boolean;
  /** Whether the optimizer updates parts of a parameter too, so that stage 3 divides the model's own weights evenly. */
  readonly isDivisible: boolean;
  /** Whether embeddings and head are one table, which stage 3 keeps gathered for a micro-batch. */
  readonly isTied: boolean;
  /** Bytes that the optimizer keeps for all trained parameters. */
  readonly optimizerBytes: number;
  /** Operations of matrix products with weights for one token, forward and backward; and again forward under checkpointing. */
  readonly flopsPerToken: number;
  readonly replayedFlopsPerToken: number;
  /** Whether every process needs all gradients after the update (AdaLoRA's importance), so that they are sent twice at stages 1 and 3. */
  readonly wholeGradients: boolean;
  /** Whether the backward pass updates and frees each gradient, so that a step is one micro-batch, of one process. */
  readonly freesGradients: boolean;
  /** What the plan leaves out. */
  readonly notes?: readonly string[];
  /** Bytes of activations and temporary tensors of a micro-batch. */
  activationBytes(tokens: number, rows: number, checkpointed: boolean): number;
}

/** The processes, their steps, and what they run on. */
export interface PlannedRun {
  readonly ranks: number;
  /** Rows of a step, of all processes together. */
  readonly rows: number;
  /** Tokens of a row. */
  readonly rowTokens: number;
  /** Tokens of a micro-batch at most; a row is never divided. */
  readonly microTokens: number;
  /** Gradient checkpointing. */
  readonly checkpointed: boolean;
  /** What is on the disk instead of in memory. Default: nothing. */
  readonly offload?: { readonly weights: boolean; readonly optimizer: boolean };
  /** Bytes of memory for each process. */
  readonly memory: number;
  /** Bytes a second that a process sends. */
  readonly bandwidth?: number | undefined;
  /** Operations a second of a process. */
  readonly flops?: number | undefined;
}

/** What one process has at a stage. Bytes are those of the process that has most. */
export interface StagePlan {
  /** The stage of ZeRO. */
  readonly stage: Stage;
  /** Whether the method trains with it. */
  readonly available: boolean;
  /** Of frozen weights as they are held, and of trained ones. */
  readonly weightBytes: number;
  /** Of the gradients, float32. */
  readonly gradientBytes: number;
  /** Of the state of the optimizer. */
  readonly optimizerBytes: number;
  /** Of activations and temporary tensors of a micro-batch. */
  readonly activationBytes: number;
  /** Of what is sent and received, and of gathered weights. */
  readonly bufferBytes: number;
  /** Of frozen weights and of the state of the optimizer that are on the disk, and not in the bytes above. */
  readonly diskBytes: number;
  /** All but what is on the disk. What a process takes without a model comes on top. */
  readonly totalBytes: number;
  /** Whether that is at most the memory of a process. */
  readonly fits: boolean;
  /** Bytes that it sends in a step, and receives as many. */
  readonly trafficBytes: number;
  /** Seconds of matrix products in a step; null: the speed was not given. */
  readonly computeS: number | null;
  /** Seconds of sending in a step; null: the bandwidth was not given. */
  readonly trafficS: number | null;
  /** Both, where nothing is sent while something is computed; null where one of them is. */
  readonly stepS: number | null;
}

/** Memory, traffic and time of a process at every stage, and the cheapest stage that fits. */
export interface ClusterPlan {
  /** The model, or the common shape with the method. */
  readonly model: string;
  /** Number of processes. */
  readonly ranks: number;
  /** Numbers that are trained. */
  readonly trainedNumbers: number;
  /** Bytes of what stays frozen, as it is held in one process. */
  readonly frozenBytes: number;
  /** Rows of a step for each process. */
  readonly rowsPerRank: number;
  /** Micro-batches of a step for each process. */
  readonly microBatches: number;
  /** Bytes of memory for each process. */
  readonly memoryBytes: number;
  /** What a process has at each stage, by its number. */
  readonly stages: readonly StagePlan[];
  /** The stage with the shortest step, or where times are unknown the least traffic, of those that fit; null where none does. */
  readonly cheapest: Stage | null;
  /** As `cheapest`, of those that the method trains with. */
  readonly cheapestAvailable: Stage | null;
}

const float = 4;
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);

/**
 * Returns the plan of a run.
 * @throws GraftError 'usage' for more processes than a step has rows
 */
export function clusterPlan(model: PlannedModel, run: PlannedRun): ClusterPlan {
  const { ranks, rows, rowTokens, microTokens, memory } = run;
  if (ranks > rows) {
    throw new GraftError('usage', `there are ${ranks} processes, but a step has ${rows} rows`, {
      place: 'train.batch_size',
      hint: `Set train.batch_size to a multiple of ${ranks}, as with --set train.batch_size=${ranks}, or plan for ${rows} processes at most`,
    });
  }
  const rowsPerRank = Math.ceil(rows / ranks);
  const microRows = model.freesGradients
    ? rowsPerRank
    : Math.min(rowsPerRank, Math.max(1, Math.floor(microTokens / rowTokens)));
  const batches = { rowsPerRank, microRows, microBatches: Math.ceil(rowsPerRank / microRows) };
  const planned = stages.map((stage) => planStage(model, run, stage, batches));
  const cost = ({ stepS, trafficBytes }: StagePlan) => stepS ?? trafficBytes;
  const cheapestOf = (some: readonly StagePlan[]) =>
    some.filter(({ fits }) => fits).toSorted((a, b) => cost(a) - cost(b) || a.stage - b.stage)[0]?.stage ?? null;
  return {
    model: model.name,
    ranks,
    trainedNumbers: sum(model.units.flatMap(({ trained }) => trained)),
    frozenBytes: sum(model.units.map(({ frozenBytes }) => frozenBytes)),
    rowsPerRank,
    microBatches: batches.microBatches,
    memoryBytes: memory,
    stages: planned,
    cheapest: cheapestOf(planned),
    cheapestAvailable: cheapestOf(planned.filter(({ available }) => available)),
  };
}

function planStage(
  model: PlannedModel,
  { ranks, rowTokens, checkpointed, offload, memory, bandwidth, flops }: PlannedRun,
  stage: Stage,
  { rowsPerRank, microRows, microBatches }: { rowsPerRank: number; microRows: number; microBatches: number },
): StagePlan {
  const { units } = model;
  const numels = units.flatMap(({ trained }) => trained);
  const numbers = sum(numels);
  const frozen = sum(units.map(({ frozenBytes }) => frozenBytes));

  // At stage 3, what methods add is as at stage 1.
  const areWeightsShared = stage === 3 && model.trainsBase;
  const owned = stage === 0 ? 1 : shareOf(numels, ranks, areWeightsShared && model.isDivisible);
  const areGradientsShared = stage === 2 || areWeightsShared;
  const frozenHere = frozen / (stage === 3 ? ranks : 1);
  const state = model.optimizerBytes * owned;
  const weightBytes = (offload?.weights ? 0 : frozenHere) + float * numbers * (areWeightsShared ? owned : 1);
  const gradientBytes =
    float * (model.freesGradients ? Math.max(...numels) : numbers * (areGradientsShared ? owned : 1));
  const optimizerBytes = offload?.optimizer ? 0 : state;
  const diskBytes = (offload?.weights ? frozenHere : 0) + (state - optimizerBytes);
  const activationBytes = model.activationBytes(microRows * rowTokens, microRows, checkpointed);
  const bufferBytes = ranks === 1 ? 0 : bufferBytesOf(model, ranks, stage);
  const totalBytes = weightBytes + gradientBytes + optimizerBytes + activationBytes + bufferBytes;

  const trafficBytes = trafficOf(model, ranks, stage, microBatches);
  const perToken = model.flopsPerToken + (checkpointed ? model.replayedFlopsPerToken : 0);
  const computeS = flops === undefined ? null : (perToken * rowsPerRank * rowTokens) / flops;
  const trafficS = bandwidth === undefined ? null : trafficBytes / bandwidth;
  return {
    stage,
    available: !(stage === 2 && model.wholeGradients),
    ...{ weightBytes, gradientBytes, optimizerBytes, activationBytes, bufferBytes, diskBytes, totalBytes },
    fits: totalBytes <= memory,
    ...{ trafficBytes, computeS, trafficS },
    stepS: computeS === null || trafficS === null ? null : computeS + trafficS,
  };
}

/**
 * Bytes that a process sends in a step. Up to stage 1, gradients are added up once a step: Ψ for the sums and Ψ for the updates (ring, of
 * which each process has (N - 1)/N). Stage 2 sends gradients in every micro-batch, since no process holds all of them between two. Stage 3
 * gathers in every micro-batch embeddings and head once, and each block for the forward and for the backward pass; it sends the
 * gradients of weights that are trained in every micro-batch, and those of what methods add as stage 1 does.
 */
export function trafficOf(
  {
    units,
    trainsBase,
    isTied,
    wholeGradients,
  }: Pick<PlannedModel, 'units' | 'trainsBase' | 'isTied' | 'wholeGradients'>,
  ranks: number,
  stage: Stage,
  microBatches: number,
): number {
  const share = (ranks - 1) / ranks;
  const trained = float * sum(units.flatMap((unit) => unit.trained));
  const once = share * (stage > 0 && wholeGradients ? 3 : 2) * trained;
  if (stage < 2) return once;
  if (stage === 2) return share * (microBatches + 1) * trained;
  const { first, last, blocks } = gatheredBytes(units, trainsBase);
  // Embeddings that are trained are looked up again in the backward pass.
  const lookups = trainsBase && !isTied ? 2 : 1;
  const inPass = lookups * first + last + 2 * sum(blocks) + (trainsBase ? trained : 0);
  return share * microBatches * inPass + (trainsBase ? 0 : once);
}

/** Bytes that stage 3 gathers: the first and the last unit, which are outside of the blocks, and each block. */
function gatheredBytes(
  units: readonly PlannedUnit[],
  trainsBase: boolean,
): { first: number; last: number; blocks: number[] } {
  const bytes = units.map(({ frozenBytes, trained }) => frozenBytes + (trainsBase ? float * sum(trained) : 0));
  return { first: bytes[0]!, last: bytes.length > 1 ? bytes.at(-1)! : 0, blocks: bytes.slice(1, -1) };
}

function largestShare(numels: readonly number[], ranks: number): number {
  const loads = new Map<number, number>();
  for (const [i, owner] of dealt(numels, ranks).entries()) loads.set(owner, (loads.get(owner) ?? 0) + numels[i]!);
  return Math.max(...loads.values());
}

/** The part of all trained numbers that the process with most of them has. */
export function shareOf(numels: readonly number[], ranks: number, isEven: boolean): number {
  const numbers = sum(numels);
  if (numbers === 0) return 1;
  return isEven ? 1 / ranks : largestShare(numels, ranks) / numbers;
}

/**
 * Bytes of the buffers that travel: buckets of gradients and updates; at stage 3 also what is gathered at a time, which is two neighbours of
 * embeddings, blocks and head, besides a table that is both embeddings and head; and where weights are trained the gradients of one block.
 */
export function bufferBytesOf(
  { units, trainsBase, isTied, isDivisible }: Pick<PlannedModel, 'units' | 'trainsBase' | 'isTied' | 'isDivisible'>,
  ranks: number,
  stage: Stage,
): number {
  const numels = units.flatMap(({ trained }) => trained);
  if (stage === 1 || stage === 2) {
    const sent = Math.min(bucketSize, sum(numels));
    // The owner of a large tensor receives a part of it from every process.
    const part = gradientBucketSize(ranks);
    return float * (sent + Math.max(sent, Math.max(0, ...numels) > part ? ranks * part : 0));
  }
  if (stage === 3) {
    const { first, last, blocks } = gatheredBytes(units, trainsBase);
    const outside = isTied ? first + last : 0;
    const pair = (i: number) => blocks[i]! + (blocks[i - 1] ?? 0);
    // A gather that is not in place goes to memory of the network's, which is copied; what is kept whole by owners comes to its place.
    const isGathered = trainsBase && isDivisible;
    const copyOf = (bytes: number) => (gathersInPlace(ranks) ? 0 : bytes);
    const copied = copyOf(
      Math.max(0, ...units.slice(1, -1).map(({ frozenBytes }, i) => (isGathered ? blocks[i]! : frozenBytes))),
    );
    // Where the embeddings are looked up and where the head computes, with the block that is next to them; one of the two arrives.
    const beside = (end: number, block = 0) => (isTied ? 0 : end + block + copyOf(Math.max(end, block)));
    const atEnds = Math.max(beside(first, blocks[0]), beside(last, blocks.at(-1)));
    if (!trainsBase) {
      const inPass = Math.max(outside + copied + Math.max(0, ...blocks.map((_, i) => pair(i))), atEnds);
      return Math.max(inPass, bufferBytesOf({ units, trainsBase, isTied, isDivisible }, ranks, 1));
    }
    // In the backward pass of a block its gradients exist, and others are sent and received; those of the blocks below do not exist yet.
    const kept = shareOf(numels, ranks, isDivisible);
    let later = float * kept * sum([units[0]!, units.at(-1)!].flatMap(({ trained }) => trained));
    let most = 0;
    for (const [i, { trained }] of units.slice(1, -1).entries()) {
      const numbers = sum(trained);
      most = Math.max(most, pair(i) + float * (numbers + 2 * Math.min(bucketSize, numbers)) - later);
      later += float * kept * numbers;
    }
    // The gradients of embeddings, once all others are at their owners.
    const ofEmbeddings = sum(units[0]!.trained);
    const lookUp = isTied ? 0 : first + float * (ofEmbeddings + 2 * Math.min(bucketSize, ofEmbeddings));
    return Math.max(outside + copied + most, atEnds, lookUp);
  }
  return (
    float *
    Math.max(0, ...buckets(numels.map((numel) => ({ numel }))).map((bucket) => sum(bucket.map(({ numel }) => numel))))
  );
}
