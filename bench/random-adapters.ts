/** Adapters with random numbers, for benchmarks that serve many. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { saveAdapter } from '../src/adapters/index.ts';
import { startEngine } from '../src/engine/index.ts';
import { attachMethods, type MethodChoice } from '../src/methods/index.ts';
import { loadModel } from '../src/models/index.ts';
import { noGrad, ops, Tensor } from '../src/tensor/index.ts';

/** LoRA on all linear layers. */
export const loraOf = (rank: number) =>
  ({ type: 'lora', r: rank, lora_alpha: 2 * rank, target_modules: 'all-linear' }) as const;

/**
 * Writes adapters for a base whose parameters are random, also those that would begin as zeros, and returns their directories.
 * @param dir gets a folder for each name
 * @param choices the method of each, by its name
 * @param below returns random integers below n
 * @param noise what is added to each number at most
 */
export async function writeRandomAdapters(
  base: string,
  dir: string,
  choices: Readonly<Record<string, object>>,
  below: (n: number) => number,
  noise = 0.01,
): Promise<string[]> {
  await startEngine();
  using model = loadModel(base, { quantize: 'none' });
  mkdirSync(dir, { recursive: true });
  return Object.entries(choices).map(([name, choice], i) => {
    using adapter = attachMethods(model, [choice as MethodChoice], i);
    noGrad(() => {
      for (const parameter of adapter.parameters.values()) {
        const added = Float32Array.from({ length: parameter.numel }, () => noise * (below(2001) / 1000 - 1));
        ops.add_(parameter, Tensor.from(added, parameter.shape));
      }
    });
    saveAdapter(model, adapter, join(dir, name), { base });
    return join(dir, name);
  });
}
