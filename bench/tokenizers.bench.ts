/**
 * Encoding against Python's tokenizers (GRAFT_PEER), in one thread each, in turn: six tokenizers of published models and the
 * WordPiece and Unigram of the goldens, on documentation, code and texts of many scripts. Ids must be equal. Counted is processor
 * time, for texts that follow others which warm both up. Exits with 1 where Graft is less than 1.2 times as fast.
 *   npm run proof:tokenizers -- [--rounds 3] [--only NAME]
 */
import { globSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { packageRoot } from '../src/base/index.ts';
import { loadTokenizer } from '../src/data/index.ts';
import { fetchTokenizers } from '../tools/fetch/tokenizers.ts';
import { integers, median, peer, report, round, spread, workFolder } from './support.ts';

const { values: args } = parseArgs({ options: { rounds: { type: 'string' }, only: { type: 'string' } } });
const rounds = Number(args.rounds ?? 3);

/** Texts of at most 3,000 characters in an order that mixes their kinds. */
function readTexts(): string[] {
  const files = globSync(['docs/**/*.md', 'src/**/*.ts', 'tools/golden/real_text.txt'], { cwd: packageRoot }).sort();
  const parts = files.flatMap(
    (file) => (readFileSync(join(packageRoot, file), 'utf8').match(/[^]{1,3000}/gu) as string[] | null) ?? [],
  );
  const corpus = readFileSync(join(packageRoot, 'test', 'golden', 'tokenizer', 'corpus.jsonl'), 'utf8');
  const texts = [
    ...parts,
    ...corpus
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as string),
  ];
  const below = integers(18);
  for (let i = texts.length - 1; i > 0; i--) {
    const j = below(i + 1);
    [texts[i], texts[j]] = [texts[j]!, texts[i]!];
  }
  return texts;
}

const texts = readTexts();
const half = texts.length >> 1;
const characters = texts.slice(half).reduce((sum, text) => sum + text.length, 0);
const dir = workFolder();
const textsFile = join(dir, 'texts.json');
writeFileSync(textsFile, JSON.stringify(texts));

const golden = (name: string) => join(packageRoot, 'test', 'golden', 'tokenizer', `${name}.json`);
const files = Object.entries({ ...fetchTokenizers(), wordpiece: golden('bert'), unigram: golden('unigram') }).filter(
  ([name]) => name.includes(args.only ?? ''),
);

/** The ids of all texts, and the seconds for the second half. */
function encodeAll(file: string): { ids: Int32Array[]; seconds: number } {
  const tokenizer = loadTokenizer(file);
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  const ids = texts.slice(0, half).map(encode);
  const start = process.cpuUsage();
  const rest = texts.slice(half).map(encode);
  const { user, system } = process.cpuUsage(start);
  return { ids: [...ids, ...rest], seconds: (user + system) / 1e6 };
}

const results = files.map(([name, file]) => {
  const ratios: number[] = [];
  const speeds = { graft: [] as number[], tokenizers: [] as number[] };
  let different = 0;
  for (let n = 0; n < rounds; n++) {
    const ours = encodeAll(file);
    const out = join(dir, 'ids.json');
    const theirs = peer('encode.py', '--tokenizer', file, '--texts', textsFile, '--out', out) as { seconds: number };
    const { ids } = JSON.parse(readFileSync(out, 'utf8')) as { ids: number[][] };
    different = ids.filter(
      (own, i) => own.length !== ours.ids[i]!.length || own.some((id, k) => id !== ours.ids[i]![k]),
    ).length;
    ratios.push(theirs.seconds / ours.seconds);
    speeds.graft.push(characters / ours.seconds / 1e6);
    speeds.tokenizers.push(characters / theirs.seconds / 1e6);
  }
  const ratio = median(ratios);
  console.log(
    `${name.padEnd(12)} ${round(median(speeds.graft))} million characters a second, tokenizers ${round(median(speeds.tokenizers))}: ${round(ratio)} times; ${different} texts with other ids`,
  );
  return {
    name,
    ratio,
    ratios: spread(ratios),
    graft: spread(speeds.graft),
    tokenizers: spread(speeds.tokenizers),
    different,
  };
});
report(
  'tokenizers',
  [
    {
      what: 'texts with other ids',
      got: results.reduce((sum, { different }) => sum + different, 0),
      bar: 0,
      better: 'less',
    },
    { what: 'texts', got: texts.length, bar: 1000, better: 'more' },
    { what: 'tokenizers', got: results.length, bar: args.only ? 1 : 8, better: 'more' },
    ...results.map(({ name, ratio }) => ({
      what: `${name}: times as fast`,
      got: ratio,
      bar: 1.2,
      better: 'more' as const,
    })),
  ],
  { characters, rounds, results },
);
