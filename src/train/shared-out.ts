/** How the weights of a run's models are shared out among its processes (ZeRO stage 3): as they are read, so that none ever has them all. */
import { GraftError } from '../base/index.ts';
import { type Group, type ReadRows, rowsInMemory, ShardedUnit, SpareMemory } from '../distributed/index.ts';
import type { ScratchFile } from '../io/index.ts';
import type { LaterWeights } from '../models/index.ts';
import { headsOf, heldTensors, type Model } from '../nn/index.ts';
import { isAbsent, type Tensor, takeAway } from '../tensor/index.ts';
import { type GatheredPart, type GatheredParts, partsOf } from './gathered-blocks.ts';
import { ownersOf } from './owners.ts';
import type { TaskModels } from './task-models.ts';
import { tensorsByBlock } from './tensors-by-block.ts';

/**
 * Shares out the weights of models: equal parts of the bytes of each block. What methods train besides stays on every process. Every process
 * has to call it.
 * @param later the weights, of which none need have been read
 * @param isDivisible whether parts of what is trained can be updated by several processes; else it is shared out by whole tensors
 * @param file where each process keeps its part of what is frozen. Default: in memory
 * @throws GraftError 'usage' for a method that needs weights of the base which it has replaced
 */
export function shareOut(
  group: Group,
  { models, host, parameters, adapter }: Pick<TaskModels, 'models' | 'host' | 'parameters' | 'adapter'>,
  later: LaterWeights,
  isDivisible: boolean,
  file?: ScratchFile,
): GatheredParts {
  const base = later.tensors;
  const trainedTensors = new Set(parameters.values());
  const byOwner = isDivisible ? new Map([...parameters].filter(([, tensor]) => !base.has(tensor))) : parameters;
  const owners = ownersOf(byOwner, group.size);
  const byBlock = tensorsByBlock(models);
  const readOf = (tensor: Tensor): ReadRows =>
    base.has(tensor) && isAbsent(tensor)
      ? (first, count) => later.rows(tensor, { first, count })
      : rowsInMemory(tensor);
  const [embeddings, head] = tensorsAtEnds(models);
  const outside = byBlock.get(undefined) ?? [];
  const isAtEnd = (tensor: Tensor) => base.has(tensor) && embeddings.has(tensor) !== head.has(tensor);
  const spare = new SpareMemory();
  const partOf = (some: readonly Tensor[]): GatheredPart => {
    const tensors = some.filter((tensor) => !trainedTensors.has(tensor) || base.has(tensor));
    const [trained, frozen] = [true, false].map((trains) =>
      tensors.filter((tensor) => trainedTensors.has(tensor) === trains),
    ) as [Tensor[], Tensor[]];
    const withReads = (some: readonly Tensor[]) => new Map(some.map((tensor) => [tensor, readOf(tensor)]));
    const shared = { frozen: withReads(frozen), trained: withReads(trained), ...(!isDivisible && { owners }) };
    return { unit: new ShardedUnit(group, shared, spare, file), trained, tensors: new Set(tensors) };
  };
  const parts = {
    embeddings: partOf(outside.filter((tensor) => isAtEnd(tensor) && embeddings.has(tensor))),
    head: partOf(outside.filter((tensor) => isAtEnd(tensor) && head.has(tensor))),
    outside: partOf(outside.filter((tensor) => !isAtEnd(tensor))),
    blocks: Array.from({ length: host.layers }, (_, block) => partOf(byBlock.get(block) ?? [])),
    owners,
    spare,
  };
  // What a method has replaced is in no part.
  const shared = new Set(partsOf(parts).flatMap(({ tensors }) => [...tensors]));
  const replaced = [...base].filter((tensor) => !shared.has(tensor) && !isAbsent(tensor));
  const switching = adapter.parts.find(({ beforeStep, changesTrainedOnly }) => beforeStep && !changesTrainedOnly);
  if (replaced.length > 0 && switching)
    throw new GraftError(
      'usage',
      `${switching.method} takes its changes of the base back during the run, and stage 3 keeps the changed weights`,
      {
        place: 'train.zero.stage',
        hint: 'Set it to 2',
      },
    );
  for (const tensor of replaced) takeAway(tensor);
  return parts;
}

/** The tensors of the embeddings that tokens are looked up in, and those of the output layers of heads. */
function tensorsAtEnds(models: readonly Model[]): [embeddings: ReadonlySet<Tensor>, head: ReadonlySet<Tensor>] {
  const [embeddings, head] = [new Set<Tensor>(), new Set<Tensor>()];
  for (const { root, sites } of models)
    for (const [path, tensor] of heldTensors(root)) {
      if (path === sites.embeddings) embeddings.add(tensor);
      if (headsOf(sites).includes(path)) head.add(tensor);
    }
  return [embeddings, head];
}
