/** Tokens of words and their offsets in a text, against transformers' fast tokenizers. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { golden } from '../../../test/support.ts';
import { loadTokenizer, type Tokenizer } from '../index.ts';
import { alignNormalized } from './offsets.ts';

interface Words {
  tokenizer: string;
  words: string[];
  ids: number[];
  words_of: (number | null)[];
}

const { cases } = JSON.parse(readFileSync(golden('tokenizer', 'alignment.json'), 'utf8')) as { cases: Words[] };
const tokenizers = new Map<string, Tokenizer>(
  ['bert', 'llama3', 'qwen2', 'mistral', 'unigram'].map((name) => [
    name,
    loadTokenizer(golden('tokenizer', `${name}.json`)),
  ]),
);
// With GPT-2's pre-tokenizer a word includes the space before it.
const spaced = ['gpt2', 'roberta'].flatMap((name) => {
  const dir = golden('tokenizer', 'files', name);
  tokenizers.set(name, loadTokenizer(dir));
  const words = JSON.parse(readFileSync(join(dir, 'words.json'), 'utf8')) as { cases: Words[] };
  return words.cases.map((c) => ({ ...c, tokenizer: name }));
});
const tagged = [...cases.filter((c) => c.words && tokenizers.has(c.tokenizer)), ...spaced];

test('four lists of words by three tokenizers are recorded, five by two', () => assert.equal(tagged.length, 22));

for (const { tokenizer: name, words, ids, words_of } of tagged) {
  test(`${name}: ids and words of '${words[0]} …' are transformers'`, () => {
    const tokenizer = tokenizers.get(name)!;
    const pieces = words.map((word) => tokenizer.forWords().encode(word, { addSpecialTokens: false }));
    const { ids: got, starts } = tokenizer.withSpecialTokens(pieces.flatMap((piece) => [...piece]));
    assert.deepEqual([...got], ids);
    const of: (number | null)[] = Array.from(got, () => null);
    let at = starts[0]!;
    pieces.forEach((piece, w) => {
      for (const _ of piece) of[at++] = w;
    });
    assert.deepEqual(of, words_of);
  });
}

test('spans give the ids of encode, never run backwards, and cover every letter', () => {
  const lines = readFileSync(golden('tokenizer', 'corpus.jsonl'), 'utf8').split('\n').filter(Boolean);
  let [texts, tokens] = [0, 0];
  for (const [name, tokenizer] of tokenizers) {
    for (const line of lines) {
      const text = JSON.parse(line) as string;
      const { ids, spans } = tokenizer.encodeWithSpans(text);
      assert.deepEqual([...ids], [...tokenizer.encode(text, { addSpecialTokens: false })], `${name}: ${line}`);
      const covered = new Set<number>();
      for (let i = 0; i < ids.length; i++) {
        const [start, stop] = [spans[2 * i]!, spans[2 * i + 1]!];
        assert.ok(
          start >= 0 && stop <= text.length && start <= stop,
          `${name}: ${line} token ${i}: ${start} to ${stop}`,
        );
        if (i > 0) assert.ok(start >= spans[2 * i - 2]!, `${name}: ${line} token ${i} begins before the previous one`);
        for (let at = start; at < stop; at++) covered.add(at);
        tokens++;
      }
      for (const { index } of text.matchAll(/[A-Za-z0-9]/g))
        assert.ok(covered.has(index), `${name}: ${line} at ${index}`);
      texts++;
    }
  }
  assert.ok(texts > 500 && tokens > 5000, `${texts} texts, ${tokens} tokens`);
});

test('a text is aligned with its normal form by characters, or all of it where these depend on each other', () => {
  const lower = (text: string) => text.normalize('NFD').replaceAll(/\p{M}/gu, '').toLowerCase();
  const { normal, starts, stops } = alignNormalized('Één Ü', lower);
  assert.equal(normal, 'een u');
  assert.deepEqual(
    [starts, stops],
    [
      [0, 1, 2, 3, 4],
      [1, 2, 3, 4, 5],
    ],
  );
  const reversed = (text: string) => [...text].reverse().join('');
  assert.deepEqual(alignNormalized('ab', reversed), { normal: 'ba', starts: [0, 0], stops: [2, 2] });
});
