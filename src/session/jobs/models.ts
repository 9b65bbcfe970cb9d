import { GraftError } from '../../base/index.ts';
import { useThreads } from '../../engine/index.ts';
import { resolveModel } from '../../io/index.ts';
import { type Quantize, SharedWeights } from '../../models/index.ts';
import type { TaskName } from '../../nn/index.ts';
import type { Activation } from '../../quant/index.ts';
import { currentDevice, detachFromScopes, giveTensors, takeTensors } from '../../tensor/index.ts';
import type { JobContext } from '../job-context.ts';
import { dropResident, type ModelInfo, ResidentModel, registerResident, residentOf } from '../resident.ts';

/** How a model is loaded. */
export interface ModelSettings {
  /**
   * How weights are held in memory. keep: as the file stores them (GGUF blocks, bfloat16); none: unpacked to float32; int8, nf4:
   * quantised while loading. Default: keep, which computes the same numbers as none in less memory.
   */
  readonly quantize?: Quantize | undefined;
  /**
   * How layers with weights in blocks take their inputs. exact: as they are; q8: rounded to blocks of 8 bits, as llama.cpp computes and
   * `qat` with activation: q8 trains. Default: exact.
   */
  readonly activation?: Activation | undefined;
  /** Adapters to attach: directories by name, or a list of directories, each named by its path. */
  readonly adapters?: Readonly<Record<string, string>> | readonly string[] | undefined;
  /** What to load it for. Default: the task of the first adapter, else of the checkpoint. */
  readonly task?: TaskName | undefined;
  /** Processor threads. Default: all cores. */
  readonly threads?: number | undefined;
  /** auto: the first GPU that can be used, else the processor; cpu; cuda; or of several GPUs cuda:1. Default: auto. */
  readonly device?: string | undefined;
}

/** Weights that another thread gives, and what they are of. */
export interface LentWeights {
  /** By which this thread takes them. */
  readonly number: number;
  /** Name and form of each. */
  readonly names: readonly string[];
  readonly of: Pick<ModelInfo, 'path' | 'quantize' | 'device'>;
}

export type LoadArgs = ModelSettings & { readonly model: string; readonly lent?: LentWeights | undefined };

/** Gives the weights of a model to another thread. */
export function lendWeights({ modelId }: { readonly modelId: number }): LentWeights {
  const resident = residentOf(modelId);
  const { weights } = resident;
  const { path, quantize, device } = resident.info;
  return { number: giveTensors([...weights.values()]), names: [...weights.keys()], of: { path, quantize, device } };
}

/** Frees what a thread did not come to take: it would keep the model's memory. */
export function takeBackWeights({ number }: LentWeights): void {
  try {
    for (const tensor of takeTensors(number)) tensor.dispose();
  } catch {
    // Who has taken them frees them.
  }
}

/** Takes weights, which belong to the caller. */
const taken = ({ number, names }: LentWeights): SharedWeights =>
  new SharedWeights(takeTensors(number).map((tensor, i) => [names[i]!, detachFromScopes(tensor)]));

/** @throws GraftError 'usage' for weights of another model, or held in another way */
function requireSameModel({ of }: LentWeights, path: string, quantize: Quantize): void {
  const device = currentDevice();
  if (of.path === path && of.quantize === quantize && of.device === device) return;
  const what = (m: LentWeights['of']) => `${m.path}, quantize ${m.quantize}, on ${m.device}`;
  throw new GraftError('usage', `weightsOf is ${what(of)}, and this model is ${what({ path, quantize, device })}`, {
    place: 'weightsOf',
    hint: 'Give a model of the same files, held in the same way',
  });
}

/** Loads a model with its adapters; other jobs name it by the id that is returned. */
export async function load(
  { model, quantize = 'keep', activation, adapters = [], task, threads, lent }: LoadArgs,
  context: JobContext,
): Promise<{ id: number; info: ModelInfo }> {
  useThreads(threads);
  using opening = new DisposableStack();
  const weights = lent && opening.use(taken(lent));
  const path = await resolveModel(model);
  if (lent) requireSameModel(lent, path, quantize);
  const resident = opening.use(new ResidentModel(path, quantize, task, threads, activation, weights));
  const named = Array.isArray(adapters) ? adapters.map((dir) => [dir, dir] as const) : Object.entries(adapters);
  for (const [name, dir] of named) resident.addAdapter(name, dir);
  resident.use(named[0]?.[0], task, context);
  opening.move();
  return { id: registerResident(resident), info: resident.info };
}

export function addAdapter({ modelId, name, dir }: { modelId: number; name: string; dir: string }): ModelInfo {
  const resident = residentOf(modelId);
  resident.addAdapter(name, dir);
  try {
    resident.use(name);
  } catch (error) {
    resident.removeAdapter(name);
    throw error;
  }
  return resident.info;
}

export function removeAdapter({ modelId, name }: { modelId: number; name: string }): ModelInfo {
  const resident = residentOf(modelId);
  resident.removeAdapter(name);
  return resident.info;
}

export function unload({ modelId }: { modelId: number }): void {
  dropResident(modelId);
}
