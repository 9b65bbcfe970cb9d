/**
 * Writes the tweets with tagged names as rows for training (train.conll) and evaluation (heldout.conll).
 *   node tools/run.cjs tools/fetch/tweets.ts FOLDER [--held-out 500]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { fetchTweets, type Tweet } from './fetch.ts';

/** Returns the tweets in two parts; the held-out ones are spread evenly over the list, and duplicates are dropped. */
export function chooseTweets(tweets: readonly Tweet[], heldOut: number): { train: Tweet[]; heldOut: Tweet[] } {
  const all = [...new Map(tweets.map((tweet) => [tweet.tokens.join(' ').toLowerCase(), tweet])).values()];
  const isHeldOut = (i: number) =>
    Math.floor((i * heldOut) / all.length) !== Math.floor(((i + 1) * heldOut) / all.length);
  return { train: all.filter((_, i) => !isHeldOut(i)), heldOut: all.filter((_, i) => isHeldOut(i)) };
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { 'held-out': { type: 'string', default: '500' } },
  });
  const [folder] = positionals;
  if (!folder) {
    console.error('usage: node tools/run.cjs tools/fetch/tweets.ts FOLDER [--held-out 500]');
    process.exit(2);
  }
  const parts = chooseTweets(fetchTweets(), Number(values['held-out']));
  mkdirSync(folder, { recursive: true });
  for (const [name, rows] of [
    ['train', parts.train],
    ['heldout', parts.heldOut],
  ] as const) {
    const text = rows.map(({ tokens, tags }) => tokens.map((word, i) => `${word}\t${tags[i]}\n`).join(''));
    writeFileSync(join(folder, `${name}.conll`), text.join('\n'));
    console.log(`${join(folder, name)}.conll: ${rows.length} tweets`);
  }
}
