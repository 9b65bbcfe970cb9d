/**
 * Damaged files over every reader: safetensors, GGUF, pickles, rows in every format, images, tokenizers, templates, recipes, configs.
 * Each is read or refused in a sentence, in at most 10 seconds and in at most four times its size and 200 MB. Exits with 1 otherwise.
 *   npm run proof:fuzz -- [--files 10000] [--seed N]
 */
import { parseArgs } from 'node:util';
import { fuzz } from '../test/samples/fuzz.ts';
import { report } from './support.ts';

const { values: args } = parseArgs({ options: { files: { type: 'string' }, seed: { type: 'string' } } });
const [files, seed] = [Number(args.files ?? 10_000), Number(args.seed ?? Date.now() % 1e6)];
console.log(`${files} files, seed ${seed}`);
const tallies = await fuzz(files, seed, (done) => done % 500 === 0 && console.log(`${done} read`));
for (const { reader, files, read, refused, slowestMs, peakMb, problems } of tallies) {
  console.log(
    `${reader.padEnd(18)} ${files} files: ${read} read, ${refused} refused; ${slowestMs} ms, ${peakMb} MB at most`,
  );
  for (const problem of problems.slice(0, 5)) console.log(`  ${problem}`);
}
const problems = tallies.flatMap((tally) => tally.problems);
const seen = tallies.reduce((sum, tally) => sum + tally.files, 0);
report(
  'fuzz',
  [
    { what: 'files that were tried', got: seen, bar: files, better: 'more' },
    { what: 'files that crash, hang or take memory', got: problems.length, bar: 0, better: 'less' },
  ],
  { files, seed, tallies },
);
