/**
 * Writes the adapters of swarm.bench.ts: random ones of LoRA, in PEFT's layout and as GGUF files.
 *   node bench/swarm-adapters.ts MODEL DIR COUNT SEED
 */
import { basename, join } from 'node:path';
import { convertAdapter } from '../src/adapters/index.ts';
import { loraOf, writeRandomAdapters } from './random-adapters.ts';
import { integers } from './support.ts';

const [base, dir, count, seed] = process.argv.slice(2) as [string, string, string, string];
const choices = Object.fromEntries(Array.from({ length: +count }, (_, i) => [`a${i}`, loraOf(8)]));
for (const made of await writeRandomAdapters(base, join(dir, 'adapters'), choices, integers(+seed)))
  convertAdapter(made, join(dir, `${basename(made)}.gguf`), 'gguf', { base });
