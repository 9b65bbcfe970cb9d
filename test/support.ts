import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../src/base/index.ts';
import { openSafetensors } from '../src/io/index.ts';
import { type Model, outputOf, packTokens } from '../src/nn/index.ts';
import { type DType, noGrad, scope, Tensor } from '../src/tensor/index.ts';

/** Returns a path below test/golden/. */
export const golden = (...parts: string[]) => join(packageRoot, 'test', 'golden', ...parts);

/** Returns all tensors of a safetensors file, and its metadata. */
export function readTensors(path: string): { tensors: Map<string, Tensor>; metadata: ReadonlyMap<string, unknown> } {
  using source = openSafetensors(path);
  const tensors = new Map<string, Tensor>();
  for (const [name, { format, shape }] of source.entries) {
    const tensor = Tensor.empty(shape, format as DType);
    source.read(name, tensor.memory());
    tensors.set(name, tensor);
  }
  return { tensors, metadata: new Map(source.metadata) };
}

/** Returns max |a − b| / max |b|, the error measure of the goldens' tolerances. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} numbers, expected ${expected.length}`);
  let maxError = 0;
  let scale = 0;
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i]! - expected[i]!);
    if (!(error <= maxError)) maxError = error; // NaN remains
    scale = Math.max(scale, Math.abs(expected[i]!));
  }
  return maxError / (scale || 1);
}

/** Returns the numbers of a float32 tensor. */
export const numbers = (t: Tensor): Float32Array => t.data() as Float32Array;
/** Returns the numbers of an int64 tensor. */
export const integers = (t: Tensor): number[] => Array.from(t.data() as BigInt64Array, Number);

/** Returns a new temporary directory, which is removed at the end of the block. */
export function temporary(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'graft-test-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** Returns the logits of one or more packed rows of ids: [N, V] as numbers. */
export const logitsOf = (model: Model, ...rows: ArrayLike<number>[]): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return numbers(outputOf(model, packTokens(rows)));
  });
