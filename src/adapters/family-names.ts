/** What the model families say of the names in adapter files. */
import { type Family, families } from '../models/index.ts';

/** The family of a `model_type`, where Graft has it. */
export const familyOfType = (modelType: unknown): Family | undefined =>
  families.find(({ types }) => types.includes(String(modelType)));

/** Top-level modules with the output layers of tasks, of all families. */
export const headNames: ReadonlySet<string> = new Set(families.flatMap(({ heads }) => heads));

const headModules = new Set([...headNames, ...families.flatMap(({ headLayers = [] }) => headLayers)]);

/** Whether a key of a model belongs to its task's head. */
export const isHeadKey = (key: string): boolean => headModules.has(key.split('.')[0]!);

const transposedLayers = new Set(families.flatMap(({ transposed = [] }) => transposed));

/** Whether checkpoints store the weight of the layer at `path` as [in, out]. */
export const isTransposed = (path: string): boolean => transposedLayers.has(path.split('.').at(-1)!);
