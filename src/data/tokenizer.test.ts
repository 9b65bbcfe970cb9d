import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../base/index.ts';
import { loadTokenizer, type Tokenizer, tokenizerOf } from './index.ts';

const dir = join(packageRoot, 'test', 'golden', 'tokenizer');
const corpus = readFileSync(join(dir, 'corpus.jsonl'), 'utf8').trim().split('\n').map((line) => JSON.parse(line) as string);

interface Golden {
  prefix: number[];
  suffix: number[];
  lines: { ids: number[]; decoded?: string; skipped?: string; decoded_skip?: string }[];
}

function compare(tokenizer: Tokenizer, golden: Golden): void {
  assert.equal(golden.lines.length, corpus.length);
  assert.ok(corpus.length >= 300, `${corpus.length} lines`);
  corpus.forEach((text, i) => {
    const { ids } = golden.lines[i]!;
    assert.deepEqual([...tokenizer.encode(text, { addSpecialTokens: false })], ids, `line ${i + 1}: ${JSON.stringify(text)}`);
    assert.deepEqual([...tokenizer.encode(text)], [...golden.prefix, ...ids, ...golden.suffix], `line ${i + 1} with special tokens`);
  });
}

const kinds = readdirSync(dir).filter((name) => name.endsWith('.golden.json')).map((name) => name.replace('.golden.json', ''));

test('there are goldens of seven tokenizers', () => {
  assert.deepEqual(kinds.sort(), ['bert', 'llama2', 'llama3', 'mistral', 'qwen2', 'smollm2', 'unigram']);
});

for (const kind of kinds) {
  const golden = JSON.parse(readFileSync(join(dir, `${kind}.golden.json`), 'utf8')) as Golden;
  const real = kind === 'smollm2';
  const model = process.env.GRAFT_TEST_MODEL;
  const skip = real && !(model && existsSync(model)) ? 'set GRAFT_TEST_MODEL to the GGUF file of SmolLM2-135M-Instruct' : false;
  test(`${kind}: ids equal Python's on every line of the corpus`, { skip }, () => {
    compare(real ? tokenizerOf(model!) : loadTokenizer(join(dir, `${kind}.json`)), golden);
  });
}
