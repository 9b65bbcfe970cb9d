import { parseWith } from '../../base/index.ts';
import { openGguf } from '../../io/index.ts';
import { methods } from '../../methods/index.ts';
import { ggufBaseFor } from '../../models/index.ts';
import { adapterNameFor } from '../adapter-names.ts';
import type { Layout } from '../layout.ts';
import { fillTensors } from '../tensor-files.ts';
import { asPeftNames, isGgufAdapter, readGgufAdapter } from './file.ts';

export const ggufLayout: Layout = {
  holds: isGgufAdapter,
  supports: () => false,
  readConfig(path) {
    using source = openGguf(path);
    const { alpha, parts } = readGgufAdapter(source);
    const ranks = parts.flatMap(({ path: layer, part, entry }) =>
      part === 'a' ? [[layer, entry.shape[0]!] as const] : [],
    );
    const [[, r] = ['', 1]] = ranks;
    const pattern = (values: readonly (readonly [string, number])[]) =>
      Object.fromEntries(values.map(([layer, value]) => [layer.replaceAll('.', '\\.'), value]));
    const config = {
      r,
      lora_alpha: alpha ?? r,
      target_modules: [...new Set(parts.map(({ path: layer }) => layer))],
      rank_pattern: pattern(ranks.filter(([, rank]) => rank !== r)),
      // Without α nothing is scaled, whatever the rank.
      ...(alpha === undefined && { alpha_pattern: pattern(ranks.filter(([, rank]) => rank !== r)) }),
    };
    const parsed = parseWith(methods.lora.config, config, path, 'input');
    return { name: adapterNameFor(path), method: 'lora', config: parsed, base: undefined };
  },
  headOptions: () => ({ task: 'causal-lm' }),
  hasUnknownHead: () => false,
  headModules: () => [],
  *load(model, path, adapter) {
    using source = asPeftNames(openGguf(path), ggufBaseFor(model.config, path));
    yield* fillTensors(source, adapter.parameters, path);
  },
  save: () => {
    throw new Error('adapters are saved in the layouts of PEFT and AdapterHub, and converted to GGUF');
  },
  storedTensors(path) {
    using source = openGguf(path);
    return [...source.entries.values()];
  },
};
