/** Files of adapter tensors: opening them, copying them into parameters, and writing parameters. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { GraftError, type Steps } from '../base/index.ts';
import { openSafetensors, openTorch, type TensorToWrite, type WeightSource } from '../io/index.ts';
import { readTensor } from '../models/index.ts';
import { isBlockFormat } from '../quant/index.ts';
import { noGrad, ops, scope, Tensor } from '../tensor/index.ts';

/** At most so many tensors that do not fit are listed in a message. */
const maxListed = 16;

/**
 * The first of the files that the directory has; undefined where it has none.
 * @param names in order of preference; `.bin` is a torch pickle, any other name safetensors
 */
export function findWeights(dir: string, names: readonly string[]): WeightSource | undefined {
  const name = names.find((candidate) => existsSync(join(dir, candidate)));
  if (!name) return undefined;
  return name.endsWith('.bin') ? openTorch(join(dir, name)) : openSafetensors(join(dir, name));
}

/** As `findWeights`. @throws GraftError 'input' where the directory has none of the files */
export function openWeightsOf(dir: string, names: readonly string[]): WeightSource {
  const source = findWeights(dir, names);
  if (source) return source;
  throw new GraftError('input', `the adapter has no weights: neither ${names.join(' nor ')}`, { place: dir });
}

/** A tensor as an entry of a file; its bytes are read when they are written. */
export const tensorToWrite = ([name, tensor]: readonly [string, Tensor]): TensorToWrite => ({
  name,
  dtype: tensor.dtype,
  shape: tensor.shape,
  bytes: () => tensor.bytes(),
});

/**
 * Copies the tensors of a file into parameters, one in each step.
 * @param parameters by their names in the file
 * @param ignored names in the file that need no parameter
 * @param shown a name as messages show it
 * @throws GraftError 'mismatch' listing every tensor that is missing, of another shape, or without a parameter
 */
export function* fillTensors(
  source: WeightSource,
  parameters: ReadonlyMap<string, Tensor>,
  place: string,
  ignored: (name: string) => boolean = () => false,
  shown: (name: string) => string = (name) => name,
): Steps<void> {
  const problems: string[] = [];
  for (const [name, { shape }] of parameters) {
    const entry = source.entries.get(name);
    if (!entry) problems.push(`${shown(name)} [${shape.join(', ')}] is missing`);
    else if (entry.shape.join() !== shape.join()) {
      problems.push(`${shown(name)} is [${entry.shape.join(', ')}], the base asks for [${shape.join(', ')}]`);
    }
  }
  for (const name of source.entries.keys()) {
    if (!parameters.has(name) && !ignored(name)) problems.push(`${name} matches no parameter`);
  }
  if (problems.length > 0) {
    const more = problems.length > maxListed ? `; and ${problems.length - maxListed} more` : '';
    throw new GraftError(
      'mismatch',
      `the adapter does not fit this base: ${problems.slice(0, maxListed).join('; ')}${more}`,
      { place, data: { problems } },
    );
  }
  const largest = [...parameters.keys()].reduce((most, name) => Math.max(most, source.entries.get(name)!.bytes), 0);
  const buffer = new Uint8Array(largest);
  for (const [name, parameter] of parameters) {
    fillTensor(source, name, parameter, buffer);
    yield;
  }
}

/**
 * Copies a tensor of the file into a parameter, through a buffer that many share: JavaScript frees late what it sees, and adapters come and go
 * while others are served.
 */
function fillTensor(source: WeightSource, name: string, parameter: Tensor, buffer: Uint8Array): void {
  const { format, shape, bytes } = source.entries.get(name)!;
  const numbers = () => {
    const known = source.inMemory?.(name);
    if (!known) source.read(name, buffer.subarray(0, bytes));
    return known ?? buffer.subarray(0, bytes);
  };
  if (format === parameter.dtype) parameter.write(numbers());
  else
    noGrad(() => {
      using _ = scope();
      if (isBlockFormat(format)) return void ops.copy_(parameter, readTensor(source, name));
      const stored = Tensor.empty(shape, format);
      stored.write(numbers());
      ops.copy_(parameter, stored);
    });
}
