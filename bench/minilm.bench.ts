/**
 * all-MiniLM-L6-v2 compared with transformers: hidden states and sentence embeddings with its float64 results, token ids with
 * Python's tokenizer, as recorded in test/golden/real/. Exits with 1 if a difference is above its bar.
 *   npm run proof:minilm -- [--model DIR]
 */
import { parseArgs } from 'node:util';
import { startEngine } from '../src/engine/index.ts';
import { compareMiniLM } from '../test/parity/minilm.ts';
import { fetchMiniLM } from '../tools/fetch/fetch.ts';
import { report } from './support.ts';

const { values: args } = parseArgs({ options: { model: { type: 'string' } } });
await startEngine();
const found = compareMiniLM(args.model ?? fetchMiniLM());
const less = (what: string, got: number) => ({ what, got, bar: 1e-5, better: 'less' as const });
report(
  'minilm',
  [
    less('hidden states, relative', found.hidden),
    less('sentence embeddings, relative', found.embedding),
    less('cosines of all pairs', found.cosine),
    { what: 'lines with the same token ids', got: found.sameIds, bar: found.lines, better: 'more' },
    { what: 'lines with the same decoded text', got: found.sameText, bar: found.lines, better: 'more' },
  ],
  { compared: found },
);
