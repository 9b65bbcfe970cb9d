/** The weighted mean of saved bottleneck adapters as a new adapter (AdapterHub, model_mixin.py average_adapter). */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { GraftError } from '../base/index.ts';
import { readJsonObject, requireNew, writeDirectory, writeSafetensors } from '../io/index.ts';
import { normalizedWeights } from '../methods/index.ts';
import { readTensor } from '../models/index.ts';
import { noGrad, ops, scope, type Tensor } from '../tensor/index.ts';
import { adapterNameFor } from './adapter-names.ts';
import { openAdapterHubWeights, renamedKey } from './adapterhub/index.ts';
import type { SavedConfig } from './layout.ts';
import { pythonJson } from './python-json.ts';
import { layoutOf } from './registry.ts';
import { tensorToWrite } from './tensor-files.ts';

/** Fields that decide how an adapter is trained, and not what its weights compute. */
const trainingFields = new Set(['dropout', 'init_weights', 'init_weights_seed', 'stochastic_depth']);

type SavedAdapter = SavedConfig & { readonly dir: string };

/**
 * Writes the mean of the adapters' weights into the new directory `out`.
 * @param weights one for each adapter; they are divided by their sum
 * @returns the number of tensors
 * @throws GraftError 'usage' for adapters that differ in config or base
 */
export function averageAdapters(dirs: readonly string[], weights: readonly number[], out: string): { tensors: number } {
  requireNew(out);
  const shares = normalizedWeights(weights, dirs.length);
  const adapters = dirs.map((dir): SavedAdapter => ({ dir, ...layoutOf(dir).readConfig(dir) }));
  requireSameConfig(adapters);
  const name = adapterNameFor(out);
  const [first] = adapters as [SavedAdapter];
  const config = { ...readJsonObject(join(first.dir, 'adapter_config.json')), name };
  using _ = scope();
  const means = noGrad(() => meansOf(adapters, shares, name));
  writeDirectory(out, (work) => {
    writeFileSync(join(work, 'adapter_config.json'), pythonJson(config));
    writeSafetensors(join(work, 'adapter.safetensors'), [...means].map(tensorToWrite));
  });
  return { tensors: means.size };
}

/** @throws GraftError 'usage' for methods other than bottleneck adapters, and for configs that compute different things */
function requireSameConfig(adapters: readonly SavedAdapter[]): void {
  const [first] = adapters as [SavedAdapter];
  const firstConfig = first.config as Readonly<Record<string, unknown>>;
  for (const { dir, method, config } of adapters) {
    if (method !== 'bottleneck')
      throw new GraftError('usage', `the mean of a ${method} is not defined`, { place: dir });
    const different = Object.entries(config as object).filter(
      ([field, value]) => !trainingFields.has(field) && !isDeepStrictEqual(value, firstConfig[field]),
    );
    if (different.length > 0) {
      const fields = different.map(([field]) => field).join(', ');
      throw new GraftError(
        'usage',
        `this adapter differs from the first adapter in ${fields}, so their weights have no mean`,
        {
          place: dir,
          hint: 'Average the outputs instead: method fusion, config average',
        },
      );
    }
  }
}

/** Weighted sums of the adapters' tensors, float32, by their keys under the new name. Summed in float64. */
function meansOf(adapters: readonly SavedAdapter[], shares: readonly number[], name: string): Map<string, Tensor> {
  const sums = new Map<string, Tensor>();
  adapters.forEach((adapter, i) => {
    using source = openAdapterHubWeights(adapter.dir);
    for (const stored of source.entries.keys()) {
      const key = renamedKey(stored, adapter.name, name);
      const weighted = ops.mulScalar(readTensor(source, stored, 'float64'), shares[i]!);
      const sum = sums.get(key);
      if (i === 0) sums.set(key, weighted);
      else if (sum?.shape.join() === weighted.shape.join()) ops.add_(sum, weighted);
      else throw otherBase(adapter.dir);
    }
    if (source.entries.size !== sums.size) throw otherBase(adapter.dir);
  });
  return new Map([...sums].map(([key, sum]) => [key, ops.toCopy(sum, { dtype: 'float32' })]));
}

const otherBase = (dir: string) =>
  new GraftError('usage', 'this adapter is for another base than the first adapter', { place: dir });
