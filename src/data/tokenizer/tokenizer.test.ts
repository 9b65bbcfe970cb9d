import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { packageRoot } from '../../base/index.ts';
import { loadTokenizer, randomStream, type Tokenizer, tokenizerOf } from '../index.ts';

const dir = join(packageRoot, 'test', 'golden', 'tokenizer');
const corpus = readFileSync(join(dir, 'corpus.jsonl'), 'utf8')
  .trim()
  .split('\n')
  .map((line) => JSON.parse(line) as string);

interface Golden {
  prefix: number[];
  suffix: number[];
  /** special, text and all are absent where they equal what the other fields give. */
  lines: { ids: number[]; special?: number[]; text?: string; all?: string }[];
}

function compare(tokenizer: Tokenizer, golden: Golden): void {
  assert.equal(golden.lines.length, corpus.length);
  assert.ok(corpus.length >= 300, `${corpus.length} lines`);
  corpus.forEach((text, i) => {
    const { ids, special, text: decoded = text, all = decoded } = golden.lines[i]!;
    const line = `line ${i + 1}: ${JSON.stringify(text)}`;
    assert.deepEqual([...tokenizer.encode(text, { addSpecialTokens: false })], ids, line);
    const whole = [...tokenizer.encode(text)];
    assert.deepEqual(whole, special ?? [...golden.prefix, ...ids, ...golden.suffix], `with special tokens, ${line}`);
    assert.equal(tokenizer.decode(whole, { skipSpecialTokens: true }), decoded, `decoded, ${line}`);
    assert.equal(tokenizer.decode(whole), all, `decoded whole, ${line}`);
    const stream = tokenizer.stream();
    assert.equal(whole.map((id) => stream.push(id)).join('') + stream.end(), all, `token by token, ${line}`);
    const { ids: same, mask } = tokenizer.encodeWithMask(text, [[0, text.length]]);
    assert.deepEqual([...same], ids, `with a mask, ${line}`);
    assert.ok(mask.length === ids.length && (text === '' || mask.every((m) => m === 1)), `mask, ${line}`);
  });
}

const kinds = readdirSync(dir)
  .filter((name) => name.endsWith('.golden.json'))
  .map((name) => name.replace('.golden.json', ''));

test('there are goldens of seven tokenizers', () => {
  assert.deepEqual(kinds.sort(), ['bert', 'llama2', 'llama3', 'mistral', 'qwen2', 'smollm2', 'unigram']);
});

for (const kind of kinds) {
  const golden = JSON.parse(readFileSync(join(dir, `${kind}.golden.json`), 'utf8')) as Golden;
  const real = kind === 'smollm2';
  const model = process.env.GRAFT_TEST_MODEL;
  const skip =
    real && !(model && existsSync(model)) ? 'set GRAFT_TEST_MODEL to the GGUF file of SmolLM2-135M-Instruct' : false;
  test(`${kind}: ids and texts equal Python's on every line of the corpus`, { skip }, () => {
    compare(real ? tokenizerOf(model!) : loadTokenizer(join(dir, `${kind}.json`)), golden);
  });
}

for (const name of ['bert', 'gpt2', 'roberta']) {
  test(`${name}: vocabulary files without tokenizer.json give what transformers' class gives`, () => {
    const files = join(dir, 'files', name);
    const golden = JSON.parse(readFileSync(join(files, 'golden.json'), 'utf8')) as Golden;
    compare(loadTokenizer(files), golden);
  });
}

test('token by token: bytes that never become a character are given after a few more, and the text is the whole one’s', (t) => {
  let sequences = 0;
  for (const kind of ['llama3', 'qwen2', 'llama2']) {
    const tokenizer = loadTokenizer(join(dir, `${kind}.json`));
    const ids = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
    const broken = ids.filter((id) => !tokenizer.isSpecial(id) && tokenizer.decode([id]) === '\ufffd');
    assert.ok(broken.length > 60, `${kind} has ${broken.length} tokens that are no whole character`);
    const [whole] = tokenizer.encode('a', { addSpecialTokens: false });
    for (let seed = 0; seed < 200; seed++) {
      const random = randomStream(seed);
      const row = Array.from({ length: 60 }, () =>
        random() < 0.02 ? whole! : broken[Math.floor(random() * broken.length)]!,
      );
      const stream = tokenizer.stream();
      let text = '';
      let waiting = 0;
      for (const id of row) {
        const piece = stream.push(id);
        waiting = piece === '' ? waiting + 1 : 0;
        assert.ok(waiting <= 12, `${kind}: ${waiting} tokens gave no text`);
        text += piece;
      }
      // Llama 2's decoder gives every byte of a run up as soon as one of them is wrong, also those that were a character before.
      if (kind !== 'llama2') assert.equal(text + stream.end(), tokenizer.decode(row), `${kind}, ${seed}`);
      sequences++;
    }
  }
  t.diagnostic(`${sequences} sequences`);
});
