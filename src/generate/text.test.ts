import assert from 'node:assert/strict';
import test, { before } from 'node:test';
import { golden } from '../../test/support.ts';
import { loadTokenizer } from '../data/index.ts';
import { currentEngine, startEngine } from '../engine/index.ts';
import { type CachedRows, type Model, Ports } from '../nn/index.ts';
import { ops, Tensor } from '../tensor/index.ts';
import { generateText, type TextOptions } from './text.ts';

before(() => startEngine());

const tokenizer = loadTokenizer(golden('tokenizer', 'qwen2.json'));
const prompt = [1, 2, 3];

/** A model that generates `script` after any prompt, and then repeats its last token. */
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
    layers: 0,
    kvHeads: 1,
    headDim: 1,
    hidden: ({ rowStarts }: { rowStarts: readonly number[] }, cache: CachedRows) => {
      read = cache.filled[0]! + rowStarts[1]!;
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

const answer = 'Zoë 👩‍🚀 says: 日本語, naïve\n\ndef f(x):\n  return x  # done 🎉 done';
const script = [...tokenizer.encode(answer, { addSpecialTokens: false })];

test('text comes while it is generated, in complete characters', () => {
  const { text, pieces, ids, reason, promptTokens } = run(script);
  assert.equal(text, answer);
  assert.deepEqual(ids, script);
  assert.deepEqual([reason, promptTokens], ['length', 3]);
  assert.ok(pieces.length > 10);
  for (const piece of pieces)
    assert.ok(piece.isWellFormed() && !piece.includes('\ufffd') && piece !== '', JSON.stringify(piece));
});

test('every stop string ends the text before it, wherever the tokens are cut, and no part of it is emitted', () => {
  let stopped = 0;
  for (let from = 0; from < answer.length; from += 3) {
    for (const length of [1, 2, 5, 11]) {
      const stop = answer.slice(from, from + length);
      if (!stop.isWellFormed()) continue;
      const result = run(script, { stop: ['never said', stop] });
      assert.equal(result.text, answer.slice(0, answer.indexOf(stop)), `stop at ${JSON.stringify(stop)}`);
      assert.equal(result.reason, 'stop');
      stopped++;
    }
  }
  assert.ok(stopped > 60);
});

test('the first of several stop strings ends the text, and text that only begins like one is emitted', () => {
  assert.equal(run(script, { stop: ['def', 'says', 'done'] }).text, answer.slice(0, answer.indexOf('says')));
  const result = run(script, { stop: ['donee', 'return y', 'done 🎉 done!'] });
  assert.deepEqual([result.text, result.reason], [answer, 'length']);
});

test('after a stop string no token is computed, and no handle is left', () => {
  const before = currentEngine().native.memory().handles;
  const result = run(script, { stop: ['says'] });
  assert.equal(result.read, prompt.length + result.ids.length - 1);
  assert.throws(() => {
    generateText(scripted(script), tokenizer, prompt, { maxNewTokens: 9 }, () => {
      throw new Error('the consumer failed');
    });
  }, /the consumer failed/);
  assert.equal(currentEngine().native.memory().handles, before);
});

test('a stop string may be a special token or contain some, which the text does not show', () => {
  const id = (token: string) => tokenizer.tokenToId(token)!;
  const [start, end, text] = [id('<|im_start|>'), id('<|im_end|>'), id('<|endoftext|>')];
  const ids = (part: string) => [...tokenizer.encode(part, { addSpecialTokens: false })];
  const said = [...ids('ok 👍'), start, ...ids(' and\nmore'), end, ...ids('\nlast'), text, ...ids('never')];
  const stopped: [stop: string[], text: string][] = [
    [['<|im_end|>'], 'ok 👍 and\nmore'],
    [['<|im_end|>\nl'], 'ok 👍 and\nmore'],
    [['more<|im_end|>'], 'ok 👍 and\n'],
    [['👍<|im_start|> and'], 'ok '],
    [['<|im_end|>x', '<|endoftext|>', '<|im_start|>x'], 'ok 👍 and\nmore\nlast'],
    [['<|im_end|>\nlast<|endoftext|>never'], 'ok 👍 and\nmore'],
  ];
  for (const [stop, want] of stopped) {
    const result = run(said, { stop, eosIds: [] });
    assert.deepEqual([result.text, result.reason], [want, 'stop'], JSON.stringify(stop));
  }
  // Part of a hidden token is no text, an end token that is a stop string is one, and its characters may come as text.
  assert.equal(run(said, { stop: ['im_end', '|>', '<|im_end|>end'], eosIds: [] }).reason, 'length');
  assert.equal(run(said, { stop: ['<|im_end|>'], eosIds: [end, text] }).reason, 'stop');
  assert.equal(run(said, { stop: ['<|im_end|>'], eosIds: [start] }).reason, 'eos');
  const spelled = [...'a<|im_end|>b'].flatMap((c) => ids(c));
  assert.deepEqual([run(spelled, { stop: ['<|im_end|>'] }).text, tokenizer.isSpecial(spelled.at(-2)!)], ['a', false]);
});

test('an incomplete character at the end becomes one U+FFFD, as in decode', () => {
  const emoji = [...tokenizer.encode('a🎉', { addSpecialTokens: false })];
  const cut = emoji.slice(0, -1);
  const { text, pieces } = run(cut);
  assert.equal(text, tokenizer.decode(cut));
  assert.ok(pieces.slice(0, -1).every((piece) => !piece.includes('\ufffd')));
});

test("the tokenizer's end-of-text tokens end generation unless others are given; rates are numbers", () => {
  const eos = script[4]!;
  const ended = run(script, { eosIds: [eos] });
  assert.deepEqual([ended.reason, ended.ids], ['eos', script.slice(0, script.indexOf(eos))]);
  const empty = run(script, { eosIds: [script[0]!] });
  assert.deepEqual([empty.text, empty.ids, empty.reason, empty.decodeTokensPerSecond], ['', [], 'eos', 0]);
  assert.ok(ended.decodeTokensPerSecond > 0 && ended.prefillTokensPerSecond > 0);
  assert.throws(() => run(script, { stop: [''] }), { kind: 'usage', place: 'stop' });
});
