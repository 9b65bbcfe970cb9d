import { Command } from 'commander';
import { adapterIn, isAdapter, readAdapterConfig, storedTensors } from '../adapters/index.ts';
import { resolveModel } from '../io/index.ts';
import { openModel } from '../models/index.ts';
import { examples, mebibytes } from './shared.ts';

export const inspect = () =>
  new Command('inspect')
    .description('Show the config and tensors of a model or an adapter, without loading it.')
    .argument('<path>', 'a model (directory, .gguf file, hub id) or an adapter directory')
    .option('--tensors', 'list every tensor with its type and shape')
    .option('--json', 'print the result as JSON')
    .addHelpText(
      'after',
      examples('graft inspect base.gguf', 'graft inspect out/adapter --tensors', 'graft inspect org/name --json'),
    )
    .action(async (name: string, { tensors, json }: { tensors?: true; json?: true }) => {
      const path = adapterIn(name);
      const found = isAdapter(path) ? inspectAdapter(path) : await inspectModel(path);
      if (json) {
        console.log(JSON.stringify(tensors ? found : { ...found, tensors: found.tensors.length }));
        return;
      }
      for (const [key, value] of Object.entries(found.about)) {
        console.log(`${key}: ${typeof value === 'object' ? JSON.stringify(value) : value}`);
      }
      const bytes = found.tensors.reduce((sum, t) => sum + t.bytes, 0);
      const count = found.tensors.reduce((sum, t) => sum + t.shape.reduce((a, b) => a * b, 1), 0);
      console.log(`${found.tensors.length} tensors, ${count.toLocaleString('en')} parameters, ${mebibytes(bytes)}`);
      if (tensors) for (const t of found.tensors) console.log(`  ${t.name}  ${t.format} [${t.shape.join(', ')}]`);
    });

function inspectAdapter(path: string) {
  const { parts, base } = readAdapterConfig(path);
  const methods = parts.map(({ choice: { type: method, ...config } }) => ({ method, ...config }));
  const about = { kind: 'adapter', base, ...(methods.length === 1 ? methods[0] : { methods }) };
  return { about, tensors: storedTensors(path) };
}

async function inspectModel(spec: string) {
  const { source, config, family } = openModel(await resolveModel(spec));
  using _ = source;
  return { about: { kind: 'model', family: family.types[0], ...config }, tensors: [...source.entries.values()] };
}
