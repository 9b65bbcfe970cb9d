import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { golden } from '../../test/support.ts';
import { loadTokenizer } from '../data/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { KvCache, type Model, Ports } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { generateText, type TextOptions } from './text.ts';

before(() => startEngine());

const tokenizer = loadTokenizer(golden('tokenizer', 'qwen2.json'));
const prompt = [1, 2, 3];

/** A model that says `script` after the prompt, whatever it is told, and then its last token for ever. */
function scripted(script: readonly number[]): Model & { readonly read: number } {
  let read = 0;
  return {
    get read() {
      return read;
    },
    vocabSize: tokenizer.vocabSize,
    contextLength: 1000,
    ports: new Ports(),
    task: { name: 'causal-lm', labels: [] },
    newCache: (capacity: number) => new KvCache(0, capacity, 1, 1),
    hidden: ({ rowStarts }: { rowStarts: readonly number[] }, cache: KvCache) => {
      cache.advance(rowStarts[1]!, rowStarts[1]!);
      read = cache.length;
      return ops.zeros([rowStarts[1]!, 1]);
    },
    logits: () => {
      const at = Math.min(read - prompt.length, script.length - 1);
      const values = new Float32Array(tokenizer.vocabSize);
      values[script[at]!] = 1;
      return Tensor.from(values, [1, values.length]);
    },
  } as unknown as Model & { readonly read: number };
}

function run(script: readonly number[], options: Partial<TextOptions> = {}) {
  const pieces: string[] = [];
  const model = scripted(script);
  const result = generateText(model, tokenizer, prompt, { maxNewTokens: script.length, ...options }, (piece) =>
    pieces.push(piece),
  );
  assert.equal(pieces.join(''), result.text);
  return { ...result, pieces, read: model.read };
}

const said = 'Zoë 👩‍🚀 says: 日本語, naïve\n\ndef f(x):\n  return x  # done 🎉 done';
const script = [...tokenizer.encode(said, { addSpecialTokens: false })];

test('text comes as it is said, in whole characters', () => {
  const { text, pieces, ids, reason, promptTokens } = run(script);
  assert.equal(text, said);
  assert.deepEqual(ids, script);
  assert.deepEqual([reason, promptTokens], ['length', 3]);
  assert.ok(pieces.length > 10);
  for (const piece of pieces)
    assert.ok(piece.isWellFormed() && !piece.includes('\ufffd') && piece !== '', JSON.stringify(piece));
});

test('every stop string ends the text before it, wherever the tokens are cut, and nothing of it is shown', () => {
  let stopped = 0;
  for (let from = 0; from < said.length; from += 3) {
    for (const length of [1, 2, 5, 11]) {
      const stop = said.slice(from, from + length);
      if (!stop.isWellFormed()) continue;
      const result = run(script, { stop: ['never said', stop] });
      assert.equal(result.text, said.slice(0, said.indexOf(stop)), `stop at ${JSON.stringify(stop)}`);
      assert.equal(result.reason, 'stop');
      stopped++;
    }
  }
  assert.ok(stopped > 60);
});

test('the first of several stop strings counts, and what only began like one is shown', () => {
  assert.equal(run(script, { stop: ['def', 'says', 'done'] }).text, said.slice(0, said.indexOf('says')));
  const result = run(script, { stop: ['donee', 'return y', 'done 🎉 done!'] });
  assert.deepEqual([result.text, result.reason], [said, 'length']);
});

test('after a stop string no further token is computed, and no handle is left', () => {
  const before = currentEngine().native.memory().handles;
  const result = run(script, { stop: ['says'] });
  assert.equal(result.read, prompt.length + result.ids.length - 1);
  assert.throws(() => {
    generateText(scripted(script), tokenizer, prompt, { maxNewTokens: 9 }, () => {
      throw new Error('the reader has gone');
    });
  }, /the reader has gone/);
  assert.equal(currentEngine().native.memory().handles, before);
});

test('a character that the end cuts off becomes U+FFFD once, as decode gives it', () => {
  const emoji = [...tokenizer.encode('a🎉', { addSpecialTokens: false })];
  const cut = emoji.slice(0, -1);
  const { text, pieces } = run(cut);
  assert.equal(text, tokenizer.decode(cut));
  assert.ok(pieces.slice(0, -1).every((piece) => !piece.includes('\ufffd')));
});

test("the tokenizer's end-of-text tokens end the answer unless others are given; rates are numbers", () => {
  const eos = script[4]!;
  const ended = run(script, { eosIds: [eos] });
  assert.deepEqual([ended.reason, ended.ids], ['eos', script.slice(0, script.indexOf(eos))]);
  const empty = run(script, { eosIds: [script[0]!] });
  assert.deepEqual([empty.text, empty.ids, empty.reason, empty.decodeTokensPerSecond], ['', [], 'eos', 0]);
  assert.ok(ended.decodeTokensPerSecond > 0 && ended.prefillTokensPerSecond > 0);
  assert.throws(() => run(script, { stop: [''] }), { kind: 'usage', place: 'stop' });
});
