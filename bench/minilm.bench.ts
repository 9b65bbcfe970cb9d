/**
 * all-MiniLM-L6-v2 against transformers: hidden states and sentence embeddings against its float64, token ids against
 * Python's tokenizer, as recorded in test/golden/real/. Ends with 1 where they are further apart than the bar.
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
