import assert from 'node:assert/strict';
import test from 'node:test';
import { z } from 'zod';
import { golden } from '../../test/support.ts';
import { loadTokenizer, randomStream } from '../data/index.ts';
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
  for (const text of ['{"name": "Zoë 🙂", "age": 12}', '{"name": "", "age": -3}']) {
    using matcher = await grammars.begin(ebnf);
    for (const id of tokenizer.encode(text, { addSpecialTokens: false })) {
      const bits = matcher.allowed();
      assert.equal(bits.length, 22);
      assert.ok(isAllowed(bits, id), `${text}: ${tokenizer.idToToken(id)}`);
      for (let other = 0; other < 700; other++)
        if (tokenizer.isSpecial(other) && other !== eos) assert.ok(!isAllowed(bits, other), `${other}`);
      assert.ok(!isAllowed(bits, eos), 'the object is not complete');
      assert.ok(!matcher.ended);
      matcher.accept(id);
      checked++;
    }
    assert.ok(isAllowed(matcher.allowed(), eos));
    assert.ok(matcher.ended, 'nothing but the end may follow');
    matcher.accept(eos);
    assert.ok(matcher.ended);
  }
  assert.ok(checked > 30);
  using matcher = await grammars.begin(ebnf);
  const [wrong] = tokenizer.encode('x', { addSpecialTokens: false });
  assert.ok(!isAllowed(matcher.allowed(), wrong!));
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
  assert.deepEqual([...matcher.allowed()], [0b001]);
});

test('a tokenizer of pieces of words has no grammars', () => {
  assert.throws(() => vocabularyTokens(loadTokenizer(golden('tokenizer', 'bert.json')), 100), { kind: 'usage' });
});

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** One token for each byte of ASCII, and one that ends. */
const bytes = {
  tokens: [...Array.from({ length: 128 }, (_, i) => String.fromCharCode(i)), ''],
  spelling: 'raw' as const,
  stopIds: [128],
};

test('answers of random tokens that a grammar allows are JSON that follows its schema', async (t) => {
  const string = { type: 'string' };
  const schemas = [
    { type: 'object', properties: { a: { type: 'integer' }, b: { enum: ['x', 'y', null] } }, required: ['a'] },
    { type: 'array', items: { type: 'integer' }, minItems: 1, maxItems: 3 },
    { ...string, maxLength: 6 },
    { ...string, minLength: 2, maxLength: 4 },
    ...['^a.{0,4}$', '^[^b]{1,5}$', '^[ -~]{2}$', '^\\d{3}-\\w+$', '^(x|y\\s?){1,3}$', '^\\D\\W$'].map((pattern) => ({
      ...string,
      pattern,
    })),
    ...['date', 'time', 'date-time', 'ipv4', 'uuid', 'hostname', 'json-pointer'].map((format) => ({
      ...string,
      format,
    })),
    { type: 'integer', minimum: -3, maximum: 250 },
    { type: 'integer', exclusiveMinimum: -3, exclusiveMaximum: 2 },
    { type: 'object', patternProperties: { '^a.?$': { type: 'boolean' } }, additionalProperties: false },
    { anyOf: [{ type: 'null' }, { const: 'a "quoted" \\ text' }] },
    {
      $defs: {
        node: {
          type: 'object',
          properties: { next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] } },
          required: ['next'],
          additionalProperties: false,
        },
      },
      $ref: '#/$defs/node',
    },
  ];
  const grammars = new Grammars(() => bytes);
  const random = randomStream(5, 1);
  let [ended, cut] = [0, 0];
  for (const schema of schemas) {
    const ebnf = await new XGrammar().fromJsonSchema(JSON.stringify(schema));
    const fits = z.fromJSONSchema(schema as z.core.JSONSchema.JSONSchema);
    for (let i = 0; i < 40; i++) {
      using matcher = await grammars.begin(ebnf);
      let text = '';
      for (let length = 0; length < 150 && !matcher.ended; length++) {
        const bits = matcher.allowed();
        const allowed = bytes.tokens.flatMap((_, id) => (isAllowed(bits, id) ? [id] : []));
        // Ends and closing marks come soon, so that most answers are complete.
        const closing = allowed.filter((id) => id === 128 || '"}]'.includes(bytes.tokens[id]!));
        const from = closing.length > 0 && random() < 0.3 ? closing : allowed;
        const id = from[Math.floor(random() * from.length)]!;
        if (id !== 128) text += bytes.tokens[id];
        matcher.accept(id);
      }
      if (!matcher.ended) cut++;
      else {
        ended++;
        const value = parsed(text);
        assert.ok(value !== undefined, `${JSON.stringify(schema)}: ${text}`);
        // A date has the form of one, and the calendar may not have it.
        if (!('format' in schema)) assert.ok(fits.safeParse(value).success, `${JSON.stringify(schema)}: ${text}`);
      }
    }
  }
  assert.ok(ended > 500 && cut < ended / 3, `${ended} ended, ${cut} did not`);
  t.diagnostic(`${ended} answers checked`);
});
