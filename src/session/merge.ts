import { GraftError } from '../base/index.ts';
import { tokenizerFilesOf } from '../data/index.ts';
import { loadAdapter, saveModel } from '../export/index.ts';
import { requireNew, resolveModel } from '../io/index.ts';
import { loadModel } from '../models/index.ts';
import { type Model, outputOf, packTokens } from '../nn/index.ts';
import { noGrad, ops, scope } from '../tensor/index.ts';

export interface MergeArgs {
  readonly model: string;
  readonly adapter: string;
  readonly out: string;
  readonly dtype?: 'float32' | 'bfloat16' | 'float16';
}

const sample = 128;

/** Folds the adapter in, writes the model, and reports how far its logits are from adapter and base apart. */
export async function mergeJob(args: MergeArgs) {
  requireNew(args.out);
  const path = await resolveModel(args.model);
  using model = loadModel(path);
  using adapter = loadAdapter(model, args.adapter);
  if (!adapter.merge)
    throw new GraftError('usage', `a ${adapter.method} adapter cannot be folded into the weights`, {
      place: args.adapter,
    });
  const ids = Array.from({ length: sample }, (_, i) => (i * 7919 + 13) % model.vocabSize);
  const attached = logits(model, ids);
  adapter.merge();
  saveModel(model, args.out, path, args.dtype ?? 'float32', tokenizerFilesOf(path));
  adapter.unmerge!();
  // What was written is what is measured: with bfloat16 the rounding of the file shows too.
  using written = loadModel(args.out);
  const merged = logits(written, ids);
  let [max, sum] = [0, 0];
  for (let i = 0; i < merged.length; i++) {
    const d = Math.abs(merged[i]! - attached[i]!);
    max = Math.max(max, d);
    sum += d;
  }
  return { out: args.out, tokens: sample, maxDrift: max, meanDrift: sum / merged.length };
}

function logits(model: Model, ids: readonly number[]): Float32Array {
  return noGrad(() => {
    using _ = scope();
    return ops.contiguous(outputOf(model, packTokens([ids]))).data() as Float32Array;
  });
}
