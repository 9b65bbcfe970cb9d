import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../src/base/index.ts';
import { openSafetensors } from '../src/io/index.ts';
import { type Model, outputOf, packTokens } from '../src/nn/index.ts';
import { type DType, noGrad, scope, Tensor } from '../src/tensor/index.ts';

export const golden = (...parts: string[]) => join(packageRoot, 'test', 'golden', ...parts);

/** All tensors of a safetensors file, and its metadata. */
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

/** max |a − b| / max |b|: the measure of the goldens' tolerances. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) throw new Error(`${got.length} numbers against ${want.length}`);
  let worst = 0;
  let scale = 0;
  for (let i = 0; i < want.length; i++) {
    const d = Math.abs(got[i]! - want[i]!);
    if (!(d <= worst)) worst = d; // NaN sticks
    scale = Math.max(scale, Math.abs(want[i]!));
  }
  return worst / (scale || 1);
}

export const numbers = (t: Tensor): Float32Array => t.data() as Float32Array;
export const integers = (t: Tensor): number[] => Array.from(t.data() as BigInt64Array, Number);

/** A directory of its own, gone at the end of the block. */
export function temporary(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'graft-test-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** The logits of one row of ids, or of several end to end: [N, V] as numbers. */
export const logitsOf = (model: Model, ...rows: ArrayLike<number>[]): Float32Array =>
  noGrad(() => {
    using _ = scope();
    return numbers(outputOf(model, packTokens(rows)));
  });
