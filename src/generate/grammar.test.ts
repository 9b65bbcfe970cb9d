import assert from 'node:assert/strict';
import test from 'node:test';
import { golden } from '../../test/support.ts';
import { loadTokenizer } from '../data/index.ts';
import { Grammars, vocabularyTokens } from './grammar.ts';
import { XGrammar } from './xgrammar.ts';

const tokenizer = loadTokenizer(golden('tokenizer', 'llama3.json'));
const isAllowed = (bits: Int32Array, id: number) => ((bits[id >> 5]! >>> (id & 31)) & 1) === 1;
const schema = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
  additionalProperties: false,
};

test('a grammar of a schema allows what follows it, token by token, and no special token', async (t) => {
  const ebnf = await new XGrammar().fromJsonSchema(JSON.stringify(schema));
  const eos = 596; // any id: the golden tokenizer names none
  const vocabulary = { ...vocabularyTokens(tokenizer, 700), stopIds: [eos] };
  const grammars = new Grammars(() => vocabulary);
  let checked = 0;
  for (const text of ['{"name": "Zoë 🙂", "age": 12}', '{ "name" : "" , "age" : -3 }']) {
    using matcher = await grammars.begin(ebnf);
    for (const id of tokenizer.encode(text, { addSpecialTokens: false })) {
      const bits = matcher.allowed;
      assert.equal(bits.length, 22);
      assert.ok(isAllowed(bits, id), `${text}: ${tokenizer.idToToken(id)}`);
      for (let other = 0; other < 700; other++)
        if (tokenizer.isSpecial(other) && other !== eos) assert.ok(!isAllowed(bits, other), `${other}`);
      assert.ok(!isAllowed(bits, eos), 'the object is not complete');
      const logits = new Float32Array(700);
      matcher.apply(logits);
      assert.deepEqual([logits[id], logits[eos]], [0, Number.NEGATIVE_INFINITY]);
      assert.ok(!matcher.finished);
      matcher.accept(id);
      checked++;
    }
    assert.ok(isAllowed(matcher.allowed, eos));
    assert.ok(matcher.finished, 'nothing but the end may follow');
    matcher.accept(eos);
    assert.ok(matcher.finished);
  }
  assert.ok(checked > 30);
  using matcher = await grammars.begin(ebnf);
  const [wrong] = tokenizer.encode('x', { addSpecialTokens: false });
  assert.ok(!isAllowed(matcher.allowed, wrong!));
  assert.throws(() => matcher.accept(wrong!), { kind: 'engine' });
  t.diagnostic(`${checked} tokens checked`);
});

test('what the library cannot do is refused in its words, and other grammars go on', async () => {
  const refused: [unknown, RegExp][] = [
    [{ type: 'frobnicate' }, /Unsupported type "frobnicate"/],
    [{ $ref: '#/$defs/a' }, /Cannot find field \$defs/],
    [{ type: 'integer', minimum: 5, maximum: 3 }, /minimum greater than maximum/],
    [{ allOf: [{ type: 'object' }, { type: 'string' }] }, /allOf with multiple options/],
    [{ type: 'string', pattern: '[' }, /Unclosed/],
  ];
  for (const [wrong, message] of refused) {
    await assert.rejects(new XGrammar().fromJsonSchema(JSON.stringify(wrong)), { kind: 'usage', message });
  }
  const grammars = new Grammars(() => ({ tokens: ['a', 'b', 'end'], spelling: 'raw', stopIds: [2] }));
  await assert.rejects(grammars.begin('root ::= "a'), { kind: 'usage' });
  using matcher = await grammars.begin('root ::= "a"');
  assert.deepEqual([...matcher.allowed], [0b001]);
});

test('a tokenizer of pieces of words has no grammars', () => {
  assert.throws(() => vocabularyTokens(loadTokenizer(golden('tokenizer', 'bert.json')), 100), { kind: 'usage' });
});
