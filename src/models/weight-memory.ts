import { GraftError } from '../base/index.ts';
import { freeDisk } from '../io/index.ts';
import { type FormatName, formatOfQuantize, formats, type Quantize, quantizeModes } from '../quant/index.ts';
import { type DType, freeDeviceMemory } from '../tensor/index.ts';
import type { Family } from './family.ts';
import type { StoredWeight } from './weight-reader.ts';

type StoredForm = Pick<StoredWeight, 'entry'> & Partial<StoredWeight>;

/** The stored tensors of a model by key, and its family, which knows how it holds them. */
interface StoredModel {
  readonly stored: ReadonlyMap<string, StoredForm>;
  readonly family: Pick<Family, 'heads' | 'headLayers' | 'transposed' | 'adapterHub'>;
}

/** The form in which a stored tensor is held. */
interface HeldForm {
  readonly stored: StoredForm;
  readonly format: FormatName;
  readonly bytes: number;
  /** Whether its rows are the file's columns. */
  readonly transposed: boolean;
}

/**
 * Yields how a model holds each of its stored tensors. Heads are dense, since they are trained; weights that the file stores transposed
 * (Conv1D) are never kept as they are stored.
 */
function* heldForms({ stored, family }: StoredModel, quantize: Quantize, dtype: DType): Generator<HeldForm> {
  const packed = formatOfQuantize(quantize);
  const heads = new Set([...family.heads, ...(family.headLayers ?? [])]);
  const conv1d = new Set(family.transposed ?? []);
  const rowHead = family.adapterHub?.rowHead ?? [];
  for (const [key, weight] of stored) {
    const { shape, format, bytes } = weight.entry;
    const elements = shape.reduce((a, b) => a * b, 1);
    const parts = key.split('.');
    const isHead =
      heads.has(parts[0]!) ||
      rowHead.some((path) => key.endsWith(`${path}.weight`) || `${path}.weight`.endsWith(`.${key}`));
    const isMatrix = shape.length === 2 && !isHead;
    const transposed = conv1d.has(parts.at(-2)!);
    const isKept = quantize === 'keep' && formats[format].nativeId !== undefined && !transposed;
    if (isMatrix && isKept) yield { stored: weight, format, bytes, transposed: false };
    else {
      const held = isMatrix && packed ? packed : dtype;
      const { blockElements, blockBytes } = formats[held];
      yield { stored: weight, format: held, bytes: (elements / blockElements) * blockBytes, transposed };
    }
  }
}

/** Returns the bytes that a model's weights take in memory, from the list of its stored tensors. */
export const heldBytes = (model: StoredModel, quantize: Quantize, dtype: DType = 'float32'): number =>
  Iterator.from(heldForms(model, quantize, dtype)).reduce((sum, { bytes }) => sum + bytes, 0);

/** Weights that are smaller, such as norms and biases, are read into memory where the others stay in files. */
const smallBytes = 2 ** 14;

export const staysInMemory = (bytes: number): boolean => bytes < smallBytes;

/** Whether a file has a tensor byte for byte as a model holds it in this format, not transposed. */
export const isHeldAsStored = ({ entry, interleavedHeads }: StoredForm, format: FormatName): boolean =>
  entry.format === format && !interleavedHeads;

/**
 * Refuses a model whose weights are to stay in files, where the disk has no room for those that no file has as the model holds them.
 * @param dir where these are written
 * @param copies how many processes on this machine write them
 * @param isShared whether each process writes a share of all weights, also of those that stand in files; `copies` counts whole models then
 * @throws GraftError 'environment' with the room needed, and the room there is
 */
export function requireDisk(
  path: string,
  model: StoredModel,
  quantize: Quantize,
  {
    dtype,
    dir,
    copies,
    isShared,
  }: { readonly dtype: DType; readonly dir: string; readonly copies: number; readonly isShared: boolean },
): void {
  let needed = 0;
  for (const { stored, format, bytes, transposed } of heldForms(model, quantize, dtype)) {
    const isThere = !isShared && !transposed && !stored.integers && isHeldAsStored(stored, format);
    if (!isThere && !staysInMemory(bytes)) needed += copies * bytes;
  }
  const free = freeDisk(dir);
  if (needed <= free) return;
  throw new GraftError(
    'environment',
    `${gigabytes(needed)} of the weights have to be written, since no file has them as they are computed with, and the disk has room for ${gigabytes(free)}${copies > 1 ? ` (${copies} processes write them)` : ''}`,
    {
      place: path,
      hint: `Set train.offload.dir to a folder of another disk, or keep the weights as they are stored (quantize: keep)`,
      data: { needed, free },
    },
  );
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;

/**
 * Refuses a model that does not fit into free memory, for which the system would end the process.
 * @throws GraftError 'environment' with the memory needed, the memory free, and a `quantize` with which the model fits
 */
export function requireMemory(
  path: string,
  model: StoredModel,
  quantize: Quantize,
  {
    dtype,
    sharers = 1,
    trains = false,
  }: {
    readonly dtype?: DType | undefined;
    readonly sharers?: number;
    readonly trains?: boolean;
  } = {},
): void {
  const free = freeDeviceMemory() / sharers;
  const needed = heldBytes(model, quantize, dtype);
  if (needed <= free) return;
  const fitting = quantizeModes.find((mode) => mode !== 'none' && heldBytes(model, mode) < 0.9 * free);
  throw new GraftError(
    'environment',
    `the weights take ${gigabytes(needed)} with quantize: ${quantize}, and ${gigabytes(free)} of memory are free${sharers > 1 ? ` for each of ${sharers} processes` : ''}`,
    {
      place: path,
      hint: `${
        fitting
          ? `With quantize: ${fitting} they take ${gigabytes(heldBytes(model, fitting))}`
          : 'Free some memory, or choose a smaller model'
      }${trains ? '; with train.offload.weights: true, frozen weights stay on the disk' : ''}`,
      data: { needed, free },
    },
  );
}
