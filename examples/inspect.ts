/** What a model is made of, and whether an adapter is meant for it; only headers are read. No engine is needed. */
import { openModel, readAdapterConfig, resolveModel } from 'graft-llm/engine';

const [spec, adapter] = process.argv.slice(2);
if (!spec) {
  console.error('usage: node tools/run.cjs examples/inspect.ts MODEL [ADAPTER_DIR]');
  process.exit(2);
}

const { source, config, family } = openModel(await resolveModel(spec));
using _ = source; // closes the file
console.log(`${family.types[0]}: ${config.num_hidden_layers} layers of width ${config.hidden_size}`);

const sums = new Map<string, { tensors: number; bytes: number }>();
for (const { format, bytes } of source.entries.values()) {
  const sum = sums.get(format) ?? { tensors: 0, bytes: 0 };
  sums.set(format, { tensors: sum.tensors + 1, bytes: sum.bytes + bytes });
}
for (const [format, { tensors, bytes }] of sums) {
  console.log(`${format}: ${tensors} tensors, ${(bytes / 1e6).toFixed(2)} MB`);
}

if (adapter) {
  const { parts, base } = readAdapterConfig(adapter);
  for (const { choice } of parts) console.log(`${choice.type} adapter of ${base}: ${JSON.stringify(choice)}`);
}
