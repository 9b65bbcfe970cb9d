/** The weighted mean of saved bottleneck adapters, as one more adapter (AdapterHub, model_mixin.py average_adapter). */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { GraftError } from '../base/index.ts';
import { readJsonObject, requireNew, type WeightSource, writeDirectory, writeSafetensors } from '../io/index.ts';
import { normalizedWeights } from '../methods/index.ts';
import { adapterNameFor } from './adapter-names.ts';
import { openAdapterHubWeights, renamedKey } from './adapterhub/index.ts';
import { float32Values } from './matrix.ts';
import { pythonJson } from './python-json.ts';
import { layoutOf } from './registry.ts';

/** Fields that say how an adapter was trained, and nothing of what its weights mean. */
const onlyTrained = new Set(['dropout', 'init_weights', 'init_weights_seed', 'stochastic_depth']);

/**
 * Writes the mean of the adapters' weights into the new directory `out`.
 * @param weights one for each; they are divided by their sum
 * @throws GraftError 'usage' for adapters that differ in config or base
 */
export function averageAdapters(dirs: readonly string[], weights: readonly number[], out: string): { tensors: number } {
  requireNew(out);
  const shares = normalizedWeights(weights, dirs.length);
  const read = dirs.map((dir) => ({ dir, ...layoutOf(dir).readConfig(dir) }));
  const [first] = read as [(typeof read)[number]];
  const firstConfig = first.config as Record<string, unknown>;
  for (const { dir, method, config } of read) {
    if (method !== 'bottleneck')
      throw new GraftError('usage', `the mean of a ${method} is not defined`, { place: dir });
    const odd = Object.entries(config as object)
      .filter(([field, value]) => !onlyTrained.has(field) && !isDeepStrictEqual(value, firstConfig[field]))
      .map(([field]) => field);
    if (odd.length > 0) {
      throw new GraftError(
        'usage',
        `it differs from the first adapter in ${odd.join(', ')}, so their weights have no mean`,
        {
          place: dir,
          hint: 'Mix what they give instead: method fusion, config average',
        },
      );
    }
  }
  const name = adapterNameFor(out);
  const opened: WeightSource[] = [];
  try {
    const sums = new Map<string, { shape: readonly number[]; values: Float64Array }>();
    read.forEach(({ dir, name: own }, i) => {
      const source = openAdapterHubWeights(dir);
      opened.push(source);
      for (const [stored, { shape }] of source.entries) {
        const key = renamedKey(stored, own, name);
        const values = float32Values(source, stored);
        if (i === 0) sums.set(key, { shape, values: new Float64Array(values.length) });
        const sum = sums.get(key);
        if (sum?.shape.join() !== shape.join() || source.entries.size !== opened[0]!.entries.size) {
          throw new GraftError('usage', 'it is of another base than the first adapter', { place: dir });
        }
        for (let n = 0; n < values.length; n++) sum.values[n]! += values[n]! * shares[i]!;
      }
    });
    const config = { ...readJsonObject(join(first.dir, 'adapter_config.json')), name };
    writeDirectory(out, (work) => {
      writeFileSync(join(work, 'adapter_config.json'), pythonJson(config));
      writeSafetensors(
        join(work, 'adapter.safetensors'),
        [...sums].map(([key, { shape, values }]) => {
          const bytes = new Uint8Array(Float32Array.from(values).buffer);
          return { name: key, dtype: 'float32' as const, shape, bytes: () => bytes };
        }),
      );
    });
    return { tensors: sums.size };
  } finally {
    for (const source of opened) source[Symbol.dispose]();
  }
}
