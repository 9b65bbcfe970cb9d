/** Policies whose choice is a function of the step: the last layers, random layers (LISA), one block after the other (BAdam). */
import type { ModelPart } from '../../nn/index.ts';
import { mixSeed } from '../../tensor/index.ts';
import type { LayerPolicy, PartState, PolicyRun } from '../shared/index.ts';
import { type LayerwiseConfig, nameOfPart, partsNamed, refuse } from './config.ts';

/** How a policy chooses parts, turn by turn. */
interface Chooser {
  /** Steps of a turn. */
  readonly every: number;
  /** Returns the parts to choose from. @throws GraftError 'usage' where they have no trained parameters */
  pool(run: PolicyRun): readonly ModelPart[];
  /** Returns the parts of turn number `turn` (0-based). */
  choose(turn: number, pool: readonly ModelPart[], seed: number): readonly ModelPart[];
}

const isLayer = (part: ModelPart): part is number => typeof part === 'number';

/** Returns 0 to n − 1 in a random order that follows from the seed and a number. */
function permutation(n: number, seed: number, round: number): number[] {
  const order = [...Array(n).keys()];
  for (let i = n - 1; i > 0; i--) {
    const j = Number(mixSeed(seed, round, i) % BigInt(i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** @throws GraftError 'usage' where one of the parts has no trained parameter */
function requireTrained(named: readonly ModelPart[], { parts }: PolicyRun, field: string): void {
  const missing = named.find((part) => !parts.has(part));
  if (missing === undefined) return;
  refuse(
    `${field} names ${nameOfPart(missing)}, of which no parameter is trained`,
    `Parts with trained parameters: ${[...parts].join(', ')}`,
  );
}

function last({ layers }: LayerwiseConfig, modelLayers: number): Chooser {
  const parts = [...Array(modelLayers).keys()].slice(-layers!);
  return {
    every: Number.POSITIVE_INFINITY,
    pool(run) {
      const pool = parts.filter((part) => run.parts.has(part));
      if (pool.length > 0) return pool;
      const others = [...run.parts].filter(isLayer).join(', ');
      return refuse(
        `no parameter of the last layers (${parts.join(', ')}) is trained`,
        `Give layers a larger number, or the method beside it other layers than ${others}`,
      );
    },
    choose: (_turn, pool) => pool,
  };
}

/** LISA (arXiv 2403.17919): layers at random, in every turn anew. */
function lisa({ layers: count = 2, every = 20 }: LayerwiseConfig): Chooser {
  return {
    every,
    pool({ parts }) {
      const pool = [...parts].filter(isLayer);
      if (pool.length >= count) return pool;
      const have = `${pool.length} layer${pool.length === 1 ? ' has' : 's have'} trained parameters`;
      return refuse(`layers is ${count}, and ${have}`, `Set layers to ${pool.length} or fewer`);
    },
    choose: (turn, pool, seed) =>
      permutation(pool.length, seed, turn)
        .slice(0, count)
        .map((i) => pool[i]!),
  };
}

/** BAdam (arXiv 2404.02827): one block at a time, each once before any comes again. */
function badam({ every = 50, order = 'random', blocks }: LayerwiseConfig, modelLayers: number): Chooser {
  const named = blocks === undefined ? undefined : partsNamed(blocks, modelLayers, 'blocks');
  const position = (part: ModelPart) => (isLayer(part) ? part : part === 'head' ? modelLayers : -1);
  return {
    every,
    pool(run) {
      if (named) requireTrained(named, run, 'blocks');
      const pool = named ?? [...run.parts].filter(isLayer);
      if (order === 'fixed') return pool;
      const ascending = [...pool].sort((a, b) => position(a) - position(b));
      return order === 'descending' ? ascending.reverse() : ascending;
    },
    choose(turn, pool, seed) {
      const [round, i] = [Math.floor(turn / pool.length), turn % pool.length];
      return [pool[order === 'random' ? permutation(pool.length, seed, round)[i]! : i]!];
    },
  };
}

const choosers = { last, lisa, badam };
const alwaysByDefault = { last: ['head'], lisa: ['embeddings', 'head'], badam: [] } as const;

/** Returns a policy whose choice depends on nothing but the step and the seed. */
export function choosing(
  policy: keyof typeof choosers,
  config: LayerwiseConfig,
  { layers: modelLayers, sharesTable }: { readonly layers: number; readonly sharesTable: boolean },
): LayerPolicy {
  const { layers = 1, always: named } = config;
  if (layers > modelLayers)
    refuse(`layers is ${layers}, and the model has ${modelLayers} layers`, `Set layers to ${modelLayers} or fewer`);
  const { every, pool: poolOf, choose } = choosers[policy](config, modelLayers);
  const always = new Set(partsNamed([named ?? alwaysByDefault[policy]].flat(), modelLayers, 'always'));
  let pool: readonly ModelPart[] = [];
  let seed = 0;
  return {
    begin(run) {
      if (named !== undefined) requireTrained([...always], run, 'always');
      pool = poolOf(run);
      seed = run.seed;
      const both = policy === 'badam' ? pool.find((part) => always.has(part)) : undefined;
      if (both !== undefined)
        refuse(`${nameOfPart(both)} is a block and trains always`, 'Name it in blocks or in always');
      const notes: string[] = [];
      const trains = (part: ModelPart) => run.parts.has(part) && (always.has(part) || pool.includes(part));
      if (sharesTable && trains('head') && !trains('embeddings') && run.parts.has('embeddings'))
        notes.push('layerwise: the output projection is the table of the embeddings, which stays frozen');
      const reached = new Set<ModelPart>();
      const all = new Set(pool).size;
      const turns = Math.max(1, Math.ceil(run.steps / every));
      for (let turn = 0; turn < turns && reached.size < all; turn++)
        for (const part of choose(turn, pool, seed)) reached.add(part);
      if (reached.size < all)
        notes.push(
          `layerwise: in ${run.steps} steps, ${reached.size} of ${all} ${policy === 'lisa' ? 'layers' : 'blocks'} are trained`,
        );
      return notes;
    },
    neverTrains: (part) => !always.has(part) && !pool.includes(part),
    at(step) {
      const turn = Math.floor(step / every);
      const since = turn === 0 ? 0 : turn * every;
      const [now, before] = [choose(turn, pool, seed), turn === 0 ? [] : choose(turn - 1, pool, seed)];
      return (part): PartState => {
        if (always.has(part)) return { trains: true, since: 0 };
        if (now.includes(part)) return { trains: true, since };
        return { trains: false, since: before.includes(part) ? since : 0 };
      };
    },
  };
}
