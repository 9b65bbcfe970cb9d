import assert from 'node:assert/strict';
import test from 'node:test';
import { golden } from '../../../test/support.ts';
import { loadTokenizer } from '../../data/index.ts';
import { defaultLimits } from '../limits.ts';
import { SchemaGrammars } from './grammars.ts';

const tokenizer = loadTokenizer(golden('tokenizer', 'llama3.json'));

test('a schema that is followed whole has a grammar; every other is refused, and the next is made', async (t) => {
  const grammars = new SchemaGrammars(tokenizer, 600, { ...defaultLimits, schemaSeconds: 5 });
  t.after(() => grammars.close());
  const nested = (depth: number): object =>
    depth === 0 ? { type: 'integer' } : { type: 'array', items: nested(depth - 1) };
  const wrong: [unknown, string, RegExp][] = [
    [{ not: { type: 'string' } }, 's', /uses 'not' at 's'/],
    [{ properties: { a: { type: 'number', multipleOf: 2 } } }, 's.properties.a', /'multipleOf'/],
    [{ if: true, else: false }, 's', /'if'/],
    [{ type: 'string', format: 'colour' }, 's', /'format'/],
    [{ allOf: [{ type: 'object' }, { title: 'x' }] }, 's', /'allOf'/],
    [{ properties: { a: 5 } }, 's.properties.a', /expected an object/],
    [{ type: 'frobnicate' }, 's', /frobnicate/],
    [{ $ref: 'http://elsewhere/x' }, 's', /URI/],
    [{ type: 'string', pattern: '(?<=a)b' }, 's', /Lookbehind/],
    [{ $ref: '#/$defs/a', $defs: { a: { type: 'integer' } }, minimum: 3 }, 's', /'minimum' beside '\$ref'/],
    [{ enum: [1, 'a'], type: 'string' }, 's', /'type' beside 'enum'/],
    [{ anyOf: [{ type: 'object' }], required: ['a'] }, 's', /'required' beside 'anyOf'/],
    [{ type: 'string', format: 'date', maxLength: 3 }, 's', /'maxLength' beside 'format'/],
    [{ type: 'string', nullable: true }, 's', /'nullable'/],
    [{ type: 'number', maximum: 1 }, 's', /'maximum', which is followed for the type integer only/],
    [{ type: 'string', pattern: 'a"b' }, 's', /quotation marks/],
    [{ type: 'string', pattern: '^\\S$' }, 's', /Negative Character class/],
    [{ enum: [] }, 's', /./],
    [false, 's', /./],
    [{ title: 'x'.repeat(70_000) }, 's', /longer than/],
  ];
  for (const [schema, param, message] of wrong) {
    await assert.rejects(
      grammars.of(schema, 's'),
      { status: 400, param, message },
      JSON.stringify(schema).slice(0, 80),
    );
    assert.match(await grammars.of({ type: 'integer' }, 's'), /^root ::= /m);
  }
  const open = { type: 'object', properties: { a: { type: 'integer' } } };
  assert.notEqual(
    await grammars.of(open, 's'),
    await grammars.of(open, 's', true),
    'strict: no property that is not named',
  );
  assert.match(await grammars.of({ type: 'string', enum: ['a', 'b'], description: 'x' }, 's'), /a/);
  assert.match(await grammars.of(nested(8), 's'), /root ::= /);
  t.diagnostic(`${wrong.length} schemas refused`);
});

test('a schema that takes too long is refused, and the thread is a new one', async (t) => {
  const grammars = new SchemaGrammars(tokenizer, 600, { ...defaultLimits, schemaSeconds: 2 });
  t.after(() => grammars.close());
  const bomb = { type: 'string', pattern: '((((a{1,999}){1,999}){1,999}){1,999})' };
  await assert.rejects(grammars.of(bomb, 's'), { status: 400, code: 'unsupported_schema' });
  assert.match(await grammars.of({ type: 'boolean' }, 's'), /root ::= /);
});
